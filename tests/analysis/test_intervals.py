"""Bootstrap intervals cover the truth as often as they promise, and resample pairs together."""

import numpy
import pytest

from analysis.intervals import Interval, mean_intervals, ratio_interval


def test_intervals_of_a_mean_cover_it_nineteen_times_in_twenty():
    generator = numpy.random.default_rng(1)
    trials, covered = 200, 0
    for _ in range(trials):
        (interval,) = mean_intervals(generator.normal(3, 2, size=(60, 1)))
        covered += interval.low <= 3 <= interval.high
    assert 0.89 <= covered / trials <= 0.99


def test_a_paired_difference_is_surer_than_the_two_means():
    generator = numpy.random.default_rng(2)
    hardness = generator.normal(0, 1, size=100)
    one, other = hardness + 0.1, hardness + generator.normal(0, 0.01, size=100)
    (paired,) = mean_intervals((one - other)[:, None])
    (alone,) = mean_intervals(one[:, None])
    assert paired.low > 0.09
    assert paired.high - paired.low < (alone.high - alone.low) / 20


def test_a_speed_up_is_the_ratio_of_all_tokens_by_all_seconds():
    # 10 + 30 tokens in 1 + 1 s, against 10 + 10 tokens in 2 + 2 s.
    parts = numpy.array([[10.0, 1, 10, 2], [30, 1, 10, 2]])
    interval = ratio_interval(parts)
    assert interval.value == pytest.approx(20 / 5)
    # Either example alone gives 10 / 5 and 30 / 5.
    assert (interval.low, interval.high) == (pytest.approx(2), pytest.approx(6))


def test_equal_seconds_have_no_doubt():
    parts = numpy.tile([4.0, 2, 6, 1], (9, 1))
    interval = ratio_interval(parts)
    assert interval.value == pytest.approx(1 / 3)
    assert interval.low == pytest.approx(interval.high)


def test_one_example_has_an_estimate_and_no_bounds():
    assert mean_intervals(numpy.array([[0.5, 2.0]])) == [Interval(0.5), Interval(2.0)]
    assert ratio_interval(numpy.array([[1.0, 2, 1, 4]])) == Interval(2.0)


def test_examples_that_decoded_nothing_have_no_speed():
    assert ratio_interval(numpy.array([[0.0, 0.0, 5, 1], [0, 0, 5, 1]])) is None
    some = ratio_interval(numpy.array([[0.0, 0.0, 5, 1], [4, 1, 5, 1]]))
    assert some.value == pytest.approx(4 / 5)
    assert numpy.isfinite([some.low, some.high]).all()


def test_the_same_examples_give_the_same_interval():
    values = numpy.random.default_rng(3).normal(size=(50, 2))
    assert mean_intervals(values) == mean_intervals(values.copy())


def test_as_many_examples_as_a_whole_test_split_fit_into_memory():
    (interval,) = mean_intervals(numpy.random.default_rng(4).normal(size=(11490, 1)))
    assert interval.low < interval.value < interval.high
