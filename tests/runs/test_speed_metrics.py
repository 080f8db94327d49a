"""Seconds and rates equal values that were worked out by hand."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.metrics import summarize
from runs.speed_metrics import predicted_speedup, spread
from tests.runs.test_metrics import sample


def test_speed_leaves_the_prefill_and_its_token_out():
    summary = summarize([sample(tokens=5, decode=2.0), sample(tokens=9, decode=1.0)])
    assert summary["time_per_token"]["mean"] == pytest.approx((2 / 4 + 1 / 8) / 2)
    assert summary["tokens_per_second"]["mean"] == pytest.approx((4 / 2 + 8 / 1) / 2)
    assert summary["tokens_per_second"]["token_weighted"] == pytest.approx(12 / 3)
    assert summary["total_time"]["mean"] == pytest.approx((2.5 + 1.5) / 2)


def test_one_token_outputs_have_no_speed_but_count_in_time():
    summary = summarize([sample(tokens=1, decode=0.0)])
    assert summary["tokens_per_second"] == {
        "mean": None,
        "median": None,
        "p95": None,
        "standard_deviation": None,
        "token_weighted": None,
    }
    assert summary["total_time"]["mean"] == 0.5


TIMED = {
    "steps": {"draft": {"calls": 8, "seconds": 0.8}, "verify": {"calls": 2, "seconds": 0.4}},
    "full_step": {"calls": 2, "seconds": 0.4},
}


def test_plain_decoding_has_no_acceptance_and_no_speedup():
    summary = summarize([sample(steps={"full": {"calls": 4, "seconds": 0.8}})])
    assert set(summary["acceptance_rate"].values()) == {None}
    assert set(summary["speedup_over_full_steps"].values()) == {None}
    assert summary["step_seconds"] == {
        "draft": None,
        "verify": None,
        "full": pytest.approx(0.2),
        "early_exit": None,
    }


def test_no_draft_at_all_divides_by_nothing():
    """One-token outputs leave nothing to draft."""
    summary = summarize([sample(tokens=1, decode=0.0)])
    assert summary["acceptance_rate"]["mean"] is None
    assert summary["counts"]["drafted_tokens"] == 0


def test_predicted_and_measured_speedup_by_hand():
    # Two rounds of 4 drafts, 6 accepted: 1 + 8 tokens. A draft step takes 0.1 s, a verify pass and
    # a full step 0.2 s each: k = 4, r = 3/4, c = 1/2, v = 1.
    made = sample(tokens=9, rounds=[(4, 4), (4, 2)], decode=1.25, **TIMED)
    summary = summarize([made])
    assert summary["step_seconds"]["draft"] == pytest.approx(0.1)
    speedup = summary["speedup_over_full_steps"]
    assert speedup["predicted"] == pytest.approx((4 * 0.75 + 1) / (4 * 0.5 + 1))
    assert speedup["measured"] == pytest.approx(8 * 0.2 / 1.25)
    assert summary["round_overhead"] == pytest.approx(1.25 / 1.2 - 1)
    counts = summary["counts"]
    assert (counts["draft_steps"], counts["verify_passes"], counts["full_steps"]) == (8, 2, 0)


def test_full_steps_of_a_speculative_run_are_those_of_the_yardstick():
    """A last token that the strategy decodes without a draft is not a full step to compare with."""
    steps = TIMED["steps"] | {"full": {"calls": 1, "seconds": 9.0}}
    made = sample(tokens=9, rounds=[(4, 4), (4, 2)], **TIMED | {"steps": steps})
    assert summarize([made])["step_seconds"]["full"] == pytest.approx(0.2)


def test_late_exit_layers_cannot_pay():
    """With exit layer 30 of 32, six drafts that are all accepted give less than 1.06x."""
    assert predicted_speedup(k=6, r=1.0, c=30 / 32, v=1.0) < 1.06


def speculative(**changes):
    steps = {
        "draft": {"calls": 6, "seconds": 0.3},
        "verify": {"calls": 2, "seconds": 0.4},
    }
    values = {"steps": steps, "full_step": {"calls": 2, "seconds": 0.3}}
    return sample(**{"rounds": [(3, 1), (3, 2)]} | values | changes)


def test_seconds_of_other_threads_are_not_averaged():
    slow = [speculative(index=index, threads=1, decode_seconds=9.0) for index in range(2)]
    fast = [speculative(index=2 + index, threads=4, decode_seconds=1.0) for index in range(3)]
    found = summarize(slow + fast)
    alone = summarize(fast)
    assert found["timed"] == {"ranks": 1, "threads": 4, "prompts": 3, "passes": 1}
    for key in ("tokens_per_second", "time_per_token", "decode_seconds", "step_seconds"):
        assert found[key] == alone[key]
    assert found["counts"]["prompts"] == 5
    assert found["counts"]["drafted_tokens"] == 5 * slow[0].drafted_tokens


def test_the_bound_is_the_prediction_with_every_draft_accepted():
    found = summarize([speculative()])["speedup_over_full_steps"]
    everything = speculative(rounds=[(k, k) for k, _ in speculative().rounds])
    assert found["bound"] == summarize([everything])["speedup_over_full_steps"]["predicted"]
    assert found["predicted"] < found["bound"]


def test_the_first_token_comes_with_the_prefill():
    samples = [sample(prefill_seconds=seconds) for seconds in (0.1, 0.2, 0.6)]
    found = summarize(samples)["time_to_first_token"]
    assert (found["mean"], found["median"]) == pytest.approx((0.3, 0.2))
    assert found["p95"] == pytest.approx(0.2 + 0.9 * 0.4)


def test_the_time_per_token_of_a_prompt_is_one_value_of_its_percentile():
    """A prompt counts once, however many tokens it has."""
    samples = [sample(tokens=2, decode=2.0), sample(tokens=101, decode=100.0)]
    found = summarize(samples)["time_per_token"]
    assert (found["median"], found["p95"]) == pytest.approx((1.5, 1.95))


def test_examples_without_seconds_of_their_own_count_in_no_speed():
    """Such as examples that were decoded together."""
    of_a_batch = sample(index=1, prefill_seconds=None, decode_seconds=None)
    found, alone = summarize([sample(), of_a_batch]), summarize([sample()])
    assert found["timed"] == alone["timed"]
    assert found["total_time"] == alone["total_time"]
    assert found["counts"]["generated_tokens"] == 2 * alone["counts"]["generated_tokens"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2))
def test_percentiles_interpolate_as_the_standard_library_does(values):
    found = spread(values)
    expected = statistics.quantiles(values, n=20, method="inclusive")[-1]
    assert found["p95"] == pytest.approx(expected)
    assert found["median"] == pytest.approx(statistics.median(values))


def test_the_spread_of_one_value_has_no_deviation():
    assert spread([2.0]) == {"mean": 2, "median": 2, "p95": 2, "standard_deviation": None}
    assert set(spread([]).values()) == {None}
