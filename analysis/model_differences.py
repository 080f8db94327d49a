"""Tests whether a plan costs one model more than another, on the same prompts.

Letters: E prompts, C columns.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy

from analysis.comparison import SAME_DECODER, Comparison
from analysis.intervals import Interval, mean_intervals
from analysis.logged_examples import Examples
from analysis.plan_uses import PlanUse, lengths_of, plan_uses
from analysis.significance import FEWEST, holm, sign_flip_p

ACCEPTANCE = "acceptance as drafter"
# Changes that are compared, from the unpruned model to the plan as a model.
CHANGES = ("rouge-l", "exact_match", "pass@1", "numeric_match", "nats_per_token")


@dataclass(frozen=True)
class _Pairs:
    """What a plan does to a score of each prompt, in one model and in another, (E,)."""

    use: PlanUse
    other: PlanUse
    score: str
    mine_E: numpy.ndarray
    its_E: numpy.ndarray


@dataclass(frozen=True)
class ModelDifference:
    """One plan in two models: the mean of a score's change in each, and their difference.

    Of `ACCEPTANCE`, the mean of each prompt's share instead of a change. `adjusted_p` is Holm's
    over all differences found together.
    """

    use: PlanUse
    other: PlanUse
    score: str
    pairs: int
    mine: Interval
    its: Interval
    difference: Interval
    p: float
    adjusted_p: float


def model_differences(comparisons: list[Comparison]) -> list[ModelDifference]:
    """Compare every two models under otherwise equal conditions, plan by plan.

    Models with tokens of their own share no conditions. A plan is known by its name: calibration
    may decide other layers in each model.
    """
    found = [pairs for mine, its in _groups(comparisons) for pairs in _pairs(mine, its)]
    tested = [_tested(pairs) for pairs in found]
    adjusted = holm([p for *_, p in tested])
    return [
        ModelDifference(
            use=pairs.use,
            other=pairs.other,
            score=pairs.score,
            pairs=len(pairs.mine_E),
            mine=mine,
            its=its,
            difference=difference,
            p=p,
            adjusted_p=adjusted_p,
        )
        for pairs, (mine, its, difference, p), adjusted_p in zip(
            found, tested, adjusted, strict=True
        )
    ]


def _groups(comparisons: list[Comparison]) -> Iterator[tuple[list[PlanUse], list[PlanUse]]]:
    """Return the plans of every two models that differ in nothing else, in the models' order."""
    by_law: dict[str, dict[tuple, list[PlanUse]]] = defaultdict(lambda: defaultdict(list))
    for use in plan_uses(comparisons):
        conditions = dict(use.run.conditions)
        model = use.run.model or "", conditions.pop("model")
        by_law[json.dumps(conditions, sort_keys=True)][model].append(use)
    for models in by_law.values():
        yield from combinations([models[name] for name in sorted(models)], 2)


def _pairs(mine: list[PlanUse], its: list[PlanUse]) -> Iterator[_Pairs]:
    length = next(iter(lengths_of([*mine, *its])), None)
    others = {use.name: use for use in its}
    for use in mine:
        other = others.get(use.name)
        if other is None or use.method == "base":
            continue
        for score in CHANGES:
            changes = _aligned(*(_changes(one, score) for one in (use, other)))
            if changes is not None:
                yield _Pairs(use, other, score, *changes)
        shares = _aligned(*(_acceptance(one, length) for one in (use, other)))
        if shares is not None:
            yield _Pairs(use, other, ACCEPTANCE, *shares)


_ByPrompt = dict[str, float]  # under the identities of prompts


def _changes(use: PlanUse, score: str) -> _ByPrompt:
    """Return each prompt's change from the unpruned model; empty if it was not measured."""
    compared = use.model.measuring(score) if use.model else None
    base = compared.baselines.get(SAME_DECODER) if compared else None
    if compared is None or base is None:
        return {}
    mine, its = (_scores(one.examples, score) for one in (compared.run, base))
    return {prompt: mine[prompt] - its[prompt] for prompt in mine.keys() & its.keys()}


def _scores(examples: Examples | None, score: str) -> _ByPrompt:
    if examples is None or score not in examples.scores:
        return {}
    return _by_prompt(examples, examples.scores[score])


def _acceptance(use: PlanUse, length: int | None) -> _ByPrompt:
    """Return the share of accepted drafts of each prompt that had drafts of this length."""
    draft = use.draft_of(length) if length else None
    examples = draft.run.examples if draft else None
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


def _tested(pairs: _Pairs) -> tuple[Interval, Interval, Interval, float]:
    difference_E = pairs.mine_E - pairs.its_E
    values_EC = numpy.stack([pairs.mine_E, pairs.its_E, difference_E], axis=1)
    mine, its, difference = mean_intervals(values_EC)
    return mine, its, difference, float(sign_flip_p(difference_E[:, None])[0])
