"""Tests whether a plan costs one model more than another, on the same prompts.

Letters: E prompts, C columns.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import NamedTuple

import numpy

from analysis.comparison import SAME_DECODER, Comparison, is_share, paired
from analysis.finished_runs import LoggedRun
from analysis.intervals import Interval, mean_intervals, share_change_interval
from analysis.logged_examples import Examples
from analysis.plan_uses import TASK_SCORES, PlanUse, lengths_of, plan_uses
from analysis.significance import FEWEST, holm, sign_flip_p

ACCEPTANCE = "acceptance as drafter"
# Changes that are compared, from the unpruned model to the plan as a model.
CHANGES = (*TASK_SCORES, "nats_per_token")


@dataclass(frozen=True)
class _Pairs:
    """Each prompt's change of a score under one plan, in one model and in another, (E,).

    `runs` measured the plan in either model. `of_shares`: the score is 0 or 1.
    """

    use: PlanUse
    other: PlanUse
    score: str
    runs: tuple[LoggedRun, LoggedRun]
    of_shares: bool
    mine_E: numpy.ndarray
    its_E: numpy.ndarray

    @property
    def measurement(self) -> tuple:
        """Plans under other conditions may have their quality from the same runs."""
        return self.score, *(run.path for run in self.runs)

    @property
    def test(self) -> tuple:
        """Plans that make the same models, or ruin both, are one test of these on these prompts."""
        asked = [(run.conditions["model"], run.conditions["prompts"]) for run in self.runs]
        return self.score, *asked, self.mine_E.tobytes(), self.its_E.tobytes()


@dataclass(frozen=True)
class ModelDifference:
    """One plan in two models: the mean of a score's change in each, and their difference.

    Of `ACCEPTANCE`, the mean of each prompt's share instead of a change. `adjusted_p` is Holm's
    over all differences found together; equal values of all prompts are one test.
    """

    use: PlanUse
    other: PlanUse
    score: str
    runs: tuple[LoggedRun, LoggedRun]
    pairs: int
    change: Interval
    other_change: Interval
    difference: Interval
    p: float
    adjusted_p: float


def model_differences(comparisons: list[Comparison]) -> list[ModelDifference]:
    """Compare every two models under otherwise equal conditions, plan by plan.

    Models with tokens of their own share no conditions. A plan is known by its name: calibration
    may decide other layers in each model.
    """
    every = (pairs for mine, its in _groups(comparisons) for pairs in _pairs(mine, its))
    found = list({pairs.measurement: pairs for pairs in every}.values())
    p = {pairs.test: _p(pairs) for pairs in found}
    adjusted = dict(zip(p, holm([*p.values()]), strict=True))
    return [_difference(pairs, p[pairs.test], adjusted[pairs.test]) for pairs in found]


def _groups(comparisons: list[Comparison]) -> Iterator[tuple[list[PlanUse], list[PlanUse]]]:
    """Return the plans of every two models that differ in nothing else, by the models' names."""
    by_law: dict[str, dict[str, list[PlanUse]]] = defaultdict(lambda: defaultdict(list))
    for use in plan_uses(comparisons):
        conditions = dict(use.run.conditions)
        fingerprint = conditions.pop("model")  # one checkpoint may stand under several names
        by_law[json.dumps(conditions, sort_keys=True)][fingerprint].append(use)
    for models in by_law.values():
        ordered = sorted(models, key=lambda one: (models[one][0].run.model or "", one))
        yield from combinations([models[one] for one in ordered], 2)


def _pairs(mine: list[PlanUse], its: list[PlanUse]) -> Iterator[_Pairs]:
    length = next(iter(lengths_of([*mine, *its])), None)
    for both in _same_plans(mine, its):
        found: dict[str, _Pairs] = {}
        for use, other in both:
            for pairs in _compared(use, other, length):
                found.setdefault(pairs.score, pairs)
        yield from found.values()


