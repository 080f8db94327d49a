"""The sampling rule equals transformers' processors; examples have their own draws."""

import itertools

import pytest
import torch
from transformers import (
    NoRepeatNGramLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from self_speculation.sampling import (
    SamplingRule,
    accept,
    repeated_ngram_ends,
    seeded_generator,
)

CPU = torch.device("cpu")


def logits(rows=3, size=40, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=draws) * 3


@pytest.mark.parametrize("temperature", [0.3, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 1.0])
def test_distribution_is_that_of_transformers(temperature, top_k, top_p):
    expected = TemperatureLogitsWarper(temperature)(None, logits())
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    rule = SamplingRule(True, temperature, top_k, top_p)
    torch.testing.assert_close(rule.probabilities(logits(), []), expected.softmax(-1))


@pytest.mark.parametrize("top_p", [1e-50, 1e-9])
def test_the_likeliest_token_is_always_kept(top_p):
    probs = SamplingRule(True, 1.0, 0, top_p).probabilities(logits(), [])
    assert probs.argmax(-1).tolist() == logits().argmax(-1).tolist()
    assert probs.max(-1).values.tolist() == [1, 1, 1]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ngram_ban_is_that_of_transformers(size):
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 1, 4]
    scores = logits(rows=1)
    expected = NoRepeatNGramLogitsProcessor(size)(torch.tensor([tokens]), scores.clone())
    banned = set((expected[0] == -torch.inf).nonzero()[:, 0].tolist())
    assert set(repeated_ngram_ends(tokens, size)) == banned
    assert not banned & set(
        SamplingRule(True, no_repeat_ngram_size=size)
        .probabilities(scores, tokens)[0]
        .nonzero()[:, 0]
        .tolist()
    )


def test_ngram_ban_of_each_row_sees_only_what_precedes_it():
    tokens = [1, 2, 3, 1, 2]
    scores = torch.zeros(3, 5)
    probs = SamplingRule(True, no_repeat_ngram_size=2).probabilities(scores, tokens)
    # Rows follow [1, 2, 3], [1, 2, 3, 1] and all tokens; bigrams so far ban 2 after 1, 3 after 2.
    assert [(row == 0).nonzero()[:, 0].tolist() for row in probs] == [[], [2], [3]]


def test_greedy_distribution_is_one_hot_and_pick_agrees():
    rule = SamplingRule(sample=False)
    probs = rule.probabilities(logits(), [])
    assert probs.sum(-1).tolist() == [1, 1, 1]
    assert probs.argmax(-1).tolist() == logits().argmax(-1).tolist()
    token, drawn_from = rule.pick(logits(rows=1), [], torch.Generator())
    assert token.tolist() == [logits(rows=1).argmax()]
    assert drawn_from is None


def test_an_empty_residual_falls_back_to_the_verifier():
    p = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    q = torch.tensor([[0.25, 0.75]]) + 0.1  # p - q is nowhere positive, as by rounding
    generator = torch.Generator().manual_seed(1)
    outcomes = [accept(torch.tensor([0]), q, p, generator).tolist() for _ in range(60)]
    assert {token for accepted, token in outcomes if accepted == 0} == {0, 1}


def test_examples_draw_from_generators_of_their_own():
    keys = list(itertools.product([0, 1], ["a", "b"], ["generate", "other"]))
    draws = [torch.rand(1, generator=seeded_generator(CPU, *key)).item() for key in keys]
    again = [torch.rand(1, generator=seeded_generator(CPU, *key)).item() for key in keys]
    assert draws == again
    assert len(set(draws)) == len(keys)
