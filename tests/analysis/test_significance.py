"""Tests of difference: equal runs are told apart as rarely as promised, unequal ones are found."""

import tracemalloc

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.significance import (
    FEWEST,
    detectable_mean_change,
    detectable_share_change,
    holm,
    mcnemar_p,
    sign_flip_p,
)

TRIALS = 1000
SIZES = [5, 20, 100]


def mcnemar_of(changes_EC):
    return mcnemar_p((changes_EC > 0).sum(axis=0), (changes_EC < 0).sum(axis=0))


def binary_changes(generator, size, base, pruned):
    """Paired 0/1 scores of runs that share the prompts' hardness."""
    hardness = generator.normal(0, 0.15, size=size)
    draws = generator.random((2, *size))
    return (draws[1] < pruned + hardness).astype(float) - (draws[0] < base + hardness)


def skewed_changes(generator, size, shift=0.0):
    """Paired scores with a long tail and many zeros, as edit distances or ROUGE-3."""
    hardness = generator.lognormal(0, 1, size=size)
    draws = generator.lognormal(0, 1, size=(2, *size)) * (generator.random((2, *size)) < 0.7)
    return hardness * (draws[1] + shift - draws[0])


@pytest.mark.parametrize("examples", SIZES)
def test_equal_runs_are_told_apart_in_at_most_6_percent(examples):
    generator = numpy.random.default_rng(examples)
    size = (examples, TRIALS)
    for p in (
        mcnemar_of(binary_changes(generator, size, 0.3, 0.3)),
        sign_flip_p(skewed_changes(generator, size)),
        sign_flip_p(generator.beta(0.5, 2, size=size) - generator.beta(0.5, 2, size=size)),
    ):
        assert (p <= 0.05).mean() <= 0.06


@pytest.mark.parametrize("examples", [20, 100])
def test_the_test_of_means_is_not_needlessly_careful(examples):
    generator = numpy.random.default_rng(7)
    p = sign_flip_p(generator.normal(0, 1, size=(examples, TRIALS)))
    assert (p <= 0.05).mean() >= 0.04


def test_a_real_difference_is_found():
    generator = numpy.random.default_rng(1)
    size = (100, 200)
    assert (mcnemar_of(binary_changes(generator, size, 0.6, 0.3)) <= 0.05).mean() > 0.95
    assert (sign_flip_p(skewed_changes(generator, size, shift=2)) <= 0.05).mean() > 0.95


def test_the_smallest_difference_is_found_in_about_80_percent():
    generator = numpy.random.default_rng(2)
    for examples in (20, 100):
        noise = generator.normal(0, 1, size=(examples, TRIALS))
        spread = numpy.array([1.0, -1.0] * (examples // 2)) / (examples / (examples - 1)) ** 0.5
        smallest = detectable_mean_change(spread)  # of a standard deviation of 1
        assert (sign_flip_p(noise + smallest) <= 0.05).mean() == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(("examples", "changed"), [(100, 0.3), (100, 0.0), (300, 0.1)])
def test_the_smallest_change_of_a_share_is_found_in_about_80_percent(examples, changed):
    """The exact test finds it a little less often than Connor's formula, which is no exact one."""
    pairs = round(examples * changed)
    changes = numpy.array([1.0, -1] * (pairs // 2) + [0.0] * (examples - pairs))
    smallest = detectable_share_change(changes)
    both = max(changed, smallest)
    counts = numpy.random.default_rng(3).multinomial(
        examples, [(both + smallest) / 2, (both - smallest) / 2, 1 - both], size=TRIALS
    )
    assert 0.7 <= (mcnemar_p(counts[:, 0], counts[:, 1]) <= 0.05).mean() <= 0.85


def test_mcnemar_is_the_binomial_test_of_the_pairs_that_changed():
    up, down = numpy.array([0, 3, 10, 7]), numpy.array([0, 9, 1, 7])
    expected = [1.0] + [stats.binomtest(u, u + d).pvalue for u, d in [(3, 9), (10, 1), (7, 7)]]
    assert mcnemar_p(up, down) == pytest.approx(expected)


@pytest.mark.parametrize("examples", [2, 6, 10])
def test_few_prompts_have_the_exact_p_of_all_flips(examples):
    changes = numpy.random.default_rng(examples).normal(0.5, 1, size=examples).round(1)
    expected = stats.permutation_test(
        (changes,), numpy.mean, permutation_type="samples", n_resamples=numpy.inf
    )
    assert sign_flip_p(changes[:, None])[0] == pytest.approx(expected.pvalue)


def test_many_prompts_have_nearly_the_p_of_other_random_flips():
    changes = numpy.random.default_rng(8).normal(0.2, 1, size=50)
    expected = stats.permutation_test(
        (changes,),
        numpy.mean,
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=numpy.random.default_rng(9),
    )
    assert sign_flip_p(changes[:, None])[0] == pytest.approx(expected.pvalue, abs=0.01)


def test_thousands_of_prompts_take_little_memory_and_have_the_p_of_10_000_flips():
    changes = numpy.random.default_rng(5).normal(0.03, 1, size=(2000, 3))
    tracemalloc.start()
    p = sign_flip_p(changes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    flips = numpy.random.default_rng(0).integers(2, size=(10_000, 2000))
    flips[0] = 0
    sums = changes.sum(axis=0) - 2 * (flips @ changes)
    assert p.tolist() == (abs(sums) >= abs(changes.sum(axis=0)) - 1e-6).mean(axis=0).tolist()


@pytest.mark.parametrize("examples", [1, 5, 6, 14, 15, 100])
def test_changes_without_spread_are_no_error(examples):
    p = sign_flip_p(numpy.tile([0.0, 0.1], (examples, 1)))
    assert p[0] == 1
    expected = 2.0 ** (1 - examples)
    assert p[1] == pytest.approx(expected) if examples <= 14 else p[1] <= 2e-3
    assert detectable_mean_change(numpy.full(examples, 0.1)) is None
    smallest = detectable_share_change(numpy.zeros(examples))
    assert (smallest is None) == (examples < FEWEST)


def test_a_large_difference_survives_a_family_of_thousands():
    changes = numpy.random.default_rng(4).normal(1, 1, size=(100, 1))
    assert sign_flip_p(changes)[0] * 8000 < 0.05


def test_five_prompts_can_show_nothing():
    everything = numpy.ones(FEWEST)
    assert sign_flip_p(everything[:-1, None])[0] > 0.05 >= sign_flip_p(everything[:, None])[0]
    up = numpy.array([FEWEST - 1, FEWEST])
    assert (mcnemar_p(up, numpy.zeros(2)) <= 0.05).tolist() == [False, True]
    assert detectable_mean_change(numpy.arange(5.0)) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1))
def test_holm_keeps_the_order_and_lowers_no_p(p):
    adjusted = holm(p)
    assert all(new >= old for new, old in zip(adjusted, p, strict=True))
    assert adjusted[p.index(min(p))] == min(1, len(p) * min(p))
    order = sorted(range(len(p)), key=p.__getitem__)
    assert [adjusted[index] for index in order] == sorted(adjusted)
