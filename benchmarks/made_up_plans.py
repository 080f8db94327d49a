"""Made-up plans of every criterion, for a model of 32 layers."""

import math
import random
from typing import Any

from benchmarks.made_up_runs import LAYERS, angular_plan
from pruning.plan import PrunePlan


def plan_of(method: str, count: int, seed: int = 42, patch: str | None = None) -> PrunePlan:
    """Return a plan that removes `count` layers, with scores where the criterion has them.

    Each criterion likes deeper layers, and has its own opinion of every layer.
    """
    if method == "angular":
        return _patched(angular_plan(count, first=LAYERS - 2 - count), patch)
    if method == "random":
        removed = random.Random(seed).sample(range(LAYERS), count)
        return _plan("random", removed, count, patch, prune_seed=seed)
    if method in ("last", "layers"):
        removed = list(range(LAYERS - 1 - count, LAYERS - 1))
        return _plan(method, removed, count if method == "last" else None, patch)
    scores = _scores(method)
    order = sorted(range(LAYERS - 1), key=scores.__getitem__)
    removed = order[:count]
    held: dict[str, Any] = {"layers": scores, "order": order}
    if method == "perplexity":
        held = {"perplexity": 9.5, "steps": [_step(place, order) for place in range(count)]}
    return _plan(method, removed, count, patch, scores=held)


def _plan(
    method: str, removed: list[int], count: int | None, patch: str | None, **more: Any
) -> PrunePlan:
    kept = tuple(layer for layer in range(LAYERS) if layer not in removed)
    return PrunePlan(method, LAYERS, kept, prune_n=count, patch=patch, **more)


def _patched(plan: PrunePlan, patch: str | None) -> PrunePlan:
    values = plan.to_dict() | {"patch": patch}
    return PrunePlan.from_dict(values)


def _scores(method: str) -> list[float]:
    """Return a score for each layer, which falls with depth but for the first and last layers."""
    draws = random.Random(method)
    spread = 3.0 if method == "taylor" else 0.5
    return [
        math.exp(spread * (draws.gauss(0, 0.5) - layer / LAYERS) + 2 * (layer in (0, LAYERS - 1)))
        for layer in range(LAYERS)
    ]


def _step(place: int, order: list[int]) -> dict[str, Any]:
    perplexity = 9.5 * 1.2 ** (place + 1)
    left = set(range(LAYERS)) - set(order[:place])
    return {
        "layer": order[place],
        "perplexity": perplexity,
        "candidates": {str(layer): perplexity * (1 + 0.01 * layer) for layer in sorted(left)},
    }
