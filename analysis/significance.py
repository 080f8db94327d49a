"""Tests whether two runs differ on the same prompts, and what so many prompts could show.

Letters: E prompts, C columns, F flips of signs. docs/analysis.md says why these tests.
"""

from functools import lru_cache

import numpy
from scipy.special import bdtr, bdtri, ndtri, stdtrit

from analysis.intervals import LEVEL

POWER = 0.8
# With fewer prompts even equal signs have a two-sided probability above 5 %: 2 / 2**5 = 0.0625.
FEWEST = 6
_FLIPS = 10_000
_ALL_FLIPS = 14  # up to so many prompts, every flip counts: half of 2**14
_FLIPS_AT_ONCE = 500
_SEED = 0
_ROUNDING = 1e-9  # share of a sum within which two sums are equal


def mcnemar_p(up_C: numpy.ndarray, down_C: numpy.ndarray) -> numpy.ndarray:
    """Return p of McNemar's exact test from the pairs that changed up and down, (C,).

    Two-sided, by the binomial law of either count among both; 1 where no pair changed.
    """
    up_C, down_C = up_C.astype(int), down_C.astype(int)
    fewer_C, both_C = numpy.minimum(up_C, down_C), up_C + down_C
    return numpy.minimum(2 * bdtr(fewer_C, both_C, 0.5), 1)


def sign_flip_p(changes_EC: numpy.ndarray) -> numpy.ndarray:
    """Return p of the sign-flip test of each column's mean, (C,); two-sided.

    If two runs are alike, a change and its negative are equally likely (Fisher 1935). Counts every
    flip of the signs for few prompts, and 10,000 random ones otherwise, with the signs as they are
    among them. Where no random flip reaches the mean, Hoeffding's bound of the same probability
    may be smaller than 1 / 10,000.
    """
    sums_C = numpy.abs(changes_EC.sum(axis=0))
    reach_C = sums_C - _ROUNDING * numpy.abs(changes_EC).sum(axis=0)
    signs_FE = _signs(len(changes_EC))
    reached_C = numpy.zeros(len(sums_C), dtype=int)
    for at in range(0, len(signs_FE), _FLIPS_AT_ONCE):
        flipped_FC = signs_FE[at : at + _FLIPS_AT_ONCE].astype(float) @ changes_EC
        reached_C += (numpy.abs(flipped_FC) >= reach_C).sum(axis=0)
    p_C = reached_C / len(signs_FE)
    if len(changes_EC) <= _ALL_FLIPS:
        return p_C
    squares_C = (changes_EC**2).sum(axis=0)
    known_C = numpy.where(squares_C > 0, squares_C, 1)
    bound_C = 2 * numpy.exp(-(sums_C**2) / (2 * known_C))
    return numpy.where(p_C <= 1 / _FLIPS, numpy.minimum(p_C, bound_C), p_C)


@lru_cache(maxsize=2)
def _signs(examples: int) -> numpy.ndarray:
    """Return signs that are +1 in the first row, (F, E), in one byte each.

    A flip of all signs changes no size of a sum, so that the first sign may stay as it is.
    """
    if examples <= _ALL_FLIPS:
        codes_F = numpy.arange(2 ** (examples - 1))
        bits_FE = (codes_F[:, None] >> numpy.arange(examples) & 1).astype(numpy.int8)
    else:
        generator = numpy.random.default_rng(_SEED)
        bits_FE = numpy.empty((_FLIPS, examples), dtype=numpy.int8)
        for at in range(0, _FLIPS, _FLIPS_AT_ONCE):
            bits_FE[at : at + _FLIPS_AT_ONCE] = generator.integers(
                2, size=(_FLIPS_AT_ONCE, examples)
            )
        bits_FE[0] = 0
    return 1 - 2 * bits_FE


def holm(p: list[float]) -> list[float]:
    """Return p adjusted by Holm (1979) for the number of tests, in the order given.

    If all differences whose adjusted p is at most 5 % are called real, the probability that any of
    them is not is at most 5 %.
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min((len(p) - rank) * p[index], 1.0))
        adjusted[index] = largest
    return adjusted


def detectable_mean_change(changes_E: numpy.ndarray) -> float | None:
    """Return the mean change that so many prompts show at 5 % in 80 % of cases.

    (t at 97.5 % + t at 80 %) standard errors of the paired changes, with E - 1 degrees of freedom.
    None for fewer than six prompts, and where the changes have no spread to judge by.
    """
    count = len(changes_E)
    if count < FEWEST or not numpy.ptp(changes_E):
        return None
    quantiles = stdtrit(count - 1, 1 - LEVEL / 2) + stdtrit(count - 1, POWER)
    return float(quantiles * changes_E.std(ddof=1) / count**0.5)


def detectable_share_change(changes_E: numpy.ndarray) -> float | None:
    """Return the change of a share that so many pairs show at 5 % in 80 % of cases.

    Solves E = (z_a sqrt(d) + z_b sqrt(d - x**2))**2 / x**2 for the change x, with the share d of
    pairs that changed (Connor 1987). It is at least the share of one-sided changes that gives six
    of them in 80 % of cases: with fewer, McNemar's test never reaches 5 %.
    """
    count = len(changes_E)
    if count < FEWEST:
        return None
    least = float(bdtri(FEWEST - 1, count, 1 - POWER))
    changed = float(numpy.abs(changes_E).mean())
    z_a, z_b = float(ndtri(1 - LEVEL / 2)), float(ndtri(POWER))
    root = z_b * (changed * (count - z_a**2 + z_b**2)) ** 0.5
    return max(least, (z_a * (changed * count) ** 0.5 + root) / (count + z_b**2))
