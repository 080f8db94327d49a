"""Outputs of many prompts at once equal those of one prompt at a time."""

import pytest

from pruned_model import PruneModel
from pruning.plan import PrunePlan
from self_speculation import programs
from self_speculation.batched_generator import BatchedTextGenerator
from self_speculation.generator_base import GenerationConfig
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import WARM_UP_STEPS, TextGenerator
from tests.conftest import END, LAYERS, random_prompt
from tests.waits import CountedWaits

CAPACITY = 96
STEPS = 16
PROMPTS = [random_prompt(length, seed=length) for length in (20, 3, 41, 1, 90, 20, 96)]
NAMES = [f"example {number}" for number in range(len(PROMPTS))]
RULES = {
    "greedy": {},
    "n-gram": {"sampling": SamplingRule(no_repeat_ngram_size=2)},
    "sampled": {"sampling": SamplingRule(True, 0.8, 20, 0.95)},
    "sampled n-gram": {"sampling": SamplingRule(True, 1.3, no_repeat_ngram_size=1)},
    "early exit": {"kept_exit_layer": 2},
}


@pytest.fixture
def interpreted(small_buckets, monkeypatch):
    """Programs run their blocks without a compiler, in buckets of 64 and 128 positions."""
    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "_native", lambda block, *_: programs._Stateless(block))


def alone(model, tokenizer, config):
    one = TextGenerator(model, tokenizer, "autoregressive", config, CAPACITY)
    return [one.generate(ids, 5, name) for ids, name in zip(PROMPTS, NAMES, strict=True)]


def together(model, tokenizer, config, batch_size=3, compiled=False):
    many = BatchedTextGenerator(model, tokenizer, config, CAPACITY, batch_size, compiled)
    return many.generate(PROMPTS, 5, NAMES)


def facts(made):
    return [(one.output_ids, one.text, one.stop_reason, one.prompt_tokens) for one in made]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("batch_size", "compiled"), [(1, False), (3, True), (8, False)])
@pytest.mark.parametrize("rule", RULES)
def test_outputs_equal_those_of_single_prompts(model, tokenizer, rule, batch_size, compiled):
    PruneModel(model, PrunePlan("test", LAYERS, (0, 1, 4, 5))).prune()
    config = GenerationConfig(**{"max_steps": STEPS} | RULES[rule])
    expected = alone(model, tokenizer, config)
    assert {len(one.output_ids) for one in expected} >= {1, 7, STEPS}  # by the capacity
    found = together(model, tokenizer, config, batch_size, compiled)
    assert facts(found) == facts(expected)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("compiled", [False, True])
def test_every_output_stops_by_its_own_rule(model, tokenizer, compiled):
    plain = alone(model, tokenizer, GenerationConfig(max_steps=STEPS))
    words = (plain[0].text[5:7], plain[2].text[9:11], "never")
    tokens = (plain[1].output_ids[3],)
    config = GenerationConfig(max_steps=STEPS, stop_words=words, stop_token_ids=tokens)
    expected = alone(model, tokenizer, config)
    assert {one.stop_reason for one in expected} == {"stop_word", "stop_token", "length"}
    assert facts(together(model, tokenizer, config, 3, compiled)) == facts(expected)


def test_outputs_do_not_depend_on_earlier_ones(model, tokenizer):
    config = GenerationConfig(max_steps=STEPS)
    many = BatchedTextGenerator(model, tokenizer, config, CAPACITY, 2)
    expected = facts(many.generate(PROMPTS))
    warm = many.warm_up(PROMPTS[:3])
    assert [len(one.output_ids) for one in warm] == [WARM_UP_STEPS] * 3
    assert facts(many.generate(PROMPTS)) == expected
    assert facts(many.generate(PROMPTS[3:])) == expected[3:]
    assert many.generate([]) == []


def test_an_ended_output_costs_nothing_more(model, tokenizer, monkeypatch):
    """Waiting prompts take the rows of ended outputs, and no step includes an ended output."""
    many = BatchedTextGenerator(model, tokenizer, GenerationConfig(max_steps=STEPS), CAPACITY, 3)
    rows = []
    ordinary = many.engine.step

    def watched(ids):
        rows.append(len(ids))
        return ordinary(ids)

    monkeypatch.setattr(many.engine, "step", watched)
    made = many.generate(PROMPTS)
    assert sum(rows) == sum(len(one.output_ids) - 1 for one in made)
    filled = [count == 3 for count in rows]
    assert filled == sorted(filled, reverse=True)  # until no prompt waits
    assert any(filled)


@pytest.mark.parametrize("rule", ["greedy", "sampled"])
def test_the_host_waits_once_per_step(model, tokenizer, rule, monkeypatch):
    config = GenerationConfig(**{"max_steps": 4} | RULES[rule])
    many = BatchedTextGenerator(model, tokenizer, config, CAPACITY, 3)
    pick, counts = SamplingRule.pick_each, []

    def watched(*arguments):
        with CountedWaits() as counted:
            chosen = pick(*arguments)
        counts.append(counted.waits)
        return chosen

    monkeypatch.setattr(SamplingRule, "pick_each", watched)
    many.generate(PROMPTS[:3])
    assert counts == [1] * 4


@pytest.mark.parametrize("prompts", [[[]], [[1], [1] * (CAPACITY + 1)]])
def test_prompts_without_room_are_refused(model, tokenizer, prompts):
    many = BatchedTextGenerator(model, tokenizer, GenerationConfig(), CAPACITY, 2)
    with pytest.raises(ValueError, match=r"a prompt of (0|97) tokens, not 1 to 96"):
        many.generate(prompts)


def test_a_batch_of_nothing_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        BatchedTextGenerator(model, tokenizer, GenerationConfig(), CAPACITY, 0)


def test_special_tokens_as_stop_words_end_outputs(model, tokenizer):
    config = GenerationConfig(stop_words=("<end>",))
    many = BatchedTextGenerator(model, tokenizer, config, CAPACITY, 2)
    assert END in many._stop_rule.stop_token_ids
