"""Intervals cover the truth as often as they promise, and resample pairs together."""

import numpy
import pytest
from scipy import stats

from analysis import intervals
from analysis.intervals import (
    Interval,
    mean_intervals,
    quotient_interval,
    ratio_interval,
    share_change_interval,
    share_interval,
)

TRIALS = 1000


def ratio(parts):
    """Return the interval of a ratio over examples that were timed once."""
    return ratio_interval(numpy.array(parts, dtype=float)[:, None])


def covered(found, truth):
    return numpy.mean([one.low <= truth <= one.high for one in found])


@pytest.mark.parametrize(("examples", "least"), [(5, 0.89), (10, 0.93), (20, 0.93), (100, 0.93)])
def test_intervals_of_a_mean_cover_it_nineteen_times_in_twenty(examples, least):
    """Percentiles of the bootstrap, which were used once, cover it in 83 % with 5 examples."""
    values = numpy.random.default_rng(1).normal(3, 2, size=(examples, TRIALS))
    assert least <= covered(mean_intervals(values), 3) <= 0.97


def test_bounds_are_scipys_at_the_wider_level():
    generator = numpy.random.default_rng(5)
    values = generator.lognormal(size=(30, 2)) ** [1, -1]
    level = stats.norm.cdf(stats.t.ppf(0.975, 29) * (30 / 29) ** 0.5)
    drawn = intervals._resampled_sums(values) / 30
    for column, interval in enumerate(mean_intervals(values)):
        expected = stats.bootstrap(
            (values[:, column],),
            numpy.mean,
            n_resamples=0,
            confidence_level=2 * level - 1,
            method="BCa",
            bootstrap_result=type("Drawn", (), {"bootstrap_distribution": drawn[:, column]}),
        ).confidence_interval
        assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-9)


def test_bounds_of_a_ratio_are_scipys_at_the_wider_level():
    generator = numpy.random.default_rng(6)
    tokens, seconds = generator.lognormal(3, 1, size=40), generator.lognormal(0, 0.5, size=40)
    drawn = intervals._resampled_sums(numpy.stack([tokens, seconds], axis=1))
    expected = stats.bootstrap(
        (tokens, seconds),
        lambda a, b, axis=-1: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        n_resamples=0,
        confidence_level=2 * stats.norm.cdf(stats.t.ppf(0.975, 39) * (40 / 39) ** 0.5) - 1,
        method="BCa",
        bootstrap_result=type("Drawn", (), {"bootstrap_distribution": drawn[:, 0] / drawn[:, 1]}),
    ).confidence_interval
    for interval in (
        ratio(numpy.stack([tokens, seconds], axis=1)),
        quotient_interval(tokens, seconds),
    ):
        assert interval.value == pytest.approx(tokens.sum() / seconds.sum())
        assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-9)


def test_a_quotient_may_be_zero_or_below():
    """Such as nats that a plan loses, per token."""
    generator = numpy.random.default_rng(7)
    tokens = generator.integers(20, 100, size=30)
    nothing = quotient_interval(numpy.zeros(30), tokens)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    gained = quotient_interval(tokens * generator.normal(-0.5, 0.1, size=30), tokens)
    assert gained.low < gained.value < gained.high < 0
    assert quotient_interval(numpy.array([3.0]), numpy.array([2])) == Interval(1.5)


def test_shares_have_an_interval_where_all_examples_are_alike():
    """Wilson's for 0 of 10: 0 to z**2 / (10 + z**2)."""
    nobody, everybody = share_interval(numpy.zeros(10)), share_interval(numpy.ones(10))
    assert (nobody.low, nobody.high) == (0, pytest.approx(0.2775, abs=1e-4))
    assert (everybody.low, everybody.high) == (pytest.approx(1 - nobody.high), 1)
    change = share_change_interval(numpy.zeros(10))
    assert change.low == -change.high == pytest.approx(-1.96 * (2 / 12 / 12) ** 0.5, abs=1e-4)
    assert share_interval(numpy.ones(1)) == share_change_interval(numpy.ones(1)) == Interval(1.0)


@pytest.mark.parametrize("examples", [5, 10, 20, 100])
@pytest.mark.parametrize(("up", "down"), [(0.05, 0.05), (0.3, 0.1), (0.0, 0.02)])
def test_intervals_of_shares_cover_them(examples, up, down):
    generator = numpy.random.default_rng(examples)
    draws = generator.random((TRIALS, examples))
    changes = (draws < up).astype(float) - (draws > 1 - down)
    assert covered(map(share_change_interval, changes), up - down) >= 0.93
    hits = (draws < up + down).astype(float)
    assert covered(map(share_interval, hits), up + down) >= 0.89


