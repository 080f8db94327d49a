"""Self-speculation never changes an output, and outputs end where they must."""

import copy
import itertools

import pytest
import torch

from pruned_model import PruneModel
from pruning.plan import PrunePlan
from self_speculation.drafter import Draft, Drafter, Drafting, DraftSetting
from self_speculation.generator_base import GenerationConfig
from self_speculation.layer_drafter import LayerDrafter
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator, end_token_ids
from tests.conftest import END, LAYERS, random_prompt

CAPACITY = 96
PROMPT = random_prompt(20)


def decode(model, tokenizer, strategy="autoregressive", exit_layer=None, k=None, **changes):
    seed = changes.pop("seed", 0)
    prompt = changes.pop("prompt", PROMPT)
    config = GenerationConfig(
        **{"max_steps": 32, **changes}, kept_exit_layer=exit_layer, num_speculations=k
    )
    return TextGenerator(model, tokenizer, strategy, config, CAPACITY).generate(prompt, seed)


def speculate(model, tokenizer, exit_layer, k, **changes):
    return decode(model, tokenizer, "self_speculative", exit_layer, k, **changes)


PLANS = {
    "whole": tuple(range(LAYERS)),
    "block removed": (0, 1, 4, 5),
    "scattered": (1, 2, 5),
}
RULES = {
    "plain": {},
    "n-gram": {"sampling": SamplingRule(no_repeat_ngram_size=2)},
    "stop words": {},
}


@pytest.mark.parametrize(
    ("kind", "plan", "rule"),
    [
        ("model", "whole", "plain"),
        ("model", "block removed", "n-gram"),
        ("agreeable", "whole", "plain"),
        ("agreeable", "whole", "n-gram"),
        ("agreeable", "block removed", "plain"),
        ("agreeable", "scattered", "plain"),
        ("agreeable", "scattered", "stop words"),
    ],
)
def test_speculative_equals_autoregressive(kind, plan, rule, request, tokenizer):
    """Outputs are equal for every exit layer and short and long drafts."""
    model = request.getfixturevalue(kind)
    PruneModel(model, PrunePlan("test", LAYERS, PLANS[plan])).prune()
    changes = dict(RULES[rule])
    if rule == "stop words":
        text = decode(model, tokenizer).text
        changes["stop_words"] = (text[len(text) // 2 :][:2], "never")
    expected = decode(model, tokenizer, **changes)
    assert expected.stop_reason == ("stop_word" if rule == "stop words" else "length")
    accepted = 0
    for exit_layer, k in itertools.product(range(1, len(PLANS[plan])), (1, 2, 4, 8)):
        found = speculate(model, tokenizer, exit_layer, k, **changes)
        assert found.output_ids == expected.output_ids, (exit_layer, k)
        assert (found.text, found.stop_reason) == (expected.text, expected.stop_reason)
        accepted += found.accepted_tokens
    if kind == "agreeable":
        assert accepted > 0


def test_autoregressive_equals_transformers_generate(model, tokenizer):
    ids = torch.tensor([PROMPT])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=32,
        do_sample=False,
        no_repeat_ngram_size=2,
    )
    sampling = SamplingRule(no_repeat_ngram_size=2)
    assert decode(model, tokenizer, sampling=sampling).output_ids == made[0, 20:].tolist()


def test_autoregressive_with_an_exit_layer_is_the_model_of_those_layers(model, tokenizer):
    early = decode(model, tokenizer, exit_layer=2)
    assert early.output_ids != decode(model, tokenizer).output_ids
    assert set(early.steps) == {"early_exit"}
    PruneModel(model, PrunePlan("test", LAYERS, (0, 1))).prune()
    assert early.output_ids == decode(model, tokenizer).output_ids


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 8])
def test_no_strategy_exceeds_max_steps(agreeable, tokenizer, steps, k):
    made = speculate(agreeable, tokenizer, 2, k, max_steps=steps)
    assert len(made.output_ids) == steps
    assert made.stop_reason == "length"
    assert made.output_ids == decode(agreeable, tokenizer, max_steps=steps).output_ids


