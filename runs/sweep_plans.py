"""The plans of a sweep's grid, as the flags that decide them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from arguments.drafting import DraftArguments
from arguments.pruning import METHODS, CalibrationArguments, PruneArguments, named_layers
from runs.sweep_flags import PLAN_LISTS, GridArguments

_SEEDS = 3  # of random plans: one seed alone would not show how much plans of a kind vary
# Flags that are reset in plans that measure nothing, so that they do not name a calibration.
_CALIBRATION = (
    *("calibration_dataset", "calibration_path", "calibration_excludes"),
    *("calibration_text", "calibration_steps"),
)


def plans_of(
    grid: GridArguments, calibration: CalibrationArguments, counts: bool = False
) -> list[PruneArguments]:
    """Return the flags of each plan, by method, then by what the method's lists hold.

    Raises `UsageError` for flags of calibration if no plan measures anything. `counts`: drafters
    count the tokens of the calibration texts.
    """
    plans = [
        _with_calibration(calibration, changes | {"prune_method": method, "prune_patch": patch})
        for method in dict.fromkeys(grid.prune_methods)
        for changes in _changes(grid, method, calibration.prune_seed)
        for patch in dict.fromkeys(grid.prune_patches if method != "base" else ["none"])
    ]
    if not counts and not any(plan.calibrates() for plan in plans):
        calibration.check_unused()
    return plans


def with_plan(draft: DraftArguments, plan: PruneArguments) -> DraftArguments:
    """Return the flags of a drafter that keeps the layers of this plan."""
    return dataclasses.replace(
        draft,
        draft_prune_method=plan.prune_method,
        draft_prune_n=plan.prune_n,
        draft_dropout_threshold=plan.dropout_threshold,
        draft_prune_layers=plan.prune_layers,
        draft_prune_patch=plan.prune_patch,
    )


def calibrated_like(plan: PruneArguments, other: CalibrationArguments) -> PruneArguments:
    """Return a plan's flags with the seed and the calibration of the other's."""
    names = (item.name for item in dataclasses.fields(CalibrationArguments))
    return dataclasses.replace(plan, **{name: getattr(other, name) for name in names})


def _with_calibration(calibration: CalibrationArguments, changes: dict[str, Any]) -> PruneArguments:
    values = dataclasses.asdict(calibration) | changes
    if not METHODS[values["prune_method"]].calibrates and values["prune_patch"] == "none":
        unset = CalibrationArguments()
        values |= {name: getattr(unset, name) for name in _CALIBRATION}
    return PruneArguments(**values)


def _different(name: str, values: list[Any]) -> list[Any]:
    """Return the values without repetition; 3,4 and 4,3 name the same layers."""
    found: dict[Any, Any] = {}
    for value in values:
        found.setdefault(named_layers(name, value) if name == "prune_layers" else value, value)
    return list(found.values())


def _changes(grid: GridArguments, method: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the flags in which the plans of a method differ, apart from their patch."""
    if not METHODS[method].needs:
        yield {}
        return
    for name in grid.lists_of(method):
        for value in _different(name, getattr(grid, name)):
            changes = {PLAN_LISTS[name]: value}
            if method != "random":
                yield changes
                continue
            for one in dict.fromkeys(grid.prune_seeds or range(seed, seed + _SEEDS)):
                yield changes | {"prune_seed": one}
