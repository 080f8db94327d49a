"""Compares each run with the runs that differ from it only in the thing compared.

A score of each example becomes a metric of quality by an entry of QUALITIES.
"""

import dataclasses
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy

from analysis.finished_runs import Decoder, FinishedRun, LoggedRun
from analysis.intervals import (
    Interval,
    mean_intervals,
    ratio_interval,
    share_change_interval,
    share_interval,
)
from analysis.logged_examples import Examples
from analysis.plan_names import mark_label, plan_label
from analysis.quality_runs import quality_runs

# The three meanings of speed-up, with the baseline of each.
SAME_PLAN = "speculative_over_autoregressive"
SAME_DECODER = "pruned_over_base"
BOTH = "pruned_speculative_over_base_autoregressive"
BASELINES = {
    SAME_PLAN: "autoregressive run of the same plan",
    SAME_DECODER: "base run of the same decoder",
    BOTH: "base autoregressive run",
}
# Scores of each example, with their labels in plots.
QUALITIES = {
    "rouge-l": "ROUGE-L (F-measure)",
    "rouge-1": "ROUGE-1 (F-measure)",
    "rouge-2": "ROUGE-2 (F-measure)",
    "rouge-3": "ROUGE-3 (F-measure)",
    "exact_match": "exact match (share of prompts)",
    "pass@1": "pass@1 (share of prompts)",
    "numeric_match": "numeric match (share of prompts)",
    "edit_distance": "edit distance (characters)",
    "nats_per_token": "surprise of references (nats per token)",
}
LESS_IS_BETTER = ("edit_distance", "nats_per_token")
_SHARES = ("exact_match", "pass@1", "numeric_match")  # of prompts: a prompt scores 0 or 1
# Beyond this factor, the machine's other work decides a speed-up more than decoding does.
_MOST_DRIFT = 1.25
_WHOLE_MODEL = Decoder("autoregressive", None, None)

Pair = tuple[Examples, Examples]  # of two runs, those that both finished
# Runs by plan and decoder, then by conditions; of equal runs the newest, teacher-forced ones first.
Index = dict[tuple[Any, Decoder], dict[str, LoggedRun]]


@dataclass(frozen=True)
class Comparison:
    """One run with its baselines; `missing` gives the reason for each baseline that is missing.

    `speedups` are ratios of tokens per second, decoding alone. `quality_changes` are differences
    of means from the base run of the same decoder. `equal_outputs` is (prompts with the same tokens
    as the autoregressive run, prompts that both ran). `quality` is the comparison of the run that
    measured the plan's quality on more prompts, or on as many in batches or teacher-forced.
    """

    run: LoggedRun
    baselines: dict[str, LoggedRun]
    missing: dict[str, str]
    speedups: dict[str, Interval | None]
    quality_changes: dict[str, Interval]
    equal_outputs: tuple[int, int] | None
    quality: "Comparison | None" = None

    def speedup(self, name: str) -> float | None:
        """Return one of the three speed-ups; None without its baseline."""
        found = self.speedups.get(name)
        return found.value if found else None

    def measuring(self, quality: str) -> "Comparison":
        """Return the comparison whose run measured this score of the plan on most prompts."""
        other = self.quality
        return other if other and other.run.quality(quality) is not None else self

    @property
    def drift(self) -> float | None:
        """Factor between the speed-ups over the autoregressive run and over this run's full steps.

        It is far from 1 if the machine was slower in one of the two runs.
        """
        other = self.run.metric("speedup_over_full_steps", "measured")
        mine = self.speedup(SAME_PLAN)
        return max(mine / other, other / mine) if mine and other else None


def compare(runs: list[FinishedRun]) -> list[Comparison]:
    """Compare all runs of this tool with each other, oldest first."""
    own = [run for run in runs if isinstance(run, LoggedRun)]
    index: Index = defaultdict(dict)
    for run in own:
        for plan in {run.plan_name, run.model_key, run.method}:
            alike = index[plan, run.decoder]
            if run.is_forced >= alike.get(run.condition_key, run).is_forced:
                alike[run.condition_key] = run
    found = {run.path: _compared(run, index) for run in own}
    measured = quality_runs(own)
    return [
        dataclasses.replace(one, quality=found[measured[path].path]) if path in measured else one
        for path, one in found.items()
    ]