def test_no_strategy_exceeds_the_capacity(agreeable, tokenizer):
    prompt = random_prompt(CAPACITY - 3)
    one = decode(agreeable, tokenizer, prompt=prompt)
    other = speculate(agreeable, tokenizer, 2, 6, prompt=prompt)
    assert len(one.output_ids) == 4
    assert one.output_ids == other.output_ids


@pytest.mark.parametrize("length", [0, CAPACITY + 1])
def test_prompts_that_do_not_fit_are_refused(model, tokenizer, length):
    with pytest.raises(ValueError, match=f"a prompt of {length} tokens, not 1 to {CAPACITY}"):
        decode(model, tokenizer, prompt=random_prompt(length))


def test_the_engine_lacks_only_the_newest_token_after_each_round(agreeable, tokenizer):
    config = GenerationConfig(max_steps=24, kept_exit_layer=2, num_speculations=4)
    generator = TextGenerator(agreeable, tokenizer, "self_speculative", config, CAPACITY)
    strategy, lengths = generator.strategy, []
    ordinary = strategy.round

    def watched(output):
        lengths.append((generator.engine.length, len(output.tokens) - 1))
        return ordinary(output)

    strategy.round = watched
    generator.generate(PROMPT)
    assert lengths
    assert all(held == expected for held, expected in lengths)


def test_counts_agree_with_the_rounds(agreeable, tokenizer):
    made = speculate(agreeable, tokenizer, 2, 4, max_steps=40)
    assert made.steps["verify"].calls == len(made.rounds)
    assert all(0 <= accepted <= drafted <= 4 for drafted, accepted in made.rounds)
    final_full_step = made.steps["full"].calls if "full" in made.steps else 0
    tokens = 1 + sum(accepted + 1 for _, accepted in made.rounds) + final_full_step
    assert tokens == len(made.output_ids)
    assert {"draft", "verify"} <= set(made.steps)
    passes = sum(step.seconds for step in made.steps.values())
    assert 0 < passes <= made.decode_seconds


def test_plain_decoding_drafts_nothing(model, tokenizer):
    made = decode(model, tokenizer)
    assert made.rounds == []
    assert made.steps["full"].calls == len(made.output_ids) - 1


class OracleDrafter(Drafter):
    """Proposes tokens from a fixed text, like a drafter that looks them up."""

    def __init__(self, text, wrong_at):
        self.text, self.wrong_at = text, wrong_at

    def outlook(self, tokens):
        return "oracle"

    def propose(self, tokens, count):
        done = len(tokens) - len(PROMPT)
        drafted = [
            (token + (done + i in self.wrong_at)) % 256
            for i, token in enumerate(self.text[done : done + count])
        ]
        return Draft(torch.tensor(drafted), None)


@pytest.mark.parametrize("wrong_at", [range(0), range(99), (3, 4, 11)])
def test_other_drafters_join_through_the_same_seam(model, tokenizer, wrong_at, monkeypatch):
    expected = decode(model, tokenizer).output_ids
    oracle = OracleDrafter(expected + [0] * 16, wrong_at)
    monkeypatch.setattr(DraftSetting, "make", lambda _: oracle)
    made = speculate(model, tokenizer, None, 4, drafting=Drafting("lookup"))
    assert made.output_ids == expected
    accepted = made.accepted_tokens
    assert accepted == {range(0): made.drafted_tokens, range(99): 0}.get(wrong_at, accepted)


