"""Every run against the runs that differ from it in the one thing compared."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy

from analysis.intervals import Interval, mean_intervals, ratio_interval
from analysis.logged_examples import Examples
from analysis.logged_runs import Decoder, LoggedRun

# The three meanings of speed-up, by what a run is compared with.
SAME_PLAN = "speculative_over_autoregressive"
SAME_DECODER = "pruned_over_base"
BOTH = "pruned_speculative_over_base_autoregressive"
BASELINES = {
    SAME_PLAN: "autoregressive run of the same plan",
    SAME_DECODER: "base run of the same decoder",
    BOTH: "base autoregressive run",
}
# Scores of every example, and how they are called on an axis.
QUALITIES = {
    "rouge-l": "ROUGE-L (F-measure)",
    "rouge-1": "ROUGE-1 (F-measure)",
    "rouge-2": "ROUGE-2 (F-measure)",
    "rouge-3": "ROUGE-3 (F-measure)",
    "exact_match": "exact match (share of prompts)",
    "pass@1": "pass@1 (share of prompts)",
    "edit_distance": "edit distance (characters)",
}
LESS_IS_BETTER = ("edit_distance",)
# Beyond this factor, a speed-up tells more of what else the machine did than of decoding.
_MOST_DRIFT = 1.25
_WHOLE_MODEL = Decoder("autoregressive", None, None)


@dataclass
class Comparison:
    """One run against its baselines.

    `speedups` are ratios of tokens per second, decoding alone. `quality_changes` are differences
    of means to the base run of the same decoder; `equal_outputs` counts the prompts whose tokens
    equal those of the autoregressive run, out of those that both ran. `missing` says of every
    baseline that was not found what stood in the way.
    """

    run: LoggedRun
    baselines: dict[str, LoggedRun] = field(default_factory=dict)
    speedups: dict[str, Interval | None] = field(default_factory=dict)
    quality_changes: dict[str, Interval] = field(default_factory=dict)
    equal_outputs: tuple[int, int] | None = None
    missing: dict[str, str] = field(default_factory=dict)

    def speedup(self, name: str) -> float | None:
        """One of the three speed-ups; None without its baseline."""
        found = self.speedups.get(name)
        return found and found.value

    @property
    def drift(self) -> float | None:
        """The factor between two measurements of the speed-up over autoregressive decoding.

        One is over the autoregressive run, the other over full steps timed in this run itself. They
        part where the machine was slower in one of the runs.
        """
        other = self.run.metric("speedup_over_full_steps", "measured")
        mine = self.speedup(SAME_PLAN)
        return max(mine / other, other / mine) if mine and other else None


def compare(runs: list[LoggedRun]) -> list[Comparison]:
    """Compares all runs of this tool among which there can be a baseline, oldest first."""
    index = _Index(runs)
    return [_compared(run, index) for run in runs if not run.is_older]


def spread_over_seeds(comparisons: list[Comparison]) -> list[list[Comparison]]:
    """Random plans that differ in their seed alone, where there are two seeds or more."""
    groups: dict[tuple, dict[int, Comparison]] = defaultdict(dict)
    for one in comparisons:
        run = one.run
        if run.method == "random":
            threshold = run.record.plan["dropout_threshold"]
            groups[(run.condition_key, threshold, run.decoder)][run.prune_seed] = one
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def missing_baselines(
    comparisons: list[Comparison], names: Iterable[str] = tuple(BASELINES)
) -> list[str]:
    """Why these speed-ups are missing, every reason once."""
    found = (reason for one in comparisons for reason in one.missing.items())
    reasons = Counter((name, reason) for name, reason in found if name in names)
    return [
        f"{count} run{'s have' if count > 1 else ' has'} no {BASELINES[name]}: {reason}"
        for (name, reason), count in reasons.items()
    ]


def drifting_speedups(comparisons: list[Comparison]) -> list[str]:
    """A warning, where the machine's speed changed too much between runs to compare them."""
    drifts = [one.drift for one in comparisons if (one.drift or 1) > _MOST_DRIFT]
    if not drifts:
        return []
    return [
        f"{len(drifts)} speed-up{'s' if len(drifts) > 1 else ''} over an autoregressive run: full "
        f"steps timed in the run itself say otherwise, by a factor of up to {max(drifts):.2f}; the "
        "machine was slower in one of the two runs, which another --output_dir runs again"
    ]


def mean_and_deviation(values: Iterable[float | None]) -> tuple[float, float] | None:
    """Mean and sample standard deviation of the values that are known, None of fewer than two."""
    known = [value for value in values if value is not None]
    return (statistics.fmean(known), statistics.stdev(known)) if len(known) > 1 else None


def quality_intervals(run: LoggedRun) -> dict[str, Interval]:
    """The run's mean scores with their intervals over examples; empty without examples."""
    if run.examples is None:
        return {}
    names = [name for name in QUALITIES if name in run.examples.scores]
    columns = numpy.stack([run.examples.scores[name] for name in names], axis=1)
    return dict(zip(names, mean_intervals(columns), strict=True))