def _same_plans(mine: list[PlanUse], its: list[PlanUse]) -> Iterator[list[tuple[PlanUse, PlanUse]]]:
    """Yield the pruned plans of each name: those of the same layers first, then the newest.

    Other calibration gives a name to other layers.
    """
    named: dict[str, list[tuple[PlanUse, PlanUse]]] = defaultdict(list)
    for use, other in product(mine, its):
        if use.name == other.name and use.method != "base":
            named[use.name].append((use, other))
    for both in named.values():
        newest_first = both[::-1]
        yield sorted(newest_first, key=lambda pair: pair[0].plan.key != pair[1].plan.key)


def _compared(use: PlanUse, other: PlanUse, length: int | None) -> Iterator[_Pairs]:
    mine, its = _measured(use, length), _measured(other, length)
    for score in (name for name in mine if name in its):
        both = mine[score], its[score]
        aligned = _aligned(*(one.values for one in both))
        if aligned is not None:
            runs, of_shares = (both[0].run, both[1].run), all(one.of_shares for one in both)
            yield _Pairs(use, other, score, runs, of_shares, *aligned)


_ByPrompt = dict[str, float]  # under the identities of prompts


class _Measured(NamedTuple):
    """The run that measured a score, and what it says of each prompt."""

    run: LoggedRun
    values: _ByPrompt
    of_shares: bool = False


def _measured(use: PlanUse, length: int | None) -> dict[str, _Measured]:
    """Return each score that the plan has as a model, and its acceptance as a drafter."""
    found = {}
    for score in CHANGES:
        compared = use.model and use.model.measuring(score)
        base = compared and compared.baselines.get(SAME_DECODER)
        if compared and base:
            found[score] = _changes(compared.run, base, score)
    draft = use.draft_of(length) if length else None
    if draft:
        found[ACCEPTANCE] = _Measured(draft.run, _acceptance(draft.run.examples))
    return found


def _changes(run: LoggedRun, base: LoggedRun, score: str) -> _Measured:
    """Return each prompt's change from the unpruned model; of no prompt if it was not measured."""
    both = paired(run.examples, base.examples)
    if both is None or not all(score in one.scores for one in both):
        return _Measured(run, {})
    mine, its = (one.scores[score] for one in both)
    return _Measured(run, _by_prompt(both[0], mine - its), is_share(score, mine, its))


def _acceptance(examples: Examples | None) -> _ByPrompt:
    """Return the share of accepted drafts of each prompt that had drafts."""
    if examples is None:
        return {}
    drafted_E = numpy.where(examples.drafted_tokens > 0, examples.drafted_tokens, numpy.nan)
    shares = _by_prompt(examples, examples.accepted_tokens / drafted_E)
    return {prompt: share for prompt, share in shares.items() if not numpy.isnan(share)}


def _by_prompt(examples: Examples, values_E: numpy.ndarray) -> _ByPrompt:
    return dict(zip(examples.example_ids.tolist(), values_E.tolist(), strict=True))


def _aligned(mine: _ByPrompt, its: _ByPrompt) -> tuple[numpy.ndarray, numpy.ndarray] | None:
    """Return the values of the prompts that both have; None for fewer than a test needs."""
    shared = sorted(mine.keys() & its.keys())
    if len(shared) < FEWEST:
        return None
    return numpy.array([mine[one] for one in shared]), numpy.array([its[one] for one in shared])


def _p(pairs: _Pairs) -> float:
    return float(sign_flip_p((pairs.mine_E - pairs.its_E)[:, None])[0])


def _difference(pairs: _Pairs, p: float, adjusted_p: float) -> ModelDifference:
    differences_E = pairs.mine_E - pairs.its_E
    values_EC = numpy.stack([pairs.mine_E, pairs.its_E, differences_E], axis=1)
    change, other_change, difference = mean_intervals(values_EC)
    if pairs.of_shares:
        change, other_change = map(share_change_interval, (pairs.mine_E, pairs.its_E))
    return ModelDifference(
        use=pairs.use,
        other=pairs.other,
        score=pairs.score,
        runs=pairs.runs,
        pairs=len(differences_E),
        change=change,
        other_change=other_change,
        difference=difference,
        p=p,
        adjusted_p=adjusted_p,
    )
