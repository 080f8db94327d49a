"""Chooses the fastest lossless run and the fastest run within a loss of quality.

Runs compete if they share all conditions except compilation.
"""

import json
from collections import defaultdict
from dataclasses import dataclass

from analysis.comparison import LESS_IS_BETTER, Comparison, speedup_over
from analysis.figures import group_titles
from analysis.finished_runs import LoggedRun
from analysis.intervals import Interval

# The kinds of autoregressive baseline, by the condition `compile`.
KINDS = {False: "eager", True: "compiled"}


@dataclass(frozen=True)
class Baseline:
    """The newest autoregressive run of the unpruned model, and how much faster a run is.

    `is_best` marks the fastest of these baselines.
    """

    kind: str
    run: LoggedRun
    speedup: Interval | None
    is_best: bool


@dataclass(frozen=True)
class Choice:
    """The fastest of some runs, beside every baseline except the run itself, the fastest first.

    `loss` is the mean loss of quality against the unpruned model with the same decoder, which the
    run `measured` found.
    """

    compared: Comparison
    candidates: int
    baselines: list[Baseline]
    loss: Interval | None = None
    measured: LoggedRun | None = None

    @property
    def run(self) -> LoggedRun:
        return self.compared.run


@dataclass(frozen=True)
class Headline:
    """The choices among comparable runs; None where no run qualifies.

    `pruned` counts pruned runs with a speed and a known loss; `least_loss` is the smallest of them.
    """

    title: str
    runs: int
    lossless: Choice | None
    lossy: Choice | None
    pruned: int
    least_loss: float | None


def headlines(comparisons: list[Comparison], quality: str, most_loss: float) -> list[Headline]:
    """Return the choices in each group of comparable runs with a speed, the largest group first."""
    by_conditions: dict[str, list[Comparison]] = defaultdict(list)
    for one in comparisons:
        conditions = {k: v for k, v in one.run.conditions.items() if k != "compile"}
        by_conditions[json.dumps(conditions, sort_keys=True)].append(one)
    groups = [group for group in by_conditions.values() if any(one.run.speed for one in group)]
    # Eager runs name a group that has them, so that compilation does not enter its title.
    named = [min(group, key=lambda one: one.run.conditions["compile"]) for group in groups]
    titles = group_titles([one.run for one in named])
    found = [
        _headline(titles[first.run.condition_key], group, quality, most_loss)
        for first, group in zip(named, groups, strict=True)
    ]
    return sorted(found, key=lambda one: (-one.runs, one.title))


def loss_of(compared: Comparison, quality: str) -> Interval | None:
    """Return the mean loss of quality by the run's plan: positive is worse."""
    change = compared.measuring(quality).quality_changes.get(quality)
    if change is None or quality in LESS_IS_BETTER:
        return change
    # Subtract from 0: the negative of a change of 0 would be shown as -0.000.
    bounds = (None if bound is None else 0 - bound for bound in (change.high, change.low))
    return Interval(0 - change.value, *bounds)


def _headline(title: str, group: list[Comparison], quality: str, most_loss: float) -> Headline:
    measured = [one for one in group if one.run.speed and one.run.decodes_whole_model]
    baselines = _baselines(measured)
    # A random plan may remove no layer; it is neither pruned nor named as the unpruned model.
    whole = [one for one in measured if one.run.method == "base"]
    pruned = [one for one in measured if one.run.removed_layers and loss_of(one, quality)]
    losses = {one.run.path: _value(loss_of(one, quality)) for one in pruned}
    within = [one for one in pruned if losses[one.run.path] <= most_loss]
    return Headline(
        title,
        len(group),
        lossless=_fastest(whole, baselines),
        lossy=_fastest(within, baselines, quality),
        pruned=len(pruned),
        least_loss=min(losses.values(), default=None),
    )


def _value(interval: Interval | None) -> float:
    assert interval
    return interval.value


def _baselines(measured: list[Comparison]) -> list[LoggedRun]:
    """Return the newest autoregressive run of the unpruned model of each kind, fastest first."""
    plain = [
        one.run
        for one in measured
        if one.run.strategy == "autoregressive" and one.run.method == "base"
    ]
    newest = {run.conditions["compile"]: run for run in plain}
    return sorted(newest.values(), key=lambda run: run.speed or 0, reverse=True)


def _fastest(
    candidates: list[Comparison], baselines: list[LoggedRun], quality: str | None = None
) -> Choice | None:
    if not candidates:
        return None
    best = max(candidates, key=lambda one: one.run.speed or 0)
    others = [
        Baseline(
            KINDS[bool(run.conditions["compile"])], run, speedup_over(best.run, run), place == 0
        )
        for place, run in enumerate(baselines)
        if run is not best.run
    ]
    if not quality:
        return Choice(best, len(candidates), others)
    measured = best.measuring(quality).run
    return Choice(best, len(candidates), others, loss_of(best, quality), measured)