def spread_over_seeds(comparisons: list[Comparison]) -> list[dict[int, Comparison]]:
    """Return runs that differ only in the seed of a random plan, by seed, where there are several.

    The plan is that of the model, or of a pruned drafter of one model.
    """
    groups: dict[tuple, dict[int, Comparison]] = defaultdict(dict)
    for one in comparisons:
        run, drafts = one.run, one.run.record.draft_plan
        if run.method == "random" and run.prune_seed is not None:
            groups[run.condition_key, plan_label(run), run.decoder][run.prune_seed] = one
        elif run.drafter and drafts and drafts["prune_seed"] is not None:
            decoder = run.decoder._replace(drafter=None)
            drafter = run.plan_name, mark_label(run)
            groups[run.condition_key, drafter, decoder][drafts["prune_seed"]] = one
    return [group for group in groups.values() if len(group) > 1]


def missing_baselines(
    comparisons: list[Comparison], names: Iterable[str] = tuple(BASELINES)
) -> list[str]:
    """Return each reason why one of these speed-ups is missing, once."""
    found = (reason for one in comparisons for reason in one.missing.items())
    reasons = Counter((name, reason) for name, reason in found if name in names)
    return [
        f"{count} run{'s have' if count > 1 else ' has'} no {BASELINES[name]}: {reason}"
        for (name, reason), count in reasons.items()
    ]


def drifting_speedups(comparisons: list[Comparison]) -> list[str]:
    """Warn if the machine's speed changed too much between runs to compare them."""
    drifts = [drift for one in comparisons if (drift := one.drift or 1) > _MOST_DRIFT]
    if not drifts:
        return []
    count = "1 speed-up differs" if len(drifts) == 1 else f"{len(drifts)} speed-ups differ"
    return [
        f"{count} from the speed-up over full steps of the same run by a factor of up to "
        f"{max(drifts):.2f}: the machine was slower in one of the two runs; run both again with "
        "another --output_dir"
    ]


def mean_and_deviation(values: Iterable[float | None]) -> tuple[float, float] | None:
    """Return mean and sample standard deviation of the known values; None for fewer than two."""
    known = [value for value in values if value is not None]
    return (statistics.fmean(known), statistics.stdev(known)) if len(known) > 1 else None


def quality_intervals(
    run: LoggedRun, names: Iterable[str] = tuple(QUALITIES)
) -> dict[str, Interval]:
    """Return the run's mean scores with intervals over examples; empty without examples."""
    if run.examples is None:
        return {}
    scores = run.examples.scores
    known = {name: scores[name] for name in names if name in scores}
    shares = {name: share_interval(known[name]) for name in known if is_share(name, known[name])}
    return _in_order(shares, known)


def speedup_over(run: LoggedRun, baseline: LoggedRun) -> Interval | None:
    """Return the ratio of the runs' speeds, whatever their conditions; None without speeds."""
    return _speedup(run, baseline, paired(run.examples, baseline.examples))


def is_share(name: str, *scores: numpy.ndarray) -> bool:
    """Return whether these are scores of 0 and 1 under the name of one that has no others."""
    return name in _SHARES and all(numpy.isin(one, (0, 1)).all() for one in scores)


def _in_order(shares: dict[str, Interval], known: dict[str, numpy.ndarray]) -> dict[str, Interval]:
    """Return the intervals of all known values: those of shares, and of the other means."""
    means = {name: values for name, values in known.items() if name not in shares}
    found = mean_intervals(numpy.stack(list(means.values()), axis=1)) if means else []
    by_name = shares | dict(zip(means, found, strict=True))
    return {name: by_name[name] for name in known}


def _find(run: LoggedRun, plans: tuple, decoder: Decoder, index: Index) -> LoggedRun | str:
    """Return the run with the first of these plans under the same conditions.

    Without such a run, return the conditions in which the nearest run of the last plan differs.
    """
    for plan in plans:
        alike = index.get((plan, decoder), {})
        if run.condition_key in alike:
            return alike[run.condition_key]
    candidates = list(alike.values()) or [
        other
        for (other_plan, other_decoder), found in index.items()
        if other_plan == plan and other_decoder.strategy == decoder.strategy
        for other in found.values()
    ]
    differences = (_differences(run, decoder, other) for other in candidates)
    nearest = min(differences, key=len, default=None)
    if nearest is None:
        return "none is in these folders"
    return "the nearest differs in " + ", ".join(nearest)