def test_nothing_is_drafted_after_an_end_token(agreeable, tokenizer):
    """Later drafts would be wasted, which is most of the work of a short output."""
    free = speculate(agreeable, tokenizer, 5, 4)
    end = next(token for at, token in enumerate(free.output_ids) if at > 1)
    config = GenerationConfig(64, 5, 4, stop_token_ids=(end,))
    generator = TextGenerator(agreeable, tokenizer, "self_speculative", config, CAPACITY)
    drafts = []
    propose = LayerDrafter.propose

    def watched(self, *arguments):
        drafts.append(propose(self, *arguments))
        return drafts[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerDrafter, "propose", watched)
        made = generator.generate(PROMPT)
    assert made.output_ids == free.output_ids[: free.output_ids.index(end) + 1]
    assert any(end in draft.tokens_K.tolist() for draft in drafts)
    assert all(end not in draft.tokens_K.tolist()[:-1] for draft in drafts)
    assert made.rounds[-1][0] == len(drafts[-1].tokens_K) < 4
    assert made.steps["draft"].calls == made.drafted_tokens


def test_special_tokens_as_stop_words_are_stop_tokens(model, tokenizer):
    """They do not appear in the text, which is searched for stop words."""
    model.generation_config.eos_token_id = None
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    config = GenerationConfig(stop_words=("<end>", "x"))
    rule = TextGenerator(model, tokenizer, "autoregressive", config, 32).strategy.stop_rule
    assert rule.reason([1, END]) == "stop_token"
    assert rule.reason(tokenizer("ax")["input_ids"]) == "stop_word"


def test_steps_are_timed_with_their_choice_of_a_token(agreeable, tokenizer, monkeypatch):
    """Ratios of draft, verify and full steps need the same unit."""
    config = GenerationConfig(8, 2, 3, SamplingRule(True))
    generator = TextGenerator(agreeable, tokenizer, "self_speculative", config, CAPACITY)
    generator.generate(PROMPT)
    picked = []
    ordinary = SamplingRule.pick

    def watched(self, *arguments):
        picked.append(arguments)
        return ordinary(self, *arguments)

    monkeypatch.setattr(SamplingRule, "pick", watched)
    assert generator.time_full_step(1, repeats=3).calls == len(picked) == 3


def test_drafts_obey_the_ngram_rule(agreeable, tokenizer):
    """A drafter without the rule would propose tokens that the verifier must reject."""
    rule = SamplingRule(no_repeat_ngram_size=1)
    config = GenerationConfig(40, 5, 4, rule)
    generator = TextGenerator(agreeable, tokenizer, "self_speculative", config, CAPACITY)
    engine, drafter_tokens = generator.engine, []
    ordinary = generator.strategy.round

    def watched(output):
        drafter = generator.strategy.drafter
        draft = drafter.propose(output.tokens, 4)
        drafter_tokens.append([*output.tokens, *draft.tokens_K.tolist()])
        engine.rollback(engine.length)
        return ordinary(output)

    generator.strategy.round = watched
    generator.generate(list(range(20)))
    assert drafter_tokens
    assert all(len(set(tokens)) == len(tokens) for tokens in drafter_tokens)


def test_an_empty_output_is_an_output(model, tokenizer):
    first = decode(model, tokenizer).output_ids[0]
    for strategy, exit_layer in [("autoregressive", None), ("self_speculative", 2)]:
        made = decode(model, tokenizer, strategy, exit_layer, 4, stop_token_ids=(first,))
        assert (made.output_ids, made.text, made.stop_reason) == ([first], "", "stop_token")


def test_the_models_own_end_tokens_all_count(model, tokenizer):
    model.generation_config.eos_token_id = [7, 9]
    assert end_token_ids(model, tokenizer) == {7, 9, END}
    model.generation_config.eos_token_id = None
    assert end_token_ids(model, tokenizer) == {END}


def test_the_same_seed_samples_the_same_tokens(agreeable, tokenizer):
    sampling = SamplingRule(True, 0.8, 0, 0.95)
    runs = [speculate(agreeable, tokenizer, 2, 4, sampling=sampling, seed=s) for s in (1, 1, 2)]
    assert runs[0].output_ids == runs[1].output_ids != runs[2].output_ids
