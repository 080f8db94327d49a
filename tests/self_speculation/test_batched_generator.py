"""Outputs of many prompts at once equal those of one prompt at a time."""

import pytest

from self_speculation import programs
from self_speculation.batched_generator import BatchedTextGenerator
from self_speculation.generator_base import GenerationConfig
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator
from tests.conftest import random_prompt

CAPACITY = 96
PROMPTS = [random_prompt(length, seed=length) for length in (20, 3, 41, 1, 93, 20, 96)]
NAMES = [f"example {number}" for number in range(len(PROMPTS))]


def alone(model, tokenizer, config, prompts=PROMPTS, capacity=CAPACITY):
    one = TextGenerator(model, tokenizer, "autoregressive", config, capacity)
    return [one.generate(ids, 5, name) for ids, name in zip(prompts, NAMES, strict=False)]


def facts(made):
    return [(one.output_ids, one.text, one.stop_reason, one.prompt_tokens) for one in made]


RULES = {
    "greedy": {},
    "n-gram": {"sampling": SamplingRule(no_repeat_ngram_size=2)},
    "sampled": {"sampling": SamplingRule(True, 0.8, 20, 0.95)},
    "sampled n-gram": {"sampling": SamplingRule(True, 1.3, no_repeat_ngram_size=1)},
    "early exit": {"kept_exit_layer": 2},
    "few steps": {"max_steps": 2},
}


@pytest.fixture
def interpreted(small_buckets, monkeypatch):
    """Programs run their blocks without a compiler, in buckets of 64 and 128 positions."""
    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "_native", lambda block, *_: programs._Stateless(block))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("rule", RULES)
def test_outputs_equal_those_of_single_prompts(model, tokenizer, rule, batch_size, compiled):
    config = GenerationConfig(**{"max_steps": 24} | RULES[rule])
    many = BatchedTextGenerator(model, tokenizer, config, CAPACITY, batch_size, compiled)
    expected = facts(alone(model, tokenizer, config))
    assert facts(many.generate(PROMPTS, 5, NAMES)) == expected
