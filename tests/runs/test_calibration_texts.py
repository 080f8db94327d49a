"""Generated calibration texts are prompts with the whole model's own greedy continuations."""

import pytest
import torch

from arguments.model import ModelArguments
from arguments.pruning import PruneArguments
from models.loading import load_model
from models.runtime import start
from pruned_model import make_plan
from runs.calibration_texts import measurements
from self_speculation.batched_generator import BatchedTextGenerator
from tests.conftest import END, random_prompt
from tests.ranked import in_ranks

LENGTHS = (5, 30, 9, 14, 3, 22, 8, 11, 6, 40)
PROMPTS = [random_prompt(length, seed=length) for length in LENGTHS]
GENERATED = {"calibration_text": "generated", "calibration_steps": 12}


@pytest.fixture
def load(checkpoint):
    def loading(attention="sdpa"):
        flags = ModelArguments(
            str(checkpoint), dtype="float64", model_args=f"attn_implementation={attention}"
        )
        return load_model(flags, start(flags))

    return loading


def texts_of(loaded, prompts=PROMPTS, **more):
    flags = PruneArguments(prune_method="angular", prune_n=2, **GENERATED | more)
    return [text[0].tolist() for text in measurements(flags, loaded, prompts).prompts]


@torch.inference_mode()
def greedy(model, ids, steps):
    """Continue a prompt without this project's engine."""
    ids = list(ids)
    for _ in range(steps):
        ids.append(
            int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        )
        if ids[-1] == END:
            break
    return ids


def test_texts_are_prompts_with_the_models_greedy_continuations(load):
    loaded = load()
    texts = texts_of(loaded)
    assert texts == [greedy(loaded.model, ids, 12) for ids in PROMPTS]
    assert texts != PROMPTS
    assert texts == texts_of(load())


def test_continuations_end_at_the_models_end_token(load):
    loaded = load()
    (text,) = texts_of(loaded, PROMPTS[:1])
    loaded.model.generation_config.eos_token_id = text[len(PROMPTS[0]) + 3]
    (cut,) = texts_of(loaded, PROMPTS[:1])
    assert cut == text[: len(cut)]
    assert len(PROMPTS[0]) < len(cut) <= len(PROMPTS[0]) + 4


def test_no_text_exceeds_the_positions_and_long_prompts_keep_their_tail(load):
    loaded = load()
    loaded.config.max_position_embeddings = 32
    loaded.model.generation_config.eos_token_id = loaded.tokenizer.eos_token = None
    for ids, text in zip(PROMPTS, texts_of(loaded), strict=True):
        kept = ids[-20:]
        assert text[: len(kept)] == kept
        assert len(text) == len(kept) + 12 <= 32


def test_kernels_without_masks_continue_one_prompt_at_a_time(load, monkeypatch):
    loaded = load()
    together = texts_of(loaded)
    monkeypatch.setattr("self_speculation.batched_llama.BATCHED_ATTENTION", ())
    monkeypatch.setattr(BatchedTextGenerator, "generate", None)
    assert texts_of(loaded) == together


def test_texts_and_plans_do_not_depend_on_the_number_of_processes(load):
    loaded = load()
    flags = PruneArguments(prune_method="taylor", prune_n=2, **GENERATED)

    def work(ranks):
        with ranks.together():
            found = measurements(flags, loaded, PROMPTS, ranks)
            return [text.tolist() for text in found.prompts], make_plan(flags, found)

    alone = measurements(flags, loaded, PROMPTS)
    expected = [text.tolist() for text in alone.prompts], make_plan(flags, alone)
    assert in_ranks(3, work) == [expected] * 3


def test_the_log_counts_generated_tokens(run):
    flags = ["--prune_method", "perplexity", "--prune_n", "1", "--calibration_samples", "3"]
    flags += ["--sample", "false", "--max_steps", "4"]
    generated = ["--calibration_text", "generated", "--calibration_steps", "7"]
    code, plain, _ = run(*flags)
    assert (code, plain.plan["calibration"].keys()) == (0, {"prompts", "tokens"})
    code, record, _ = run(*flags, *generated)
    facts, tokens = record.plan["calibration"], plain.plan["calibration"]["tokens"]
    assert code == 0
    assert 0 < facts["generated_tokens"] <= 3 * 7
    assert facts["tokens"] == tokens + facts["generated_tokens"]
    assert record.plan["scores"] != plain.plan["scores"]
    assert record.run_id != plain.run_id


def test_a_sweep_generates_once_for_all_plans(run_sweep, monkeypatch):
    made, ordinary = [], BatchedTextGenerator.generate
    monkeypatch.setattr(
        BatchedTextGenerator, "generate", lambda *given: made.append(0) or ordinary(*given)
    )
    flags = ["--prune_methods", "angular", "--prune_ns", "1", "2", "--calibration_samples", "4"]
    generated = ["--calibration_text", "generated", "--calibration_steps", "5"]
    code, _ = run_sweep(*flags, *generated)
    assert (code, len(made)) == (0, 1)
