"""Heat maps of a sweep: exit layers against draft lengths, a panel per plan and data set."""

import re
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from analysis.comparison import SAME_PLAN, Comparison
from analysis.figures import PANELS, Panel, common_heading, group_titles, make_figure, save_figure
from pruning.plan import PlanKey


class Measure(NamedTuple):
    """A number of each run, with the label of its colour bar and the format of a number."""

    label: str
    form: str
    value_of: Callable[[Comparison], float | None]


MEASURES = {  # by file name
    "sweep_tokens_per_second": Measure(
        "decoding speed (tokens/s)", ".1f", lambda one: one.run.speed
    ),
    "sweep_speedup": Measure(
        "speed-up over autoregressive decoding", ".2f", lambda one: one.speedup(SAME_PLAN)
    ),
    "sweep_acceptance": Measure(
        "accepted (share of drafts)",
        ".2f",
        lambda one: one.run.metric("acceptance_rate", "token_weighted"),
    ),
}
_COLOURS = "cividis"  # perceptually uniform, for colour-blind readers too
_LIGHT = 120 / 256  # from here on, its colours contrast more with black than with white
_SMALLEST_PRINT = 3.5  # points
_POINTS_AN_INCH = 72
_BEST_KEY = Line2D(
    [],
    [],
    linestyle="",
    marker="s",
    markersize=10,
    markerfacecolor="none",
    markeredgecolor="black",
    markeredgewidth=2.5,
    label="best run",
)


def make_heat_maps(comparisons: list[Comparison], folder: Path) -> None:
    """Write every heat map as PNG and PDF, on several pages if a page cannot hold all panels.

    A grid of one exit layer and one draft length has no map.
    """
    drawn = [one for one in comparisons if one.run.exit_layer and one.run.num_speculations]
    points = {(one.run.exit_layer, one.run.num_speculations) for one in drawn}
    for name, measure in MEASURES.items():
        for old in _pages(name, folder):  # an earlier sweep may have had more
            old.unlink()
        values = [value for value in map(measure.value_of, drawn) if value is not None]
        if values and len(points) > 1:
            panels = _panels(drawn, measure, Normalize(min(values), max(values)))
            _save_pages(panels, folder / name, common_heading([one.run for one in drawn]))


def _pages(name: str, folder: Path) -> list[Path]:
    """Return the files of one heat map, and no file that a user has named similarly."""
    form = re.compile(rf"{name}(_\d+)?\.(png|pdf)")
    return [path for path in folder.iterdir() if form.fullmatch(path.name)]


def _save_pages(panels: list[Panel], path: Path, heading: str) -> None:
    for page, first in enumerate(range(0, len(panels), PANELS), start=1):
        figure = make_figure(panels[first : first + PANELS], [_BEST_KEY], heading)
        save_figure(figure, path if page == 1 else path.with_name(f"{path.name}_{page}"))


def _panels(drawn: list[Comparison], measure: Measure, shades: Normalize) -> list[Panel]:
    """Return a panel for every plan on every data set; all share their shades."""
    titles = group_titles([one.run for one in drawn])
    studies: dict[tuple[str, str, PlanKey, str], list[Comparison]] = defaultdict(list)
    for one in drawn:
        plan = one.run.record.prune_plan()
        studies[one.run.condition_key, plan.approach, plan.key, one.run.drafting].append(one)
    return [
        Panel(
            ", ".join(filter(None, [titles[condition_key], plan, drafting])),
            partial(_draw, study=study, measure=measure, shades=shades),
        )
        for (condition_key, plan, _, drafting), study in studies.items()
    ]


def _draw(axes: Axes, study: list[Comparison], measure: Measure, shades: Normalize) -> None:
    measured = {
        (one.run.exit_layer, one.run.num_speculations): measure.value_of(one) for one in study
    }
    grid = pandas.Series(measured, dtype=float).unstack()
    image = axes.imshow(grid, origin="lower", cmap=_COLOURS, norm=shades, aspect="auto")
    axes.set_xticks(range(grid.shape[1]), grid.columns)
    size = _print_size(axes, len(grid), 10)
    axes.set_yticks(range(len(grid)), grid.index, fontsize=size)
    axes.set_xlabel("drafted tokens per round")
    axes.set_ylabel("exit layer")
    axes.figure.colorbar(image, ax=axes).set_label(measure.label)
    values = grid.to_numpy()
    _write_numbers(axes, values, measure.form, shades)
    _mark_best(axes, values)


def _write_numbers(axes: Axes, values: numpy.ndarray, form: str, shades: Normalize) -> None:
    """Write the number of every run, where there is room for it."""
    size = min(_print_size(axes, len(values), 8), 24 / values.shape[1] + 3)
    if size < _SMALLEST_PRINT:
        return
    for row, column in numpy.argwhere(numpy.isfinite(values)):
        value = float(values[row, column])
        shade = readable_on(shades(value))
        text = format(value, form)
        axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=size)


def readable_on(place: float) -> str:
    """Return black or white, whichever contrasts more with the colour here (WCAG's luminance)."""
    return "black" if place >= _LIGHT else "white"


def _mark_best(axes: Axes, values: numpy.ndarray) -> None:
    if numpy.isfinite(values).any():
        row, column = numpy.unravel_index(numpy.nanargmax(values), values.shape)
        # A wide frame would cover the number of a low row.
        black = _print_size(axes, len(values), 12) / 6
        for width, shade in ((2 * black, "white"), (black, "black")):
            corner = column - 0.5, row - 0.5
            frame = Rectangle(corner, 1, 1, fill=False, linewidth=width, edgecolor=shade)
            frame.set_clip_on(False)
            axes.add_patch(frame)


def _print_size(axes: Axes, rows: int, largest: float) -> float:
    """Return a size of print, in points, at which so many rows fit below each other."""
    height = axes.bbox.height / axes.figure.dpi * _POINTS_AN_INCH
    return min(largest, 0.8 * height / rows)
