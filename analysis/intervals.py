"""95 % intervals by the paired bootstrap over examples (Efron and Tibshirani 1993)."""

from dataclasses import dataclass
from functools import lru_cache

import numpy

RESAMPLES = 2000
_LEVELS = (0.025, 0.975)
_ROWS_AT_ONCE = 250
_SEED = 0


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds, which are None for fewer than two examples."""

    value: float
    low: float | None = None
    high: float | None = None


def mean_intervals(values_EC: numpy.ndarray) -> list[Interval]:
    """Return the mean of each column of an (E examples, C columns) array."""
    estimates_C = values_EC.mean(axis=0)
    if len(values_EC) < 2:
        return [Interval(float(value)) for value in estimates_C]
    return _intervals(estimates_C, _resampled_sums(values_EC) / len(values_EC))


def ratio_interval(parts_E4: numpy.ndarray) -> Interval | None:
    """Return (sum a / sum b) / (sum c / sum d) over columns a, b, c, d; None if a sum is zero.

    With a, c tokens and b, d seconds this is the speed-up of one run over another.
    """
    totals = parts_E4.sum(axis=0)
    if not totals.all():
        return None
    if len(parts_E4) < 2:
        return Interval(float(_ratio(totals)))
    sums_R4 = _resampled_sums(parts_E4)
    sums_R4 = sums_R4[sums_R4.all(axis=1)]  # examples that decoded nothing have no speed
    return _intervals(numpy.array([_ratio(totals)]), _ratio(sums_R4.T)[:, None])[0]


def _ratio(parts: numpy.ndarray) -> numpy.ndarray:
    return parts[0] / parts[1] / (parts[2] / parts[3])


def _intervals(estimates_C: numpy.ndarray, resampled_RC: numpy.ndarray) -> list[Interval]:
    bounds = numpy.quantile(resampled_RC, _LEVELS, axis=0)
    return [Interval(*map(float, one)) for one in zip(estimates_C, *bounds, strict=True)]


def _resampled_sums(values_EC: numpy.ndarray) -> numpy.ndarray:
    """Return sums over E examples drawn with replacement, (RESAMPLES, C): one draw per row."""
    counts_RE = _resampling_counts(len(values_EC))
    starts = range(0, RESAMPLES, _ROWS_AT_ONCE)
    return numpy.concatenate(
        [counts_RE[at : at + _ROWS_AT_ONCE].astype(float) @ values_EC for at in starts]
    )


@lru_cache(maxsize=4)
def _resampling_counts(examples: int) -> numpy.ndarray:
    """Return how often each resample drew each example, (RESAMPLES, E) of one byte each."""
    generator = numpy.random.default_rng(_SEED)
    even = numpy.full(examples, 1 / examples)
    return generator.multinomial(examples, even, size=RESAMPLES).astype(numpy.uint8)