class _Index:
    """Runs by what they were, the newest where several were the same."""

    def __init__(self, runs: list[LoggedRun]) -> None:
        self._found: dict[tuple, dict[str, LoggedRun]] = defaultdict(dict)
        for run in runs:
            if not run.is_older:
                for plan in {run.plan_name, run.kept_layers, run.method}:
                    self._found[plan, run.decoder][run.condition_key] = run

    def find(self, run: LoggedRun, plans: tuple, decoder: Decoder) -> LoggedRun | str:
        """The run with the first of these plans under the same conditions, or what differs.

        The last plan is the widest: what differs is told of runs with that one.
        """
        for plan in plans:
            alike = self._found.get((plan, decoder), {})
            if run.condition_key in alike:
                return alike[run.condition_key]
        candidates = list(alike.values()) or self._of_other_decoders(plan, decoder.strategy)
        differences = (_differences(run, decoder, other) for other in candidates)
        nearest = min(differences, key=len, default=None)
        if nearest is None:
            return "none is in these folders"
        return "the nearest differs in " + ", ".join(nearest)

    def _of_other_decoders(self, plan: Any, strategy: str) -> list[LoggedRun]:
        """Runs of the plan with the same strategy, of another exit layer or draft length."""
        return [
            run
            for (other_plan, decoder), runs in self._found.items()
            if other_plan == plan and decoder.strategy == strategy
            for run in runs.values()
        ]


def _compared(run: LoggedRun, index: _Index) -> Comparison:
    comparison = Comparison(run)
    for name, (plans, decoder) in _wanted(run).items():
        found = index.find(run, plans, decoder)
        if isinstance(found, str):
            comparison.missing[name] = found
            continue
        comparison.baselines[name] = found
        pair = _paired(run.examples, found.examples)
        comparison.speedups[name] = _speedup(run, found, pair)
        if pair and name == SAME_DECODER:
            comparison.quality_changes = _quality_changes(pair)
        # Sampled outputs follow the same law, and need not be the same.
        if pair and name == SAME_PLAN and run.conditions["sample"] is False:
            equal = pair[0].outputs == pair[1].outputs
            comparison.equal_outputs = int(equal.sum()), len(equal)
    return comparison


def _wanted(run: LoggedRun) -> dict[str, tuple[tuple, Decoder]]:
    """Plans that will do, the best first, and decoder of every baseline that the run has."""
    wanted, speculative = {}, run.strategy == "self_speculative"
    if speculative:
        # Other plans may keep the same layers, but were run at another time.
        wanted[SAME_PLAN] = (run.plan_name, run.kept_layers), _WHOLE_MODEL
    if run.method != "base":
        wanted[SAME_DECODER] = ("base",), run.decoder
        if speculative:
            wanted[BOTH] = ("base",), _WHOLE_MODEL
    return wanted


# Other counts of prompts, or of solved examples, are other prompts; other texts, other tokens.
_OTHER_TEXTS = {"num_samples", "n_shot", "dataset"}
_IMPLIED_BY = {
    "prompts": _OTHER_TEXTS,
    "prompt tokens": _OTHER_TEXTS | {"prompts", "apply_chat_template", "model", "engine version"},
}


def telling(names: list[str]) -> list[str]:
    """Return the conditions that differ, without those that differ because others do."""
    return [name for name in names if not _IMPLIED_BY.get(name, set()) & set(names)]


def _differences(run: LoggedRun, decoder: Decoder, other: LoggedRun) -> list[str]:
    """What keeps the other run from being the one with this decoder under this run's conditions."""
    mine = decoder._asdict() | run.conditions
    its = other.decoder._asdict() | other.conditions
    names = [name for name in mine | its if mine.get(name) != its.get(name)]
    return [
        f"{name} ({_short(its.get(name))}, not {_short(mine.get(name))})" for name in telling(names)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _paired(mine: Examples | None, its: Examples | None) -> tuple[Examples, Examples] | None:
    """Both runs' examples, cut to those that both finished."""
    if mine is None or its is None:
        return None
    _, here, there = numpy.intersect1d(
        mine.indices, its.indices, assume_unique=True, return_indices=True
    )
    return (mine.at(here), its.at(there)) if len(here) else None


def _speedup(
    run: LoggedRun, baseline: LoggedRun, pair: tuple[Examples, Examples] | None
) -> Interval | None:
    """How many times as many tokens per second: over examples, or without them from the logs."""
    if pair:
        mine, its = pair
        timed = mine.timed & its.timed
        parts = [mine.decoded_tokens, mine.decode_seconds, its.decoded_tokens, its.decode_seconds]
        return ratio_interval(numpy.stack(parts, axis=1)[timed]) if timed.any() else None
    rates = [one.metric("tokens_per_second", "token_weighted") for one in (run, baseline)]
    return Interval(rates[0] / rates[1]) if all(rates) else None


def _quality_changes(pair: tuple[Examples, Examples]) -> dict[str, Interval]:
    mine, its = pair
    names = [name for name in QUALITIES if name in mine.scores and name in its.scores]
    columns = numpy.stack([mine.scores[name] - its.scores[name] for name in names], axis=1)
    return dict(zip(names, mean_intervals(columns), strict=True))


def pareto_front(points: list[tuple[float, float]], less_is_better: bool) -> list[bool]:
    """Return for each point of speed and quality whether no other point dominates it.

    A point dominates another if it is at least as good in both and better in one.
    """
    sign = -1 if less_is_better else 1
    found = [(speed, sign * quality) for speed, quality in points]
    return [
        not any(other != one and other[0] >= one[0] and other[1] >= one[1] for other in found)
        for one in found
    ]
