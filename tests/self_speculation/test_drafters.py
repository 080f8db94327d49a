"""Every drafter, with every option, leaves the output what it is without drafts."""

import itertools

import pytest
import torch

from self_speculation.distribution import ALPHA, chi_square, sample_sequences
from self_speculation.drafter import Drafting
from self_speculation.drafters import DRAFTERS
from self_speculation.generator_base import GenerationConfig
from self_speculation.layer_drafter import LayerDrafter
from self_speculation.sampling import Noise, SamplingRule
from self_speculation.text_generator import TextGenerator
from tests.conftest import END, VOCABULARY, random_prompt

CAPACITY = 128
PROMPT = random_prompt(20)
FEW = tuple(range(0, VOCABULARY, 3))

DRAFTINGS = {
    "lookup": Drafting("lookup"),
    "lookup, history": Drafting("lookup", history=True),
    "lookup, adaptive": Drafting("lookup", adaptive=True, never_slower=True),
    "recycling": Drafting("recycling"),
    "recycling, history": Drafting("recycling", history=True, never_slower=True),
    "hybrid": Drafting("hybrid", other="recycling"),
    "hybrid, adaptive": Drafting("hybrid", other="recycling", least_match=4, adaptive=True),
    "hybrid, layers": Drafting("hybrid", other="early_exit", threshold=0.3, vocabulary=FEW),
    "layers, vocabulary": Drafting(vocabulary=FEW),
    "layers, confidence": Drafting(threshold=0.5),
    "layers, adaptive": Drafting(adaptive=True),
    "layers, gate": Drafting(never_slower=True, vocabulary=FEW),
    "pruned, adaptive": Drafting("pruned", adaptive=True, never_slower=True),
    "hybrid, pruned": Drafting("hybrid", other="pruned", threshold=0.3),
}
# Sampled drafts with probabilities, whose tokens are other draws of the same distribution.
WITH_PROBABILITIES = {
    name
    for name, drafting in DRAFTINGS.items()
    if drafting.drafts_with_layers and not drafting.differs
}
RULES = {
    "greedy": SamplingRule(),
    "n-gram": SamplingRule(no_repeat_ngram_size=3),
    "sampled": SamplingRule(True, 0.8, 0, 0.9),
    "sampled, n-gram": SamplingRule(True, 0.7, 20, no_repeat_ngram_size=2),
}


def config_of(model, drafting, k, **changes):
    """Return a configuration whose drafter has layers if it needs some."""
    layers = DRAFTERS[drafting.other or drafting.drafter].layers
    if layers == "plan":
        changes["draft_layers"] = tuple(model.model.layers[index] for index in (0, 1, 3))
    exit_layer = 2 if layers == "exit_layer" else None
    return GenerationConfig(
        **{"max_steps": 64} | changes,
        kept_exit_layer=exit_layer,
        num_speculations=k,
        drafting=drafting,
    )


def speculate(model, tokenizer, drafting, k=4, **changes):
    config = config_of(model, drafting, k, **changes)
    return TextGenerator(model, tokenizer, "self_speculative", config, CAPACITY)


def plain(model, tokenizer, **changes):
    config = GenerationConfig(**{"max_steps": 64} | changes)
    return TextGenerator(model, tokenizer, "autoregressive", config, CAPACITY)


