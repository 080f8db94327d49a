"""95 % intervals: bootstraps corrected for bias and skewness, and closed forms for shares.

Letters: E examples, R timed passes, B resamples, C columns, P parts of a ratio.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy
from scipy.special import ndtr, ndtri, stdtrit

RESAMPLES = 2000
LEVEL = 0.05
_Z = float(ndtri(1 - LEVEL / 2))
_ROWS_AT_ONCE = 250
_FLOATS = 500  # most units whose counts are kept as floats
_SEED = 0
# Sums of the same numbers in another order may differ by this share of their spread.
_ROUNDING = 1e-9
_LEAST_DENOMINATOR = 0.1  # of BCa's levels; smaller ones would leave the resamples


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds, which are None for fewer than two examples."""

    value: float
    low: float | None = None
    high: float | None = None


def mean_intervals(values_EC: numpy.ndarray) -> list[Interval]:
    """Return the mean of each column of an (E examples, C columns) array, by the bootstrap."""
    examples = len(values_EC)
    means_C = values_EC.mean(axis=0)
    if examples < 2:
        return [Interval(float(value)) for value in means_C]
    means_BC = _resampled_sums(values_EC) / examples
    return _corrected(means_C, means_BC, [values_EC - means_C], examples)


def quotient_interval(values_E: numpy.ndarray, weights_E: numpy.ndarray) -> Interval:
    """Return sum of values / sum of weights, which are positive, by the bootstrap over examples."""
    examples, quotient = len(values_E), float(values_E.sum() / weights_E.sum())
    if examples < 2:
        return Interval(quotient)
    sums_B2 = _resampled_sums(numpy.stack([values_E, weights_E], axis=1))
    quotients_B1 = sums_B2[:, :1] / sums_B2[:, 1:]
    without_E = (values_E.sum() - values_E) / (weights_E.sum() - weights_E)
    influences_E1 = ((examples - 1) * (without_E.mean() - without_E))[:, None]
    return _corrected(numpy.array([quotient]), quotients_B1, [influences_E1], examples)[0]


def share_interval(hits_E: numpy.ndarray) -> Interval:
    """Return the share of ones among zeros and ones, with Wilson's bounds (1927).

    They have a width where all examples are alike, which no bootstrap has.
    """
    count, share = len(hits_E), float(hits_E.mean())
    if count < 2:
        return Interval(share)
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    variance = share * (1 - share) / count + _Z**2 / (4 * count**2)
    reach = _Z * variance**0.5 / (1 + _Z**2 / count)
    return Interval(share, min(max(middle - reach, 0.0), share), max(min(middle + reach, 1), share))


def share_change_interval(changes_E: numpy.ndarray) -> Interval:
    """Return the mean of paired changes of -1, 0 and 1, with Bonett and Price's bounds (2012).

    They are Wald's after one more pair on either side, so that they have a width where no pair
    changed.
    """
    count, change = len(changes_E), float(changes_E.mean())
    if count < 2:
        return Interval(change)
    up, down = (((changes_E == sign).sum() + 1) / (count + 2) for sign in (1, -1))
    middle = float(up - down)
    reach = _Z * float((up + down - middle**2) / (count + 2)) ** 0.5
    return Interval(change, max(middle - reach, -1.0), min(middle + reach, 1.0))


def ratio_interval(parts_ERP: numpy.ndarray) -> Interval | None:
    """Return sum a / sum b, or (sum a / sum b) / (sum c / sum d) of four parts.

    None if a sum is zero. With a, c tokens and b, d seconds this is a run's speed, or the speed-up
    of one run over another. Examples and passes are resampled independently of each other (the
    pigeonhole bootstrap, Owen 2007): two runs of a sweep share the state of the machine in a pass,
    and the texts of an example.
    """
    totals_P = parts_ERP.sum(axis=(0, 1))
    if not totals_P.all():
        return None
    examples, passes, parts = parts_ERP.shape
    if examples < 2:
        return Interval(float(_ratio(totals_P)))
    sums_BRP = _resampled_sums(parts_ERP.reshape(examples, -1)).reshape(-1, passes, parts)
    if passes > 1:
        sums_BRP = sums_BRP * _resampling_counts(passes, _SEED + 1)[:, :, None]
    sums_BP = sums_BRP.sum(axis=1)
    sums_BP = sums_BP[sums_BP.all(axis=1)]  # examples that decoded nothing have no speed
    influences = [
        _influence(totals_P - parts_ERP.sum(axis=other))
        for other, count in ((1, examples), (0, passes))
        if count > 1
    ]
    ratios_B1 = _ratio(sums_BP.T)[:, None]
    return _corrected(numpy.array([_ratio(totals_P)]), ratios_B1, influences, examples)[0]


