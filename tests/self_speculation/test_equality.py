"""The model's logits distinguish ties by rounding from real differences."""

import math

import torch

from self_speculation.equality import Difference, first_difference, ties_allowed, verdict
from tests.conftest import random_prompt

PROMPT = random_prompt(8)


def test_equal_outputs_have_no_difference(model):
    assert first_difference(model, PROMPT, [1, 2, 3], [1, 2, 3]) is None


def test_a_difference_carries_the_logit_gap(model):
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*PROMPT, 1, 2]])).logits[0, -1]
    found = first_difference(model, PROMPT, [1, 2, 3, 4], [1, 2, 9, 4])
    assert found.position == 2
    assert math.isclose(found.logit_gap, abs(logits[3] - logits[9]), rel_tol=1e-9)
    assert verdict(found, torch.float64) == verdict(found, torch.float32) == "wrong"
    assert verdict(found, torch.bfloat16) == verdict(found, torch.float16) == "different"


def test_tokens_with_equal_logits_tie(model):
    model.lm_head.weight[9] = model.lm_head.weight[3]
    found = first_difference(model, PROMPT, [1, 2, 3], [1, 2, 9])
    assert verdict(found, torch.float64) == verdict(found, torch.float32) == "tie"


def test_a_tie_in_float32_is_wrong_in_float64():
    assert verdict(Difference(0, 1e-4), torch.float32) == "tie"
    assert verdict(Difference(0, 1e-4), torch.float64) == "wrong"
    assert verdict(None, torch.bfloat16) == "equal"


def test_an_output_that_ends_early_is_no_tie(model):
    found = first_difference(model, PROMPT, [1, 2], [1, 2, 3])
    assert found == Difference(2, math.inf)
    assert verdict(found, torch.float32) == "wrong"


def test_ties_have_a_budget():
    assert [ties_allowed(tokens) for tokens in (64, 10_000, 50_000)] == [1, 1, 5]
