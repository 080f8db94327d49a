"""Sequences end where rotary factors that depend on the length would change."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM

from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.pruning import PruneArguments
from harness.model import HarnessModel
from runs.preparation import load_pruned
from self_speculation.generator_base import GenerationConfig
from self_speculation.llama_model_utils import CachedLlama, position_limit
from self_speculation.text_generator import TextGenerator
from tests.conftest import GREEDY, random_prompt, row, tiny_config

ORIGINAL = 32
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.5, 3.0, 6.0, 9.0],
    "original_max_position_embeddings": ORIGINAL,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


def made(rope, positions=128, **changes):
    torch.manual_seed(0)
    config = tiny_config(rope_parameters=rope, max_position_embeddings=positions, **changes)
    return LlamaForCausalLM(config).double().eval().requires_grad_(False)


def generated(model, tokenizer, strategy, prompt, steps=40):
    exits = {"kept_exit_layer": 3, "num_speculations": 3} if strategy != "autoregressive" else {}
    config = GenerationConfig(max_steps=steps, **exits)
    generator = TextGenerator(model, tokenizer, strategy, config, 128)
    generator.strategy.stop_rule.stop_token_ids = frozenset()
    return generator.generate(prompt)


@pytest.mark.parametrize("length", [8, ORIGINAL, ORIGINAL + 1])
def test_speculation_equals_plain_decoding_around_the_end_of_short_factors(tokenizer, length):
    model, prompt = made(LONGROPE), random_prompt(length)
    plain = generated(model, tokenizer, "autoregressive", prompt)
    speculative = generated(model, tokenizer, "self_speculative", prompt)
    assert plain.output_ids == speculative.output_ids
    room = ORIGINAL - length + 1 if length <= ORIGINAL else 40
    assert len(plain.output_ids) == min(room, 40)
    assert plain.stop_reason == "length"


@pytest.mark.parametrize("length", [8, 60])
def test_a_longrope_model_decodes_like_one_pass_over_the_whole_sequence(tokenizer, length):
    """transformers chooses the factors by the length of the whole sequence."""
    model, prompt = made(LONGROPE), random_prompt(length)
    output_ids = generated(model, tokenizer, "autoregressive", prompt).output_ids
    logits_TV = model(row([*prompt, *output_ids[:-1]])).logits[0, length - 1 :]
    assert logits_TV.argmax(-1).tolist() == output_ids


def test_factors_do_change_where_sequences_end():
    """Otherwise the limit would be useless."""
    model, prompt = made(LONGROPE), random_prompt(ORIGINAL + 1)
    whole = model(row(prompt)).logits[0, -1]
    engine = CachedLlama(model, 128)
    engine.forward(row(prompt[:-1]))
    (stepwise,) = engine.forward(row(prompt[-1:]))
    assert (whole - stepwise).abs().max() > 1e-3


def test_yarn_stretches_the_positions_that_a_model_can_read(tokenizer):
    model = made(YARN, positions=64)
    assert position_limit(model.config) == 256
    engine = CachedLlama(model, 256)
    logits_1V = engine.forward(row(random_prompt(200)))
    torch.testing.assert_close(logits_1V, model(row(random_prompt(200))).logits[0, -1:])


def test_answers_that_end_where_factors_change_are_counted_in_a_warning(
    run, tokenizer, tmp_path, capsys
):
    made(LONGROPE).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    path = tmp_path / "prompts.jsonl"
    prompts = ["short", "a" * 30, "b" * 60]
    path.write_text("".join(json.dumps({"prompt": p, "response": ""}) + "\n" for p in prompts))
    flags = ["--model", str(tmp_path / "model"), *GREEDY]
    code, _, samples = run(*flags, path=path)
    assert code == 0
    assert [len(one.output_ids) for one in samples] == [16, 3, 16]
    assert (
        "warning: --max_steps 16: 1 of 3 answers end at 32 tokens, where the factors of LongRoPE "
        "change\n"
    ) in capsys.readouterr().err
    assert run(*flags, "--num_samples", "1", path=path, samples="")[0] == 0
    assert "LongRoPE" not in capsys.readouterr().err


def test_the_harness_reads_as_many_positions(tokenizer, tmp_path):
    made(YARN, positions=64).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = ModelArguments(str(tmp_path), dtype="float64")
    flags = GenerationArguments(sample=False, max_steps=4)
    prepared = load_pruned(model, PruneArguments(), generation=flags)
    assert HarnessModel(prepared, flags, 1).max_length == 256


@pytest.mark.parametrize(
    ("rope", "positions", "limit"),
    [
        (YARN, 256, 256),  # stretched already
        (YARN | {"factor": 1.5}, 64, 96),
        (LONGROPE, 128, 128),
        ({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, 64, 64),
        ({"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}, 64, 64),
        ({"rope_type": "default", "rope_theta": 10000.0}, 64, 64),
    ],
)
def test_limits_of_positions(rope, positions, limit):
    assert (
        position_limit(tiny_config(rope_parameters=rope, max_position_embeddings=positions))
        == limit
    )
