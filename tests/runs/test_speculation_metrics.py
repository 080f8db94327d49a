"""Acceptance equals values that were worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.metrics import summarize
from runs.speculation_metrics import acceptance_length, acceptance_rate
from tests.runs.test_metrics import sample
from tests.runs.test_speed_metrics import TIMED, speculative


def test_acceptance_by_token_and_by_prompt():
    samples = [sample(rounds=[(4, 4), (4, 2)], **TIMED), sample(rounds=[(2, 0)], **TIMED)]
    acceptance = summarize(samples)["acceptance_rate"]
    assert acceptance["mean"] == pytest.approx((6 / 8 + 0 / 2) / 2)
    assert acceptance["token_weighted"] == pytest.approx(6 / 10)


def test_acceptance_falls_with_the_draft_position():
    sample = speculative(rounds=[(3, 3), (3, 1), (3, 0), (2, 2), (0, 0)])
    found = summarize([sample])["acceptance_rate"]["by_position"]
    assert found == [3 / 4, 2 / 4, 1 / 3]
    assert summarize([])["acceptance_rate"]["by_position"] is None


def test_conditional_acceptance_counts_the_rounds_that_got_there():
    sample = speculative(rounds=[(3, 3), (3, 1), (3, 0), (2, 2)])
    found = summarize([sample])["acceptance_rate"]["conditional_by_position"]
    # Three of four rounds accept their first draft; two of these three also accept the second;
    # of these two, one drafted a third.
    assert found == [3 / 4, 2 / 3, 1 / 1]
    rejecting = summarize([speculative(rounds=[(3, 0), (3, 1)])])["acceptance_rate"]
    assert rejecting["by_position"] == [1 / 2, 0, 0]
    assert rejecting["conditional_by_position"] == [1 / 2, 0, None]
    assert summarize([])["acceptance_rate"]["conditional_by_position"] is None


def test_tokens_per_verification_by_hand():
    samples = [sample(rounds=[(4, 4), (4, 2)]), sample(rounds=[(2, 0)]), sample()]
    found = summarize(samples)["acceptance_length"]
    assert found["token_weighted"] == pytest.approx((5 + 3 + 1) / 3)
    assert found["mean"] == pytest.approx(((5 + 3) / 2 + 1) / 2)
    assert summarize([sample()])["acceptance_length"] == {"mean": None, "token_weighted": None}


_ROUNDS = st.integers(1, 6).flatmap(
    lambda length: st.lists(
        st.integers(0, length).map(lambda accepted: (length, accepted)), min_size=1, max_size=9
    )
)


@given(_ROUNDS)
def test_survival_is_the_product_of_conditional_shares_and_adds_up_to_the_length(rounds):
    """With drafts of one length."""
    done = [sample(rounds=rounds)]
    rates, survival = acceptance_rate(done), 1.0
    shares = zip(rates["by_position"], rates["conditional_by_position"], strict=True)
    for share, conditional in shares:
        survival *= conditional or 0
        assert share == pytest.approx(survival)
    length = acceptance_length(done)["token_weighted"]
    assert length == pytest.approx(1 + sum(rates["by_position"]))
