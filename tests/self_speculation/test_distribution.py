"""The distribution test passes lossless speculation and detects broken acceptance rules."""

import itertools
from collections import Counter

import pytest
import torch

from pruned_model import PruneModel
from pruning.plan import PrunePlan
from self_speculation import distribution, self_speculation_generator
from self_speculation import sampling as sampling_module
from self_speculation.distribution import (
    ALPHA,
    LEAST_EXPECTED,
    LENGTH,
    ChiSquare,
    chi_square,
    sample_sequences,
)
from self_speculation.generator_base import GenerationConfig
from self_speculation.sampling import SamplingRule
from self_speculation.self_speculation_generator import SelfSpeculativeGenerationStrategy
from self_speculation.text_generator import TextGenerator
from tests.conftest import END, LAYERS, random_prompt

PROMPT = random_prompt(8)


@pytest.fixture
def strategy(model, tokenizer):
    """Make a strategy for the tiny Llama pruned to three layers, of which the first one drafts."""
    PruneModel(model, PrunePlan("test", LAYERS, (0, 3, 5))).prune()

    def make(rule=None, stop_token_ids=(), k=3):
        rule = rule or SamplingRule(True, temperature=0.6, top_k=4)
        config = GenerationConfig(24, 1, k, rule, stop_token_ids=stop_token_ids)
        return TextGenerator(model, tokenizer, "self_speculative", config, 64).strategy

    return make


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def first_token(strategy):
    """Return the first token that a generator of this seed draws."""
    logits = strategy.engine.forward(strategy.column(PROMPT))
    strategy.engine.reset()
    return int(strategy.config.sampling.pick(logits, PROMPT, seeded())[0])


def test_probabilities_are_those_of_transformers_own_passes(model, strategy, monkeypatch):
    monkeypatch.setattr(distribution, "_draw", lambda *_: ())  # only probabilities are compared
    tested = strategy()
    first = first_token(tested)
    _, found = sample_sequences(tested, PROMPT, seeded(), draws=300)
    rule = tested.config.sampling
    for sequence, probability in found.items():
        expected, tokens = 1.0, [*PROMPT, first]
        for token in sequence:
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1:]
            expected *= float(rule.probabilities(logits, tokens)[0, token])
            tokens.append(token)
        assert probability == pytest.approx(expected, rel=1e-5)
        assert probability >= LEAST_EXPECTED / 300
    assert len(found) > 5
    assert sum(found.values()) <= 1 + 1e-6


def is_passed(tested, draws=250):
    observed, expected = sample_sequences(tested, PROMPT, seeded(), draws)
    assert observed.total() == draws
    found = chi_square(observed, expected)
    assert found.degrees_of_freedom >= 3
    return found.p_value > ALPHA


@pytest.mark.parametrize(
    ("k", "rule"),
    [(1, {"top_k": 4}), (4, {"top_p": 0.7}), (4, {"no_repeat_ngram_size": 1})],
)
def test_speculation_passes(strategy, k, rule):
    assert is_passed(strategy(SamplingRule(True, **{"temperature": 0.4, **rule}), k=k))


def test_speculation_with_many_accepted_drafts_passes(agreeable, strategy):
    """Faint late layers change the drafts' distributions only a little."""
    tested = strategy(SamplingRule(True, 0.7, 4, 0.9))
    assert is_passed(tested)
    assert sum(accepted for _, accepted in tested.rounds) > 100


@pytest.mark.parametrize("drafting", [(0, 2), pytest.param((1, 2), marks=pytest.mark.slow), (2,)])
def test_speculation_by_any_layers_passes(model, tokenizer, drafting):
    """Layer 2 drafts with states of its own, which rounds extend, cut and catch up with."""
    PruneModel(model, PrunePlan("test", LAYERS, (0, 3, 5))).prune()
    for layer in model.model.layers[1:]:
        layer.self_attn.o_proj.weight *= 0.3
        layer.mlp.down_proj.weight *= 0.3
    layers = tuple(model.model.layers[index] for index in drafting)
    rule = SamplingRule(True, temperature=0.6, top_k=4)
    config = GenerationConfig(24, None, 3, rule, draft_layers=layers)
    tested = TextGenerator(model, tokenizer, "self_speculative", config, 64).strategy
    assert is_passed(tested)
    if 0 in drafting:  # other drafts are seldom accepted as a whole
        rounds = {(drafted, accepted == drafted) for drafted, accepted in tested.rounds}
        assert {(3, True), (3, False)} <= rounds


def test_speculation_with_certain_drafts_passes(strategy, monkeypatch):
    """A drafter without chance, as for tokens that are looked up, gives no distribution."""

    def certain(self, logits_1V, tokens, _):
        return SamplingRule().pick(logits_1V, tokens, self.generator)

    monkeypatch.setattr(SelfSpeculativeGenerationStrategy, "_pick", certain)
    assert is_passed(strategy())


