"""The plot of speed-ups by category of prompts: a row per category, a mark per plan."""

from collections import defaultdict
from functools import partial
from statistics import fmean
from typing import Any

import numpy
from matplotlib.axes import Axes

from analysis.categories import CategoryResult
from analysis.figures import Panel
from analysis.plan_names import drafting_title

# By category, then by plan: a plan may have several seeds.
Grid = dict[str, dict[str, list[CategoryResult]]]
_FONT_POINTS = 7
_BAND = 0.66  # of a row


def category_panels(
    title: str, results: list[tuple[str, CategoryResult]], styles: dict[str, dict[str, Any]]
) -> list[Panel]:
    """Return a panel per decoder from its plans' results, which are named by plan."""
    decoders: dict[tuple, Grid] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for plan, result in results:
        if result.speedup is not None:
            run = result.run
            decoder = run.exit_layer or 0, drafting_title(run), run.num_speculations
            decoders[decoder][result.category][plan].append(result)
    return [
        Panel(
            f"{title}, {drafted}, {drafts} drafts",
            partial(_draw, grid=grid, styles=styles),
        )
        for (_, drafted, drafts), grid in sorted(decoders.items(), key=lambda item: item[0])
    ]


def _draw(axes: Axes, grid: Grid, styles: dict[str, dict[str, Any]]) -> None:
    plans = [plan for plan in styles if any(plan in found for found in grid.values())]
    # Marks of one category share a band of its row, the first plan on top.
    offsets = numpy.linspace(-_BAND / 2, _BAND / 2, len(plans)) if len(plans) > 1 else [0.0]
    names = sorted(grid)
    for plan, offset in zip(plans, offsets, strict=True):
        for row, name in enumerate(names):
            if plan in grid[name]:
                _mark(axes, row + offset, grid[name][plan], styles[plan])
    axes.axvline(1, color="0.75", linestyle=":", zorder=0)
    for edge in range(1, len(names)):
        axes.axhline(edge - 0.5, color="0.92", linewidth=0.6, zorder=0)
    axes.set_yticks(range(len(names)), names, fontsize=_FONT_POINTS)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("speed-up over autoregressive decoding")


def _mark(axes: Axes, place: float, results: list[CategoryResult], style: dict[str, Any]) -> None:
    """Draw a result with its interval, or the mean of several seeds without one."""
    intervals = [result.speedup for result in results if result.speedup]
    value = fmean(interval.value for interval in intervals)
    small = style | {"markersize": 4, "linestyle": ""}
    low, high = intervals[0].low, intervals[0].high
    if len(intervals) > 1 or low is None or high is None:
        axes.plot(value, place, **small)
        return
    bar = [[max(value - low, 0)], [max(high - value, 0)]]
    axes.errorbar(value, place, xerr=bar, elinewidth=0.8, **small)
