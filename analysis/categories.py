"""Compares runs on the prompts of each category, for data sets that have categories."""

from dataclasses import dataclass

import numpy

from analysis.comparison import SAME_PLAN, Comparison, paired, speed_interval, speedup_of
from analysis.finished_runs import LoggedRun
from analysis.intervals import Interval
from analysis.logged_examples import Examples


@dataclass(frozen=True)
class CategoryResult:
    """One run on the prompts of one category; None where there is nothing to compute from.

    `speedup` is over the autoregressive run of the same plan. `acceptance_length` are tokens per
    verification, accepted drafts and the verifier's own; `acceptance` is accepted / drafted.
    `copied_share` is the mean over prompts.
    """

    run: LoggedRun
    category: str
    prompts: int
    speed: Interval | None
    speedup: Interval | None
    acceptance_length: float | None
    acceptance: float | None
    copied_share: float | None


def category_results(comparisons: list[Comparison]) -> list[CategoryResult]:
    """Return a result per run and category, by name; empty for data without categories."""
    return [
        _result(one, category, one.run.examples.at(places))
        for one in comparisons
        if one.run.examples
        for category, places in places_by_category(one.run.examples).items()
    ]


def places_by_category(examples: Examples) -> dict[str, numpy.ndarray]:
    """Return the places of the examples of each category, without those that have none."""
    names = sorted(set(examples.categories.tolist()) - {""})
    return {name: numpy.flatnonzero(examples.categories == name) for name in names}


def _result(one: Comparison, category: str, examples: Examples) -> CategoryResult:
    rounds, drafted, accepted = (
        float(counts.sum())
        for counts in (examples.rounds, examples.drafted_tokens, examples.accepted_tokens)
    )
    counted = numpy.isfinite(examples.copied_tokens) & (examples.output_tokens > 0)
    copied = examples.copied_tokens[counted] / examples.output_tokens[counted]
    return CategoryResult(
        run=one.run,
        category=category,
        prompts=len(examples.indices),
        speed=None if one.run.is_batched else speed_interval(examples),
        speedup=_speedup(one, examples),
        acceptance_length=accepted / rounds + 1 if rounds else None,
        acceptance=accepted / drafted if drafted else None,
        copied_share=float(copied.mean()) if len(copied) else None,
    )


def _speedup(one: Comparison, examples: Examples) -> Interval | None:
    baseline = one.baselines.get(SAME_PLAN)
    pair = paired(examples, baseline.examples) if baseline else None
    return speedup_of(*pair) if pair else None