def test_drift_between_passes_lies_in_the_interval_and_cancels_in_a_ratio():
    generator = numpy.random.default_rng(2)
    drift_R = numpy.array([1.0, 1.3, 0.8, 1.1])  # of the machine, the same for both runs
    lengths_E1 = generator.uniform(20, 60, size=(30, 1))
    mine, its = (
        numpy.stack([lengths_E1 + 0 * drift_R, lengths_E1 / speed * drift_R], axis=2)
        for speed in (20, 10)
    )
    alone = ratio_interval(mine)
    once = ratio_interval(mine[:, :1])
    assert once.high - once.low < 1e-9 < 2 < alone.high - alone.low
    assert alone.low < 20 < alone.high
    speedup = ratio_interval(numpy.concatenate([mine, its], axis=2))
    assert (speedup.value, speedup.low, speedup.high) == pytest.approx((2, 2, 2))


def test_one_pass_has_the_interval_of_its_examples():
    parts = numpy.random.default_rng(3).uniform(1, 2, size=(20, 1, 4))
    equal = numpy.repeat(parts, 3, axis=1)
    once, thrice = ratio_interval(parts), ratio_interval(equal)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_intervals_over_examples_and_passes_cover_the_truth():
    """Tokens over seconds, with an effect of each example, of each pass, and of both."""
    generator = numpy.random.default_rng(4)
    found = []
    for _ in range(300):
        effects = generator.normal(0, 0.1, (15, 1)) + generator.normal(0, 0.1, (1, 5))
        seconds = numpy.exp(effects + generator.normal(0, 0.05, (15, 5)))
        found.append(ratio_interval(numpy.stack([numpy.ones((15, 5)), seconds], axis=2)))
    assert 0.85 <= covered(found, numpy.exp(-0.0225 / 2)) <= 0.99


def test_a_paired_difference_is_surer_than_the_two_means():
    generator = numpy.random.default_rng(2)
    hardness = generator.normal(0, 1, size=100)
    one, other = hardness + 0.1, hardness + generator.normal(0, 0.01, size=100)
    (paired,) = mean_intervals((one - other)[:, None])
    (alone,) = mean_intervals(one[:, None])
    assert paired.low > 0.09
    assert paired.high - paired.low < (alone.high - alone.low) / 20


@pytest.mark.parametrize("examples", [2, 3, 100])
def test_equal_values_have_a_mean_without_doubt(examples):
    (interval,) = mean_intervals(numpy.full((examples, 1), 0.1))
    assert (interval.low, interval.high) == pytest.approx((0.1, 0.1))


def test_a_speed_up_is_the_ratio_of_all_tokens_by_all_seconds():
    # 10 + 30 tokens in 1 + 1 s, against 10 + 10 tokens in 2 + 2 s.
    parts = numpy.array([[10.0, 1, 10, 2], [30, 1, 10, 2]])
    interval = ratio(parts)
    assert interval.value == pytest.approx(20 / 5)
    # Either example alone gives 10 / 5 and 30 / 5.
    assert (interval.low, interval.high) == (pytest.approx(2), pytest.approx(6))


def test_equal_seconds_have_no_doubt():
    parts = numpy.tile([4.0, 2, 6, 1], (9, 1))
    interval = ratio(parts)
    assert interval.value == pytest.approx(1 / 3)
    assert interval.low == pytest.approx(interval.high)


def test_one_example_has_an_estimate_and_no_bounds():
    assert mean_intervals(numpy.array([[0.5, 2.0]])) == [Interval(0.5), Interval(2.0)]
    assert ratio([[1.0, 2, 1, 4]]) == Interval(2.0)


def test_examples_that_decoded_nothing_have_no_speed():
    assert ratio([[0.0, 0.0, 5, 1], [0, 0, 5, 1]]) is None
    some = ratio([[0.0, 0.0, 5, 1], [4, 1, 5, 1]])
    assert some.value == pytest.approx(4 / 5)
    assert numpy.isfinite([some.low, some.high]).all()


def test_the_same_examples_give_the_same_interval():
    values = numpy.random.default_rng(3).normal(size=(50, 2))
    assert mean_intervals(values) == mean_intervals(values.copy())


def test_as_many_examples_as_a_whole_test_split_fit_into_memory():
    (interval,) = mean_intervals(numpy.random.default_rng(4).normal(size=(11490, 1)))
    assert interval.low < interval.value < interval.high
