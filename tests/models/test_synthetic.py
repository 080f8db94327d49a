"""Synthetic models have the shape and acceptance that were chosen, or are refused."""

import math

import pytest
import torch
from transformers import LlamaForCausalLM

from arguments.model import ModelArguments
from arguments.pruning import PruneArguments
from models import synthetic
from models.checkpoint import find_checkpoint
from models.loading import load_model
from models.runtime import start
from models.synthetic import (
    NUM_SPECULATIONS,
    SHAPES,
    SyntheticModel,
    angle_for,
    argmax_agreement,
    make_tokenizer,
    match_rate_for,
)
from pruned_model import count_parameters
from runs.preparation import load_pruned
from self_speculation.generator_base import GenerationConfig
from self_speculation.text_generator import TextGenerator
from tests.loading import refusal

TINY = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
PARAMETERS = {
    "llama3.2-1b": 1_235_814_400,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama2-13b": 13_015_864_320,
}
TEXTS = ["def add(a, b):\n    ", "Grüße aus 東京 🙂", "\x00\t\x7f\r\n", " two  spaces ", "Ġ300 <s>"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setitem(SHAPES, "tiny-tied", TINY | {"tie_word_embeddings": True})


def made(name="synthetic:tiny", **changes):
    arguments = ModelArguments(model=name, device="cpu", **changes)
    return load_model(arguments, start(arguments))


def outputs(loaded, strategy="self_speculative", steps=48, count=8):
    """Return greedy outputs with the exit layer at which the acceptance holds."""
    exit_layer = None if strategy == "autoregressive" else TINY["num_hidden_layers"] // 4
    config = GenerationConfig(
        max_steps=steps, kept_exit_layer=exit_layer, num_speculations=NUM_SPECULATIONS
    )
    generator = TextGenerator(loaded.model, loaded.tokenizer, strategy, config, capacity=256)
    prompts = [f"This is prompt {index}, other than the rest." for index in range(count)]
    return [generator.generate(loaded.tokenizer(prompt)["input_ids"]) for prompt in prompts]


def acceptance(generations):
    drafted, accepted = zip(*(pair for made in generations for pair in made.rounds), strict=True)
    return sum(accepted) / sum(drafted)


@pytest.mark.parametrize("shape", PARAMETERS)
def test_shapes_are_those_of_the_public_models(shape):
    config = SyntheticModel(shape).config
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert count_parameters(model) == PARAMETERS[shape]
    assert config.tie_word_embeddings == (shape == "llama3.2-1b")
    assert shape in ModelArguments.__dataclass_fields__["model"].metadata["help"]


def test_the_agreement_of_argmaxes_is_that_of_drawn_vectors():
    draws, vocabulary = torch.Generator().manual_seed(0), 500
    x, noise = torch.randn(2, 5000, vocabulary, generator=draws)
    for angle in (0.1, 0.5):
        y = math.cos(angle) * x + math.sin(angle) * noise
        drawn = float((x.argmax(-1) == y.argmax(-1)).double().mean())
        expected = argmax_agreement(math.cos(angle), vocabulary)
        assert expected == pytest.approx(drawn, abs=0.02)
        assert angle_for(expected, vocabulary) == pytest.approx(angle, abs=1e-4)
    rate = match_rate_for(0.7)  # a draft is accepted up to its first mismatch
    powers = [rate**count for count in range(1, NUM_SPECULATIONS + 1)]
    assert sum(powers) / NUM_SPECULATIONS == pytest.approx(0.7, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("synthetic:tiny:0.4", 0.4), ("synthetic:tiny:0.9", 0.9), ("synthetic:tiny-tied", 0.7)],
)
def test_the_acceptance_is_the_chosen_one(name, chosen):
    assert acceptance(outputs(made(name))) == pytest.approx(chosen, abs=0.1)