def test_accepting_all_drafts_is_detected(strategy, monkeypatch):
    def accept_all(draft_tokens, draft_probs, target_probs, generator):
        token = int(torch.multinomial(target_probs[-1], 1, generator=generator))
        return torch.tensor([len(draft_tokens), token])

    monkeypatch.setattr(self_speculation_generator, "accept", accept_all)
    observed, expected = sample_sequences(strategy(), PROMPT, seeded(), draws=250)
    assert chi_square(observed, expected).p_value < 1e-9


@pytest.mark.parametrize("k", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_wrong_token_after_a_whole_draft_is_detected(strategy, monkeypatch, k):
    """The token comes from the row before; a comparison of whole rounds would not show it."""
    ordinary = sampling_module.accept

    def accept(draft_tokens, draft_probs, target_probs, generator):
        accepted, token = ordinary(draft_tokens, draft_probs, target_probs, generator)
        if accepted == len(draft_tokens):
            token = int(torch.multinomial(target_probs[-2], 1, generator=generator))
        return torch.tensor([accepted, token])

    monkeypatch.setattr(self_speculation_generator, "accept", accept)
    tested = strategy(SamplingRule(True, temperature=2.0, top_k=4), k=k)
    observed, expected = sample_sequences(tested, PROMPT, seeded(), draws=500)
    assert chi_square(observed, expected).p_value < 1e-6


def test_a_replacement_from_the_wrong_distribution_is_detected(strategy, monkeypatch):
    """The token comes from p instead of p - q, which only the joint distribution shows."""
    monkeypatch.setattr("self_speculation.sampling._residual", lambda p_V, *_: p_V)
    observed, expected = sample_sequences(strategy(), PROMPT, seeded(), draws=500)
    assert chi_square(observed, expected).p_value < 1e-6


def test_sequences_end_at_a_stop(strategy):
    _, expected = sample_sequences(strategy(), PROMPT, seeded(), draws=100)
    stop = max(expected, key=expected.get)[0]
    observed, expected = sample_sequences(
        strategy(stop_token_ids=(stop,)), PROMPT, seeded(), draws=300
    )
    lengths = {len(sequence) for sequence in expected}
    assert 1 in lengths
    assert lengths <= set(range(1, LENGTH + 1))
    assert all(stop not in sequence[:-1] for sequence in itertools.chain(observed, expected))
    assert chi_square(observed, expected).p_value > ALPHA


def test_an_output_of_one_token_leaves_nothing_to_draw(strategy):
    first = first_token(strategy())
    assert sample_sequences(strategy(stop_token_ids=(first,)), PROMPT, seeded(), 100) == (
        Counter(),
        {},
    )
    assert first != END


def test_unlikely_sequences_share_a_bin():
    observed = Counter({(1,): 60, (2,): 30, (3,): 4, (4,): 6})
    found = chi_square(observed, {(1,): 0.6, (2,): 0.3})
    assert found.statistic == pytest.approx(0.0)
    assert found.degrees_of_freedom == 2
    assert found.p_value == pytest.approx(1.0)


def test_too_few_unlikely_sequences_are_tested_separately():
    expected = {(1,): 0.6, (2,): 0.36}  # The others are expected 4 times.
    among_themselves = chi_square(Counter({(1,): 50, (2,): 50}), expected)
    assert among_themselves.degrees_of_freedom == 1
    assert among_themselves.statistic == pytest.approx(100 * 1 / 15)
    assert among_themselves.p_value == pytest.approx(2 * 0.009823, abs=1e-5)
    assert chi_square(Counter({(1,): 60, (2,): 36, (3,): 4}), expected).p_value == 1.0
    # The probability of 12 or more instead of 4 is 0.000915 (Poisson).
    many = chi_square(Counter({(1,): 55, (2,): 33, (3,): 12}), expected)
    assert many.statistic == pytest.approx(0.0)
    assert many.p_value == pytest.approx(2 * 0.000915, abs=1e-6)
    assert (many.rare_draws, many.rare_expected) == (12, pytest.approx(4))


def test_an_impossible_sequence_is_detected():
    assert chi_square(Counter({(1,): 1200, (3,): 800}), {(1,): 0.6, (2,): 0.4}).p_value < 1e-9
    assert chi_square(Counter({(2,): 2000}), {(1,): 1.0}).p_value < 1e-9
    assert chi_square(Counter({(1,): 1999, (2,): 1}), {(1,): 1.0}).p_value < 0.01


def test_one_possible_sequence_is_no_choice():
    found = chi_square(Counter({(1,): 100}), {(1,): 1.0})
    assert found == ChiSquare(0.0, 0, None, rare_draws=0, rare_expected=pytest.approx(1e-4))
    assert chi_square(Counter({(1,): 60, (2,): 40}), {}) == ChiSquare(0.0, 0, None)
