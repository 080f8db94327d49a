"""Each plan as a model, and its kept layers as the drafter of the unpruned model.

Letters: P plans, B resamples.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property

import numpy
from scipy.stats import rankdata

from analysis.comparison import SAME_DECODER, SAME_PLAN, Comparison, paired
from analysis.finished_runs import LoggedRun
from analysis.intervals import LEVEL, RESAMPLES, Interval, quotient_interval
from analysis.plan_names import method_place, without_seed
from pruning.plan import PlanKey, PrunePlan

_FEWEST = 5  # plans, of which resamples tell anything
# The scores that data sets are judged by, with their words in tables.
TASK_SCORES = {
    "rouge-l": "ROUGE-L",
    "exact_match": "exact match",
    "pass@1": "pass@1",
    "numeric_match": "numeric match",
}
_SEED = 0
_Key = tuple[str, str, PlanKey]  # conditions, plan, and the model that it makes


@dataclass
class PlanUse:
    """One plan under one set of conditions.

    `model` is its autoregressive run. `drafts` are the runs of the unpruned model that draft with
    the layers which the plan keeps; for the unpruned model itself, those that draft with its first
    layers.
    """

    condition_key: str
    plan: PrunePlan
    model: Comparison | None = None
    drafts: list[Comparison] = field(default_factory=list)

    @property
    def identity(self) -> tuple[str, PlanKey]:
        """The plan that was asked for, and its model, which calibration may decide."""
        return self.name, self.plan.key

    @property
    def name(self) -> str:
        """The plan's name, with its seed."""
        return self.plan.approach

    @property
    def method(self) -> str:
        return self.plan.method

    @property
    def removed_layers(self) -> int:
        return len(self.plan.removed_layers)

    @property
    def place(self) -> tuple:
        """The place among other plans in tables."""
        return method_place(self.method), self.plan.patch or "", self.removed_layers, self.name

    @property
    def label(self) -> str:
        """The plan without its seed."""
        return without_seed(self.name)

    @property
    def run(self) -> LoggedRun:
        """A run of the plan."""
        return (self.model or self.drafts[0]).run

    @property
    def speed_up(self) -> Interval | None:
        """As a model: over the unpruned model, both autoregressive."""
        return self.model.speedups.get(SAME_DECODER) if self.model else None

    def quality(self, name: str) -> float | None:
        """Return the plan's score as a model, from the run that measured it on most prompts."""
        return self.model.measuring(name).run.quality(name) if self.model else None

    @cached_property
    def log_perplexity_ratio(self) -> Interval | None:
        """Nats per token of the same references, pruned minus unpruned; None if not measured."""
        if self.model is None:
            return None
        compared = self.model.measuring("nats_per_token")
        base = compared.baselines.get(SAME_DECODER)
        both = paired(compared.run.examples, base.examples) if base else None
        mine, its = (one.teacher_forced for one in both) if both else (None, None)
        if not (mine and its):
            return None
        return quotient_interval(mine["nats"] - its["nats"], mine["tokens"])

    @property
    def best_draft(self) -> Comparison | None:
        """The fastest run that drafts with the plan."""
        timed = [one for one in self.drafts if one.run.speed]
        return max(timed, key=lambda one: one.run.speed or 0, default=None)

    def draft_of(self, length: int) -> Comparison | None:
        """Return the newest run with drafts of this length."""
        found = [one for one in self.drafts if one.run.num_speculations == length]
        return found[-1] if found else None


Point = tuple[PlanUse, float, float]  # log-perplexity ratio as a model, acceptance as a drafter


@dataclass(frozen=True)
class Correlation:
    """Spearman's coefficient of log-perplexity ratio and acceptance, over the plans of a group.

    Plans that make the same model are one of `plans`. `coefficient` is None where all ratios, or
    all acceptances, are equal.
    """

    run: LoggedRun
    length: int
    plans: int
    coefficient: Interval | None


def plan_uses(comparisons: list[Comparison]) -> list[PlanUse]:
    """Return the uses of every plan, oldest first.

    A run that measured only the quality of runs under other conditions makes no use of its own.
    """
    sources = {one.quality.run.path for one in comparisons if one.quality}
    served = {(one.quality.run.path, one.run.condition_key) for one in comparisons if one.quality}
    found: dict[_Key, PlanUse] = {}
    for one in comparisons:
        run = one.run
        speculative = run.strategy == "self_speculative"
        if not run.decodes_whole_model or (speculative and run.method != "base"):
            continue
        if run.drafting:  # other drafts than those of the plan's layers alone
            continue
        if run.path in sources and (run.path, run.condition_key) not in served:
            continue
        use = PlanUse(run.condition_key, run.record.drafter_plan() or run.record.prune_plan())
        use = found.setdefault((run.condition_key, *use.identity), use)
        if speculative:
            use.drafts.append(one)
        else:
            use.model = one
    return list(found.values())


