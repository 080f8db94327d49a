"""Plots of plans measured twice: as a model, and as the drafter of the unpruned model."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.comparison import SAME_PLAN
from analysis.figures import NamedPoint, Panel, Runs, group_titles
from analysis.intervals import Interval
from analysis.plan_styles import (
    METHOD_STYLES,
    WITHOUT_TREND,
    Style,
    method_keys,
    patch_keys,
    patch_style,
)
from analysis.plan_uses import (
    Correlation,
    PlanUse,
    Point,
    correlation_of,
    groups_of,
    lengths_of,
    measured_twice,
    over_seeds,
)

_FIRST_LAYERS_KEY = Line2D(
    [], [], color=METHOD_STYLES["base"]["color"], linewidth=0.8, label="early exit, the best"
)
_SEEDS_KEY = Line2D([], [], color="0.3", linewidth=2.5, alpha=0.4, label="range of random seeds")
Value = Callable[[PlanUse], float | None]


def correlation_panels(uses: list[PlanUse], runs: Runs) -> list[Panel]:
    """Acceptance as a drafter against log-perplexity ratio as a model, a mark for each plan."""
    panels = []
    groups = groups_of(uses)
    titles = _titles(groups, runs)
    for key, group in groups.items():
        for length in lengths_of(group)[:1]:
            points = measured_twice(group, length)
            found = correlation_of(points, length)
            if found and found.plans > 1:
                title = f"{titles[key]}, k = {length}\n{_rank_words(found)}"
                panels.append(Panel(title, partial(_draw_correlation, points=points)))
    return panels


def _rank_words(found: Correlation) -> str:
    plans, coefficient = f"{found.plans} distinct plans", found.coefficient
    if coefficient is None:
        return f"{plans}, all equal in one of the two"
    bounds = ""
    if coefficient.low is not None:
        bounds = f" [{coefficient.low:.2f}, {coefficient.high:.2f}]"
    return f"Spearman {coefficient.value:.2f}{bounds}, {plans}"


def _draw_correlation(axes: Axes, points: list[Point]) -> list[NamedPoint] | None:
    for use, ratio, acceptance in points:
        axes.plot(ratio, acceptance, **_mark(use))
    axes.set_xlabel("log-perplexity ratio (nats per token)")
    axes.set_ylabel("acceptance as drafter (share)")
    axes.set_ylim(bottom=0)
    axes.margins(0.08)
    return [NamedPoint(ratio, accepted, use.label) for use, ratio, accepted in points]


def uses_panels(uses: list[PlanUse], runs: Runs, quality: str, label: str) -> list[Panel]:
    """Three panels of each group: quality against speed-up as a model; speed-up and acceptance.

    The last two are of the plan as a drafter, over the layers that it removes.
    """
    groups = groups_of(uses)
    titles = _titles(groups, runs)
    panels = []
    for key, group in groups.items():
        if not any(use.drafts for use in group if use.method != "base"):
            continue
        panels += [
            Panel(
                f"{titles[key]}, as models",
                partial(_draw_models, uses=group, quality=quality, label=label),
            ),
            Panel(f"{titles[key]}, as drafters", partial(_draw_speedups, uses=group)),
            Panel(f"{titles[key]}, as drafters", partial(_draw_acceptance, uses=group)),
        ]
    return panels


def uses_keys(uses: list[PlanUse]) -> list[Line2D]:
    """Return the keys of methods, patches and seeds."""
    found = {use.method for use in uses}
    keys = [
        *method_keys(found - WITHOUT_TREND - {"base"}, linestyle="-", linewidth=1),
        *method_keys(found & (WITHOUT_TREND | {"base"}), linestyle=""),
        *patch_keys({"patch": use.plan.patch} for use in uses),
    ]
    if any(use.drafts for use in uses if use.method == "base"):
        keys.append(_FIRST_LAYERS_KEY)
    return [*keys, _SEEDS_KEY] if over_seeds(uses) else keys


def correlation_keys(uses: list[PlanUse]) -> list[Line2D]:
    """Return the keys of the methods that remove layers, and of patches."""
    found = {use.method for use in uses} - {"base"}
    return method_keys(found, linestyle="") + patch_keys({"patch": use.plan.patch} for use in uses)


def _draw_models(axes: Axes, uses: list[PlanUse], quality: str, label: str) -> None:
    points = []
    for use in uses:
        speed, score = _value(use.speed_up), use.quality(quality)
        speed = 1.0 if use.method == "base" else speed
        if speed is not None and score is not None:
            points.append((use, speed, score))
    place_of = {use.identity: (x, y) for use, x, y in points}
    for group in _sequences(use for use, *_ in points):
        _connect(axes, group[0], [place_of[use.identity] for use in group])
    for use, speed, score in points:
        axes.plot(speed, score, **_mark(use))
    axes.set_xlabel("speed-up over the unpruned model")
    axes.set_ylabel(label)


def _draw_speedups(axes: Axes, uses: list[PlanUse]) -> None:
    _draw_drafters(axes, uses, _best_speedup)
    axes.axhline(1, color="0.75", linestyle=":", zorder=0)
    axes.set_ylabel("speed-up as drafter (fastest length)")


def _draw_acceptance(axes: Axes, uses: list[PlanUse]) -> None:
    lengths = lengths_of(uses)
    _draw_drafters(axes, uses, lambda use: _acceptance(use, lengths[0]))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"acceptance, k = {lengths[0]} (share)")


def _draw_drafters(axes: Axes, uses: list[PlanUse], value: Value) -> None:
    """Draw a number of each pruned drafter over the layers that it lacks, and ranges of seeds."""
    pruned = [use for use in uses if use.method != "base" and value(use) is not None]
    for group in _sequences(pruned):
        _connect(axes, group[0], [(use.removed_layers, value(use)) for use in group])
    for use in pruned:
        axes.plot(use.removed_layers, value(use) or 0.0, **_mark(use))
    for seeds in over_seeds(pruned):
        values = [value(use) or 0.0 for use in seeds]
        place = fmean(use.removed_layers for use in seeds)
        colour = METHOD_STYLES["random"]["color"]
        axes.plot([place] * 2, [min(values), max(values)], color=colour, linewidth=2.5, alpha=0.4)
    whole = [found for use in uses if use.method == "base" and (found := value(use))]
    if whole:
        axes.axhline(whole[0], color=METHOD_STYLES["base"]["color"], linewidth=0.8, zorder=0)
    axes.set_xlabel("layers removed from the drafter")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _mark(use: PlanUse) -> Style:
    return METHOD_STYLES[use.method] | patch_style({"patch": use.plan.patch}) | {"linestyle": ""}


def _sequences(uses: Iterable[PlanUse]) -> list[list[PlanUse]]:
    """Return the plans of each criterion and patch that remove more and more layers."""
    groups: dict[tuple[str, str | None], list[PlanUse]] = defaultdict(list)
    for use in uses:
        if use.method not in WITHOUT_TREND | {"base"}:
            groups[use.method, use.plan.patch].append(use)
    return [sorted(group, key=lambda use: use.removed_layers) for group in groups.values()]


def _connect(axes: Axes, first: PlanUse, places: list[tuple[Any, Any]]) -> None:
    line = ":" if first.plan.patch else "-"
    colour = METHOD_STYLES[first.method]["color"]
    axes.plot(*zip(*places, strict=True), color=colour, linestyle=line, linewidth=1, zorder=1)


def _best_speedup(use: PlanUse) -> float | None:
    return use.best_draft.speedup(SAME_PLAN) if use.best_draft else None


def _acceptance(use: PlanUse, length: int) -> float | None:
    rates = (
        one.run.metric("acceptance_rate", "token_weighted")
        for one in use.drafts
        if one.run.num_speculations == length
    )
    return max((rate for rate in rates if rate is not None), default=None)


def _value(interval: Interval | None) -> float | None:
    return interval.value if interval else None


def _titles(groups: dict[str, list[PlanUse]], runs: Runs) -> dict[str, str]:
    return group_titles([use.run for group in groups.values() for use in group], runs)
