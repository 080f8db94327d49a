"""Sampled sequences against the verifier's law: what is lossless passes, what is not is found."""

import itertools
from collections import Counter

import pytest
import torch
from self_speculation.law import LENGTH, ChiSquare, chi_square, sampled_law

from self_speculation import law as law_module
from self_speculation import sampling as sampling_module
from self_speculation import self_speculation_generator
from self_speculation.generator_base import GenerationConfig
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator
from tests.conftest import END, random_prompt

PROMPT = random_prompt(8)


@pytest.fixture
def strategy(model, tokenizer):
    def make(rule=None, stop_token_ids=(), k=3):
        rule = rule or SamplingRule(True, temperature=0.6, top_k=4)
        config = GenerationConfig(24, 2, k, rule, stop_token_ids=stop_token_ids)
        return TextGenerator(model, tokenizer, "self_speculative", config, 64).strategy

    return make


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def first_token(strategy):
    """The one that a generator of this seed draws."""
    logits = strategy.engine.forward(strategy.column(PROMPT))
    strategy.engine.reset()
    return int(strategy.config.sampling.pick(logits, PROMPT, seeded())[0])


def test_the_law_is_that_of_transformers_own_passes(model, strategy):
    tested = strategy()
    first = first_token(tested)
    _, law = sampled_law(tested, PROMPT, seeded(), draws=300)
    rule, total = tested.config.sampling, 0.0
    for sequence, probability in law.items():
        expected, tokens = 1.0, [*PROMPT, first]
        for token in sequence:
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1:]
            expected *= float(rule.probabilities(logits, tokens)[0, token])
            tokens.append(token)
        assert probability == pytest.approx(expected, rel=1e-5)
        assert probability >= law_module.LEAST_EXPECTED / 300
        total += probability
    assert len(law) > 5
    assert total <= 1 + 1e-6


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("rule", [{"top_k": 4}, {"top_p": 0.7}, {"no_repeat_ngram_size": 1}])
def test_speculation_passes(strategy, rule, k):
    tested = strategy(SamplingRule(True, **{"temperature": 0.4, **rule}), k=k)
    observed, law = sampled_law(tested, PROMPT, seeded(), draws=400)
    assert observed.total() == 400
    found = chi_square(observed, law)
    assert found.degrees_of_freedom > 3
    assert found.p_value > law_module.ALPHA


def test_accepting_all_drafts_is_found(strategy, monkeypatch):
    def accept_all(draft_tokens, draft_probs, target_probs, generator):
        token = int(torch.multinomial(target_probs[-1], 1, generator=generator))
        return torch.tensor([len(draft_tokens), token])

    monkeypatch.setattr(self_speculation_generator, "accept", accept_all)
    observed, law = sampled_law(strategy(), PROMPT, seeded(), draws=400)
    assert chi_square(observed, law).p_value < 1e-9


@pytest.mark.parametrize("k", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_wrong_token_after_a_whole_draft_is_found(strategy, monkeypatch, k):
    """Drawn from the row before its own; rounds as long as what is compared would hide it."""
    ordinary = sampling_module.accept

    def accept(draft_tokens, draft_probs, target_probs, generator):
        accepted, token = ordinary(draft_tokens, draft_probs, target_probs, generator)
        if accepted == len(draft_tokens):
            token = int(torch.multinomial(target_probs[-2], 1, generator=generator))
        return torch.tensor([accepted, token])

    monkeypatch.setattr(self_speculation_generator, "accept", accept)
    tested = strategy(SamplingRule(True, temperature=2.0, top_k=4), k=k)
    observed, law = sampled_law(tested, PROMPT, seeded(), draws=800)
    assert chi_square(observed, law).p_value < 1e-6


def test_a_replacement_from_the_wrong_distribution_is_found(strategy, monkeypatch):
    """Drawn from p where it should be drawn from p less q, which only a joint law can tell."""
    monkeypatch.setattr("self_speculation.sampling._residual", lambda p_V, *_: p_V)
    observed, law = sampled_law(strategy(), PROMPT, seeded(), draws=800)
    assert chi_square(observed, law).p_value < 1e-6


def test_sequences_end_at_a_stop(strategy):
    _, law = sampled_law(strategy(), PROMPT, seeded(), draws=300)
    stop = max(law, key=law.get)[0]
    observed, law = sampled_law(strategy(stop_token_ids=(stop,)), PROMPT, seeded(), draws=300)
    lengths = {len(sequence) for sequence in law}
    assert 1 in lengths
    assert lengths <= set(range(1, LENGTH + 1))
    assert all((stop in s[:-1]) is False for s in itertools.chain(observed, law))
    assert chi_square(observed, law).p_value > law_module.ALPHA


def test_an_output_of_one_token_leaves_nothing_to_draw(strategy):
    first = first_token(strategy())
    assert sampled_law(strategy(stop_token_ids=(first,)), PROMPT, seeded(), 100) == (Counter(), {})
    assert first != END


def test_unlikely_sequences_share_a_bin():
    observed = Counter({(1,): 60, (2,): 30, (3,): 4, (4,): 6})
    found = chi_square(observed, {(1,): 0.6, (2,): 0.3})
    assert found.statistic == pytest.approx(0.0)
    assert found.degrees_of_freedom == 2
    assert found.p_value == pytest.approx(1.0)


def test_too_few_unlikely_sequences_are_tested_by_themselves():
    law = {(1,): 0.6, (2,): 0.36}  # the others are expected 4 times
    among_themselves = chi_square(Counter({(1,): 50, (2,): 50}), law)
    assert among_themselves.degrees_of_freedom == 1
    assert among_themselves.statistic == pytest.approx(100 * 1 / 15)
    assert among_themselves.p_value == pytest.approx(2 * 0.009823, abs=1e-5)
    assert chi_square(Counter({(1,): 60, (2,): 36, (3,): 4}), law).p_value == 1.0
    # 12 or more where 4 are expected: Poisson's tail, 0.000915.
    many = chi_square(Counter({(1,): 55, (2,): 33, (3,): 12}), law)
    assert many.statistic == pytest.approx(0.0)
    assert many.p_value == pytest.approx(2 * 0.000915, abs=1e-6)
    assert (many.rare_draws, many.rare_expected) == (12, pytest.approx(4))


def test_what_the_law_forbids_is_found():
    assert chi_square(Counter({(1,): 1200, (3,): 800}), {(1,): 0.6, (2,): 0.4}).p_value < 1e-9
    assert chi_square(Counter({(2,): 2000}), {(1,): 1.0}).p_value < 1e-9
    assert chi_square(Counter({(1,): 1999, (2,): 1}), {(1,): 1.0}).p_value < 0.01


def test_one_possible_sequence_is_no_choice():
    found = chi_square(Counter({(1,): 100}), {(1,): 1.0})
    assert found == ChiSquare(0.0, 0, None, rare_draws=0, rare_expected=pytest.approx(1e-4))
    assert chi_square(Counter({(1,): 60, (2,): 40}), {}) == ChiSquare(0.0, 0, None)
