"""Tests each pruned run against the base run of the same decoder, score by score."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy

from analysis.comparison import QUALITIES, SAME_DECODER, Comparison, is_share, paired
from analysis.finished_runs import LoggedRun
from analysis.intervals import Interval
from analysis.significance import (
    FEWEST,
    detectable_mean_change,
    detectable_share_change,
    holm,
    mcnemar_p,
    sign_flip_p,
)

MCNEMAR = "McNemar, exact"
SIGN_FLIPS = "sign flips"


@dataclass(frozen=True)
class _Pairs:
    """Scores of the prompts that a pruned run and its base run both finished."""

    run: LoggedRun
    base: LoggedRun
    score: str
    mine: numpy.ndarray
    its: numpy.ndarray
    change: Interval
    texts: tuple[bytes, bytes]  # hashes of all outputs

    @property
    def changes(self) -> numpy.ndarray:
        return self.mine - self.its

    @property
    def test(self) -> str:
        return MCNEMAR if is_share(self.score, self.mine, self.its) else SIGN_FLIPS


@dataclass(frozen=True)
class Difference:
    """The change of one score from the base run to the pruned run, over the same prompts.

    `only_base` and `only_pruned` count the prompts that only one of the two got right, for scores
    of 0 and 1. `adjusted_p` is Holm's over all differences found together; it is `p` for too few
    prompts to reach 5 %, which are no test that could be found by chance. `detectable` is the
    smallest change that so many prompts show.
    """

    run: LoggedRun
    base: LoggedRun
    score: str
    pairs: int
    base_mean: float
    pruned_mean: float
    change: Interval
    test: str
    p: float
    adjusted_p: float
    detectable: float | None
    only_base: int | None
    only_pruned: int | None


def find_differences(comparisons: list[Comparison]) -> list[Difference]:
    """Test every score that a run shares with its base run; empty without examples.

    A score that another run measured on more prompts is tested there alone.
    """
    found = [pairs for one in comparisons for pairs in _pairs(one)]
    p = _tested(found)
    # Runs that wrote the same texts, such as those of lossless decoders, are one test.
    tests = [
        (pairs.score, pairs.texts, pairs.change.value, value)
        for pairs, value in zip(found, p, strict=True)
    ]
    family = list(
        dict.fromkeys(
            test for pairs, test in zip(found, tests, strict=True) if len(pairs.mine) >= FEWEST
        )
    )
    adjusted = dict(zip(family, holm([value for *_, value in family]), strict=True))
    return [
        _difference(pairs, value, adjusted.get(test, value))
        for pairs, value, test in zip(found, p, tests, strict=True)
    ]


def _pairs(one: Comparison) -> Iterator[_Pairs]:
    base = one.baselines.get(SAME_DECODER)
    both = paired(one.run.examples, base.examples) if base else None
    if base is None or both is None:
        return
    mine, its = both
    texts = mine.outputs.tobytes(), its.outputs.tobytes()
    elsewhere = one.quality.quality_changes if one.quality else {}
    here = one.quality_changes.keys() - elsewhere.keys()
    for score in (name for name in QUALITIES if name in here):
        scores = mine.scores[score], its.scores[score]
        yield _Pairs(one.run, base, score, *scores, one.quality_changes[score], texts)


def _tested(found: list[_Pairs]) -> list[float]:
    """Return the p of each; means over equally many prompts are tested together, for speed."""
    p = [0.0] * len(found)
    columns: dict[int, list[int]] = defaultdict(list)
    for index, pairs in enumerate(found):
        if pairs.test == MCNEMAR:
            p[index] = float(mcnemar_p(*map(numpy.array, _one_sided(pairs))))
        else:
            columns[len(pairs.mine)].append(index)
    for indices in columns.values():
        changes_EC = numpy.stack([found[index].changes for index in indices], axis=1)
        for index, value in zip(indices, sign_flip_p(changes_EC), strict=True):
            p[index] = float(value)
    return p


def _one_sided(pairs: _Pairs) -> tuple[int, int]:
    """Return the prompts that only the base run, and that only the pruned run, got right."""
    return int((pairs.changes < 0).sum()), int((pairs.changes > 0).sum())


def _difference(pairs: _Pairs, p: float, adjusted_p: float) -> Difference:
    of_shares = pairs.test == MCNEMAR
    detectable = detectable_share_change if of_shares else detectable_mean_change
    only_base, only_pruned = _one_sided(pairs) if of_shares else (None, None)
    return Difference(
        run=pairs.run,
        base=pairs.base,
        score=pairs.score,
        pairs=len(pairs.mine),
        base_mean=float(pairs.its.mean()),
        pruned_mean=float(pairs.mine.mean()),
        change=pairs.change,
        test=pairs.test,
        p=p,
        adjusted_p=adjusted_p,
        detectable=detectable(pairs.changes),
        only_base=only_base,
        only_pruned=only_pruned,
    )