def _ratio(parts: numpy.ndarray) -> numpy.ndarray:
    rate = parts[0] / parts[1]
    return rate if len(parts) == 2 else rate / (parts[2] / parts[3])


def _influence(left_NP: numpy.ndarray) -> numpy.ndarray:
    """Return how much each of N units moves the ratio, (N, 1), from sums without the unit."""
    ratios_N = numpy.full(len(left_NP), numpy.nan)
    whole = left_NP.all(axis=1)
    ratios_N[whole] = _ratio(left_NP[whole].T)
    moved_N = (len(left_NP) - 1) * (ratios_N[whole].mean() - ratios_N) if whole.any() else ratios_N
    return numpy.nan_to_num(moved_N)[:, None]


def _corrected(
    estimates_C: numpy.ndarray,
    resampled_BC: numpy.ndarray,
    influences_NC: list[numpy.ndarray],
    examples: int,
) -> list[Interval]:
    """Return BCa intervals (Efron 1987), with Hesterberg's wider levels for few examples (2015).

    `influences_NC` holds the influence of each example, and of each pass, on the C estimates. The
    levels are those of Student's t, times the factor by which resamples vary too little.
    """
    spread_C = numpy.ptp(resampled_BC, axis=0)
    over_BC = resampled_BC - estimates_C
    ties_BC = numpy.abs(over_BC) <= _ROUNDING * spread_C
    below_C = ((over_BC < 0) & ~ties_BC).mean(axis=0) + ties_BC.mean(axis=0) / 2
    edge = 0.5 / len(resampled_BC)
    bias_C = ndtri(below_C.clip(edge, 1 - edge))
    z = stdtrit(examples - 1, 1 - LEVEL / 2) * (examples / (examples - 1)) ** 0.5
    moved_2C = bias_C + numpy.array([[-z], [z]])
    stretch_2C = numpy.maximum(1 - _acceleration(influences_NC) * moved_2C, _LEAST_DENOMINATOR)
    bounds_2C = _quantiles(resampled_BC, ndtr(bias_C + moved_2C / stretch_2C))
    return [Interval(*map(float, one)) for one in zip(estimates_C, *bounds_2C, strict=True)]


def _acceleration(influences_NC: list[numpy.ndarray]) -> numpy.ndarray:
    """Return how fast the standard error changes with the estimate, by the jackknife."""
    cubes_C = sum((one**3).sum(axis=0) / len(one) ** 3 for one in influences_NC)
    squares_C = sum((one**2).sum(axis=0) / len(one) ** 2 for one in influences_NC)
    known_C = numpy.where(squares_C > 0, squares_C, 1)
    return numpy.where(squares_C > 0, cubes_C / (6 * known_C**1.5), 0)


def _quantiles(values_BC: numpy.ndarray, levels_2C: numpy.ndarray) -> numpy.ndarray:
    """Return quantiles at levels that differ between columns, linear between values."""
    sorted_BC = numpy.sort(values_BC, axis=0)
    place_2C = levels_2C * (len(values_BC) - 1)
    under_2C = numpy.floor(place_2C).astype(int)
    low_2C = numpy.take_along_axis(sorted_BC, under_2C, axis=0)
    over_2C = numpy.minimum(under_2C + 1, len(values_BC) - 1)
    high_2C = numpy.take_along_axis(sorted_BC, over_2C, axis=0)
    return low_2C + (place_2C - under_2C) * (high_2C - low_2C)


def _resampled_sums(values_EC: numpy.ndarray) -> numpy.ndarray:
    """Return sums over E examples drawn with replacement, (RESAMPLES, C): one draw per row."""
    counts_BE = _resampling_counts(len(values_EC), _SEED)
    starts = range(0, RESAMPLES, _ROWS_AT_ONCE)
    return numpy.concatenate(
        [counts_BE[at : at + _ROWS_AT_ONCE].astype(float, copy=False) @ values_EC for at in starts]
    )


@lru_cache(maxsize=4)
def _resampling_counts(units: int, seed: int) -> numpy.ndarray:
    """Return how often each resample drew each unit, (RESAMPLES, units).

    In one byte each for many units, whose floats would fill memory.
    """
    generator = numpy.random.default_rng(seed)
    even = numpy.full(units, 1 / units)
    counts = generator.multinomial(units, even, size=RESAMPLES)
    return counts.astype(float if units <= _FLOATS else numpy.uint8)