def check_equal(one, other):
    assert one.output_ids == other.output_ids
    assert (one.text, one.stop_reason) == (other.text, other.stop_reason)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        (name, rule)
        for name, rule in itertools.product(DRAFTINGS, RULES)
        if not (RULES[rule].sample and name in WITH_PROBABILITIES)
    ],
)
def test_drafts_leave_the_output_as_it_is(agreeable, tokenizer, name, rule):
    """Sampled outputs too are equal token for token, unless drafts have probabilities."""
    sampling = RULES[rule]
    expected = plain(agreeable, tokenizer, sampling=sampling)
    wanted = expected.generate(PROMPT, 1)
    stop = wanted.text[len(wanted.text) // 2 :][:2]
    for k, words in ((1, (stop, "never")), (8, ()), (3, (stop,))):
        changes = {"sampling": sampling, "stop_words": words, "max_steps": 40}
        found = speculate(agreeable, tokenizer, DRAFTINGS[name], k, **changes)
        if k == 3:
            found.warm_up(PROMPT)  # estimates and earlier answers change no token
            found.generate(random_prompt(9, seed=4))
        expected = plain(agreeable, tokenizer, **changes)
        check_equal(found.generate(PROMPT, 1), expected.generate(PROMPT, 1))


@pytest.mark.parametrize("name", DRAFTINGS)
def test_drafts_are_made_and_accepted(agreeable, tokenizer, name):
    """Otherwise equality would show nothing. The model repeats itself, as greedy models do."""
    made = speculate(agreeable, tokenizer, DRAFTINGS[name]).generate(PROMPT)
    assert 0 < made.accepted_tokens <= made.drafted_tokens
    assert len(made.drafters) == len(made.rounds)
    pairs = zip(made.rounds, made.drafters, strict=True)
    assert all(bool(drafted) == bool(by) for (drafted, _), by in pairs)
    known = {DRAFTINGS[name].drafter, "lookup", DRAFTINGS[name].other, ""}
    assert set(made.drafters) <= known
    assert sum(accepted + 1 for _, accepted in made.rounds) >= len(made.output_ids) - 2


@pytest.mark.parametrize(
    "drafting",
    [
        Drafting(vocabulary=tuple(range(0, VOCABULARY, 2))),
        Drafting(threshold=0.4),
        Drafting("hybrid", other="early_exit", least_match=1),
        Drafting(adaptive=True, never_slower=True),
        Drafting("lookup", history=True),
        Drafting("recycling"),
    ],
    ids=str,
)
def test_sampled_tokens_follow_the_verifiers_distribution(agreeable, tokenizer, drafting):
    rule = SamplingRule(True, temperature=0.5, top_k=4)
    tested = speculate(agreeable, tokenizer, drafting, 3, sampling=rule).strategy
    generator = torch.Generator().manual_seed(5)
    observed, expected = sample_sequences(tested, PROMPT, generator, 250)
    found = chi_square(observed, expected)
    assert found.degrees_of_freedom >= 3
    assert found.p_value > ALPHA


def test_a_draft_vocabulary_bounds_what_layers_propose(agreeable, tokenizer, monkeypatch):
    drafted = []
    propose = LayerDrafter.propose

    def watched(self, tokens, count):
        draft = propose(self, tokens, count)
        drafted.extend(draft.tokens_K.tolist())
        return draft

    monkeypatch.setattr(LayerDrafter, "propose", watched)
    for rule in (SamplingRule(), SamplingRule(True, 2.0)):
        speculate(agreeable, tokenizer, Drafting(vocabulary=FEW), sampling=rule).generate(PROMPT)
    assert drafted
    assert set(drafted) <= set(FEW)
    assert len(set(drafted)) > 3


def test_a_vocabulary_of_all_tokens_changes_no_draft(agreeable, tokenizer):
    everything = Drafting(vocabulary=tuple(range(VOCABULARY)))
    one = speculate(agreeable, tokenizer, everything).generate(PROMPT)
    assert one.rounds == speculate(agreeable, tokenizer, Drafting()).generate(PROMPT).rounds


def test_a_vocabulary_whose_only_token_is_banned_drafts_in_vain(agreeable, tokenizer):
    """All logits are -inf then, and the probabilities not numbers."""
    for sample in (False, True):
        rule = SamplingRule(sample, no_repeat_ngram_size=1)
        only = Drafting(vocabulary=(PROMPT[0],))
        made = speculate(agreeable, tokenizer, only, sampling=rule).generate(PROMPT)
        assert made.accepted_tokens == 0
        assert len(set(made.output_ids)) == len(made.output_ids)


def test_a_threshold_ends_a_draft_after_the_unlikely_token(agreeable, tokenizer):
    free = speculate(agreeable, tokenizer, Drafting(), 8).generate(PROMPT)
    cautious = speculate(agreeable, tokenizer, Drafting(threshold=0.9), 8).generate(PROMPT)
    assert cautious.output_ids == free.output_ids
    assert cautious.drafted_tokens < free.drafted_tokens
    assert min(drafted for drafted, _ in cautious.rounds) == 1
    rate = cautious.accepted_tokens / cautious.drafted_tokens
    assert rate > free.accepted_tokens / free.drafted_tokens


def test_history_speeds_up_an_answer_that_was_given_before(agreeable, tokenizer):
    for name in ("lookup", "recycling", "hybrid"):
        other = "recycling" if name == "hybrid" else None
        decoder = speculate(agreeable, tokenizer, Drafting(name, other, history=True), 8)
        decoder.warm_up(PROMPT)
        first, second = decoder.generate(PROMPT), decoder.generate(PROMPT)
        assert second.output_ids == first.output_ids
        assert second.accepted_tokens > first.accepted_tokens
        assert (first.earlier_answers, second.earlier_answers) == (0, 1)
    alone = speculate(agreeable, tokenizer, Drafting("lookup"), 8)
    first, second = alone.generate(PROMPT), alone.generate(PROMPT)
    assert second.rounds == first.rounds
    assert second.earlier_answers is None


def test_a_sampled_output_does_not_depend_on_earlier_answers(agreeable, tokenizer):
    """Resuming a run, or sharing it between processes, changes which answers are earlier ones."""
    sampling = SamplingRule(True, 0.9)
    for drafting in (
        Drafting("lookup", history=True),
        Drafting("hybrid", "recycling", history=True),
        Drafting("hybrid", "early_exit", history=True),
    ):
        one, other = (
            speculate(agreeable, tokenizer, drafting, 4, sampling=sampling) for _ in range(2)
        )
        for prompt in (random_prompt(9, seed=4), PROMPT):
            other.generate(prompt, 3)
        check_equal(one.generate(PROMPT, 8), other.generate(PROMPT, 8))


def test_recycled_successors_are_the_verifiers(agreeable, tokenizer):
    """Also those of tokens that were drafted and rejected."""
    decoder = speculate(agreeable, tokenizer, Drafting("recycling"))
    drafter, seen = decoder.strategy.drafter, []
    learn = drafter.learn

    def watched(block_ids, successors):
        seen.append((block_ids, successors))
        learn(block_ids, successors)

    drafter.learn = watched
    made = decoder.generate(PROMPT)
    rounds = list(zip(seen, made.rounds, strict=False))  # the last step drafts nothing
    assert any(len(block_ids) > accepted + 1 for (block_ids, _), (_, accepted) in rounds)
    output = [*PROMPT, *made.output_ids]
    place = len(PROMPT)
    for (block_ids, successors), (_, accepted) in rounds:
        assert block_ids[: accepted + 1] == output[place : place + accepted + 1]
        known = successors[: accepted + 1]
        assert known == output[place + 1 : place + 1 + len(known)][: len(known)]
        place += accepted + 1


def test_a_hybrid_asks_the_other_drafter_below_its_least_match(agreeable, tokenizer):
    def by(least):
        drafting = Drafting("hybrid", "early_exit", least_match=least)
        return speculate(agreeable, tokenizer, drafting).generate(PROMPT).drafters

    assert {"lookup", "early_exit"} <= set(by(2))
    assert "lookup" not in by(1000)
    assert by(1).count("lookup") > by(2).count("lookup")


def test_a_warm_up_goes_on_behind_end_tokens(model, tokenizer):
    """An end token then has a successor, which may be an end token again."""
    model.lm_head.weight[END] *= 100
    for drafting in (
        Drafting("recycling", never_slower=True),
        Drafting("hybrid", "recycling", least_match=90, adaptive=True),
    ):
        decoder = speculate(model, tokenizer, drafting, 3)
        made = decoder.warm_up(PROMPT)
        assert made.output_ids.count(END) > 8
        assert made.drafted_tokens
        check_equal(decoder.generate(PROMPT), plain(model, tokenizer).generate(PROMPT))


def test_noise_of_positions_that_no_token_needed_is_never_drawn():
    generator = torch.Generator().manual_seed(3)
    noise, like_V = Noise(generator), torch.ones(4)
    first = noise.row(0, like_V)
    noise.forget(before=1000)
    second = noise.row(1000, like_V)
    generator.manual_seed(3)
    drawn = [torch.empty(4).exponential_(1, generator=generator) for _ in range(2)]
    assert torch.equal(torch.stack([first, second]), torch.stack(drawn))
    with pytest.raises(AssertionError, match="forgotten"):
        noise.row(999, like_V)


def test_a_quantised_head_has_no_draft_vocabulary(model, tokenizer):
    class Quantised(torch.nn.Linear):
        pass

    model.lm_head.__class__ = Quantised
    with pytest.raises(ValueError, match="the rows of a head of class Quantised cannot be read"):
        speculate(model, tokenizer, Drafting(vocabulary=FEW))