def groups_of(uses: list[PlanUse]) -> dict[str, list[PlanUse]]:
    """Return the uses by conditions, of groups with a pruned plan."""
    groups: dict[str, list[PlanUse]] = defaultdict(list)
    for use in uses:
        groups[use.condition_key].append(use)
    return {key: group for key, group in groups.items() if any(use.removed_layers for use in group)}


def over_seeds(uses: list[PlanUse]) -> list[list[PlanUse]]:
    """Return random plans of one group that differ only in their seed, where there are several."""
    groups: dict[str, list[PlanUse]] = defaultdict(list)
    for use in uses:
        if use.method == "random":
            groups[use.label].append(use)
    return [group for group in groups.values() if len(group) > 1]


def measured_twice(uses: list[PlanUse], length: int) -> list[Point]:
    """Return each pruned plan with its log-perplexity ratio and its acceptance as a drafter."""
    found = []
    for use in uses:
        draft, ratio = use.draft_of(length), use.log_perplexity_ratio
        acceptance = draft.run.metric("acceptance_rate", "token_weighted") if draft else None
        if use.method != "base" and ratio is not None and acceptance is not None:
            found.append((use, ratio.value, acceptance))
    return found


def lengths_of(uses: list[PlanUse]) -> list[int]:
    """Return the draft lengths of pruned drafters: those of most plans first, then the shortest."""
    counts = Counter(
        one.run.num_speculations
        for use in uses
        for one in use.drafts
        if one.run.drafter and one.run.num_speculations
    )
    return sorted((one for one in counts if one), key=lambda one: (-counts[one], one))


def correlations(uses: list[PlanUse]) -> list[Correlation]:
    """Return the coefficient of each group and draft length with at least three plans."""
    found = []
    for group in groups_of(uses).values():
        for length in sorted(lengths_of(group)):
            one = correlation_of(measured_twice(group, length), length)
            if one and one.plans > 2:
                found.append(one)
    return found


def correlation_of(points: list[Point], length: int) -> Correlation | None:
    """Return the coefficient of the points, or None for no point."""
    first_of: dict[PlanKey, Point] = {}
    for point in points:
        first_of.setdefault(point[0].plan.key, point)
    if not first_of:
        return None
    places_P2 = numpy.array([place for _, *place in first_of.values()])
    run = points[0][0].drafts[0].run
    return Correlation(run, length, len(first_of), spearman(*places_P2.T))


def spearman(x_P: numpy.ndarray, y_P: numpy.ndarray) -> Interval | None:
    """Return Spearman's rank correlation with percentile bounds of the bootstrap over plans.

    No bounds for fewer than five plans; None where all values of x or of y are equal.
    """
    coefficient = _rank_correlation(x_P[None], y_P[None])[0]
    if numpy.isnan(coefficient):
        return None
    plans = len(x_P)
    if plans < _FEWEST:
        return Interval(float(coefficient))
    drawn_BP = numpy.random.default_rng(_SEED).integers(plans, size=(RESAMPLES, plans))
    found_B = _rank_correlation(x_P[drawn_BP], y_P[drawn_BP])
    low, high = numpy.nanquantile(found_B, [LEVEL / 2, 1 - LEVEL / 2])
    return Interval(float(coefficient), float(low), float(high))


def _rank_correlation(x_BP: numpy.ndarray, y_BP: numpy.ndarray) -> numpy.ndarray:
    """Return Pearson's correlation of the ranks in each row, (B,); NaN in rows of equal values."""
    ranks = [rankdata(values_BP, axis=1) for values_BP in (x_BP, y_BP)]
    a_BP, b_BP = (one - one.mean(axis=1, keepdims=True) for one in ranks)
    scale_B = numpy.sqrt((a_BP**2).sum(axis=1) * (b_BP**2).sum(axis=1))
    known_B = numpy.where(scale_B > 0, scale_B, numpy.nan)
    return (a_BP * b_BP).sum(axis=1) / known_B


def predicted_over_measured(one: Comparison | None) -> float | None:
    """Return the predicted speed-up over the measured one, of a speculative run."""
    predicted = one.run.metric("speedup_over_full_steps", "predicted") if one else None
    measured = one.speedup(SAME_PLAN) if one else None
    return predicted / measured if predicted and measured else None