def _compared(run: LoggedRun, index: Index) -> Comparison:
    found = {name: _find(run, *wanted, index) for name, wanted in _wanted(run).items()}
    baselines = {name: one for name, one in found.items() if isinstance(one, LoggedRun)}
    pairs = {name: paired(run.examples, one.examples) for name, one in baselines.items()}
    return Comparison(
        run,
        baselines,
        missing={name: reason for name, reason in found.items() if isinstance(reason, str)},
        speedups={name: _speedup(run, one, pairs[name]) for name, one in baselines.items()},
        quality_changes=_quality_changes(pairs.get(SAME_DECODER)),
        equal_outputs=_equal_outputs(run, pairs.get(SAME_PLAN)),
    )


def _wanted(run: LoggedRun) -> dict[str, tuple[tuple, Decoder]]:
    """Return the baselines that the run should have: plans, the best first, and the decoder."""
    wanted: dict[str, tuple[tuple, Decoder]] = {}
    speculative = run.strategy == "self_speculative"
    if speculative:
        # Another plan that makes the same model ran at another time: second choice.
        wanted[SAME_PLAN] = (run.plan_name, run.model_key), _WHOLE_MODEL
    if run.method != "base":
        wanted[SAME_DECODER] = ("base",), run.decoder
        if speculative:
            wanted[BOTH] = ("base",), _WHOLE_MODEL
    return wanted


# A condition that differs because another one does: other counts of prompts are other prompts.
_OTHER_TEXTS = {"num_samples", "n_shot", "dataset"}
_IMPLIED_BY = {
    "prompts": _OTHER_TEXTS,
    "prompt tokens": _OTHER_TEXTS | {"prompts", "apply_chat_template", "model", "engine version"},
}


def telling(names: list[str]) -> list[str]:
    """Return the conditions that differ, without those that differ because others do."""
    return [name for name in names if not _IMPLIED_BY.get(name, set()) & set(names)]


def _differences(run: LoggedRun, decoder: Decoder, other: LoggedRun) -> list[str]:
    """Return what differs between the other run and this run's conditions with the decoder."""
    mine = decoder._asdict() | run.conditions
    its = other.decoder._asdict() | other.conditions
    names = [name for name in mine | its if mine.get(name) != its.get(name)]
    return [
        f"{name} ({_short(its.get(name))}, not {_short(mine.get(name))})" for name in telling(names)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def paired(mine: Examples | None, its: Examples | None) -> Pair | None:
    """Return the examples that both runs finished; None without any."""
    if mine is None or its is None:
        return None
    _, here, there = numpy.intersect1d(
        mine.indices, its.indices, assume_unique=True, return_indices=True
    )
    return (mine.at(here), its.at(there)) if len(here) else None


def _speedup(run: LoggedRun, baseline: LoggedRun, pair: Pair | None) -> Interval | None:
    """Return the ratio of tokens per second, over examples or, without them, from the metrics.

    None for runs that decoded prompts together.
    """
    if run.is_batched or baseline.is_batched:
        return None
    if pair:
        return speedup_of(*pair)
    mine_rate, its_rate = run.speed, baseline.speed
    return Interval(mine_rate / its_rate) if mine_rate and its_rate else None


def speedup_of(mine: Examples, its: Examples) -> Interval | None:
    """Return the ratio of tokens per second over the same prompts, and over passes that both had.

    Passes of one number belong together, as a sweep alternates between its runs from pass to pass.
    """
    timed = mine.timed & its.timed
    if not timed.any():
        return None
    shared = numpy.intersect1d(mine.whole_passes(timed), its.whole_passes(timed))
    parts = [examples.timings(timed, shared) for examples in (mine, its)]
    return ratio_interval(numpy.concatenate(parts, axis=2))


def speed_interval(examples: Examples | None) -> Interval | None:
    """Return all tokens per second of decoding, with bounds over prompts and timed passes."""
    if examples is None or not examples.timed.any():
        return None
    timed = examples.timed
    return ratio_interval(examples.timings(timed, examples.whole_passes(timed)))


def _equal_outputs(run: LoggedRun, pair: Pair | None) -> tuple[int, int] | None:
    """Count equal outputs and all; None for sampled ones, which need only follow the same law."""
    if pair is None or run.conditions["sample"] is not False:
        return None
    equal = pair[0].outputs == pair[1].outputs
    return int(equal.sum()), len(equal)


def _quality_changes(pair: Pair | None) -> dict[str, Interval]:
    if pair is None:
        return {}
    mine, its = (examples.scores for examples in pair)
    changes = {name: mine[name] - its[name] for name in QUALITIES if name in mine and name in its}
    shares = {
        name: share_change_interval(change)
        for name, change in changes.items()
        if is_share(name, mine[name], its[name])
    }
    return _in_order(shares, changes)


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