@pytest.mark.parametrize("name", ["synthetic:tiny", "synthetic:tiny-tied"])
def test_outputs_run_to_their_limit_and_are_no_loops(name):
    loaded = made(name)
    for generation in outputs(loaded, "autoregressive", count=3):
        assert (len(generation.output_ids), generation.stop_reason) == (48, "length")
        assert len(set(generation.output_ids)) > 32
    ids = torch.randint(0, 1000, (50, 30), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 7  # the last token alone does not decide
    with torch.inference_mode():
        logits = loaded.model(ids).logits[:, -1]
    assert len(set(logits.argmax(-1).tolist())) > 10


def test_a_name_means_the_same_weights_every_time():
    one, same, other = (made(f"synthetic:tiny{end}") for end in ("", ":0.7", ":0.8"))
    weights = [loaded.model.state_dict() for loaded in (one, same, other)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    changed = {name for name in weights[0] if not torch.equal(weights[0][name], weights[2][name])}
    assert changed == {
        f"model.layers.{index}.{projection}.weight"
        for index in range(2, 8)
        for projection in ("self_attn.o_proj", "mlp.down_proj")
    }
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_name_and_fingerprint_say_that_the_model_is_synthetic(monkeypatch):
    arguments = ModelArguments(model="synthetic:tiny:0.5")
    found = find_checkpoint(arguments)
    assert found.name == "synthetic:tiny:0.5"
    assert found.fingerprint.startswith("synthetic ")
    assert made("synthetic:tiny:0.5").name == found.name
    monkeypatch.setattr(synthetic, "_RECIPE", 0)
    assert find_checkpoint(arguments).fingerprint != found.fingerprint


def test_dtype_and_attention_are_as_asked():
    loaded = made(dtype="bfloat16", model_args="attn_implementation=eager")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.model.config._attn_implementation == "eager"
    assert not loaded.model.training
    model = made(model_args="dtype=float64").model
    assert model.dtype == torch.float64
    fresh = LlamaForCausalLM(SyntheticModel("tiny").config)  # the frequencies are no weights
    assert torch.equal(model.model.rotary_emb.inv_freq, fresh.model.rotary_emb.inv_freq)


def test_every_text_is_its_bytes_and_every_token_a_text():
    tokenizer = make_tokenizer(1000)
    assert len(tokenizer) == 1000
    assert tokenizer.eos_token_id is None
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text
    texts = [tokenizer.decode([token_id], skip_special_tokens=True) for token_id in range(1000)]
    assert all(texts)
    assert all(text.strip() and text.isprintable() for text in texts[256:])
    assert len(set(texts[256:])) == 1000 - 256


@pytest.mark.parametrize("name", ["synthetic:tiny", "synthetic:tiny-tied"])
def test_a_model_saved_pruned_is_an_ordinary_checkpoint(name, tmp_path):
    pruning = PruneArguments(
        prune_method="random",
        dropout_threshold=0.3,
        prune_seed=1,
        save_pruned=str(tmp_path / "pruned"),
    )
    prepared = load_pruned(ModelArguments(model=name, device="cpu"), pruning)
    loaded, saved = prepared.loaded, made(pruning.save_pruned)
    assert len(prepared.plan.removed_layers) in range(1, 8)
    ids = saved.tokenizer(TEXTS[1])["input_ids"]
    assert ids == list(TEXTS[1].encode())
    assert saved.tokenizer.decode([7, 999]) == loaded.tokenizer.decode([7, 999])
    with torch.inference_mode():
        logits = [one.model(torch.tensor([ids])).logits for one in (loaded, saved)]
    assert torch.equal(*logits)
    assert saved.plan_of_origin["model_fingerprint"] == loaded.fingerprint
    (spoken,) = outputs(saved, "autoregressive", steps=8, count=1)
    assert len(spoken.output_ids) == 8


@pytest.mark.parametrize("name", ["foo", "", "foo:0.5"])
def test_unknown_shapes_are_refused(name):
    allowed = ", ".join(f"synthetic:{shape}" for shape in [*PARAMETERS, "tiny", "tiny-tied"])
    assert refusal(f"synthetic:{name}") == f"must be one of {allowed}"


@pytest.mark.parametrize("text", ["0", "1", "-0.5", "nan", "much", "", "0.5:0.5"])
def test_acceptances_that_cannot_be_are_refused(text):
    expected = "the acceptance after the second colon must be in (0, 1)"
    assert refusal(f"synthetic:tiny:{text}") == expected


def test_arguments_that_cannot_apply_are_refused():
    assert refusal("synthetic:tiny", model_args="revision=main") == (
        "--model_args revision=main: --model synthetic:tiny is read from no files and takes "
        "attn_implementation, dtype only"
    )
    message = refusal("synthetic:tiny", model_args="attn_implementation=flash_attention_2")
    assert message.startswith("cannot be loaded (")
