"""Heat maps of a sweep: exit layers against draft lengths, a panel per plan and data set."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from analysis.comparison import SAME_PLAN, Comparison
from analysis.figures import PANELS, Panel, common_heading, group_titles, make_figure, save_figure

Measure = Callable[[Comparison], float | None]
# By file name: the label of the colour bar, the format of a number, and the number.
MEASURES: dict[str, tuple[str, str, Measure]] = {
    "sweep_tokens_per_second": (
        "decoding speed (tokens/s)",
        ".1f",
        lambda one: one.run.metric("tokens_per_second", "token_weighted"),
    ),
    "sweep_speedup": (
        "speed-up over autoregressive decoding",
        ".2f",
        partial(Comparison.speedup, name=SAME_PLAN),
    ),
    "sweep_acceptance": (
        "accepted (share of drafts)",
        ".2f",
        lambda one: one.run.metric("acceptance_rate", "token_weighted"),
    ),
}
_COLOURS = "cividis"  # perceptually uniform, for colour-blind readers too
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


@dataclass(frozen=True)
class _Scale:
    """One measure, and the limits of the shades that all its panels share."""

    label: str
    form: str
    measure: Measure
    low: float
    high: float


def make_heat_maps(comparisons: list[Comparison], folder: Path) -> None:
    """Write every heat map as PNG and PDF, on several pages if a page cannot hold all panels.

    A grid of one exit layer and one draft length has no map.
    """
    drawn = [one for one in comparisons if one.run.num_speculations]
    points = {(one.run.exit_layer, one.run.num_speculations) for one in drawn}
    for name, (label, form, measure) in MEASURES.items():
        for old in _pages(name, folder):  # an earlier sweep may have had more
            old.unlink()
        values = [value for value in map(measure, drawn) if value is not None]
        if values and len(points) > 1:
            panels = _panels(drawn, _Scale(label, form, measure, min(values), max(values)))
            _save_pages(panels, folder / name, common_heading([one.run for one in drawn]))


def _pages(name: str, folder: Path) -> list[Path]:
    """Return the files of one heat map, and no file that a user has named similarly."""
    form = re.compile(rf"{name}(_\d+)?\.(png|pdf)")
    return [path for path in folder.iterdir() if form.fullmatch(path.name)]


def _save_pages(panels: list[Panel], path: Path, heading: str) -> None:
    for page, first in enumerate(range(0, len(panels), PANELS), start=1):
        figure = make_figure(panels[first : first + PANELS], [_BEST_KEY], heading)
        save_figure(figure, path if page == 1 else path.with_name(f"{path.name}_{page}"))


def _panels(drawn: list[Comparison], scale: _Scale) -> list[Panel]:
    """Return a panel for every plan on every data set."""
    titles = group_titles([one.run for one in drawn])
    studies: dict[str, list[Comparison]] = defaultdict(list)
    for one in drawn:
        plan = f"{one.run.method} {one.run.param}".strip()
        studies[f"{titles[one.run.condition_key]}, {plan}"].append(one)
    return [
        Panel(title, partial(_draw, study=study, scale=scale)) for title, study in studies.items()
    ]


def _draw(axes: Axes, study: list[Comparison], scale: _Scale) -> None:
    measured = {
        (run.exit_layer, run.num_speculations): scale.measure(one)
        for one in study
        if (run := one.run).exit_layer and run.num_speculations
    }
    exits = sorted({exit_layer for exit_layer, _ in measured})
    drafts = sorted({count for _, count in measured})
    values = numpy.full((len(exits), len(drafts)), numpy.nan)
    for (exit_layer, count), value in measured.items():
        if value is not None:
            values[exits.index(exit_layer), drafts.index(count)] = value
    image = axes.imshow(
        values, origin="lower", cmap=_COLOURS, vmin=scale.low, vmax=scale.high, aspect="auto"
    )
    axes.set_xticks(range(len(drafts)), list(map(str, drafts)))
    size = _print_size(axes, len(exits), 10)
    axes.set_yticks(range(len(exits)), list(map(str, exits)), fontsize=size)
    axes.set_xlabel("drafted tokens per round")
    axes.set_ylabel("exit layer")
    axes.figure.colorbar(image, ax=axes).set_label(scale.label)
    _write_numbers(axes, values, image, scale.form)
    _mark_best(axes, values)


def _write_numbers(axes: Axes, values: numpy.ndarray, image: AxesImage, form: str) -> None:
    """Write the number of every run, where there is room for it."""
    size = min(_print_size(axes, len(values), 8), 24 / values.shape[1] + 3)
    for (row, column), value in numpy.ndenumerate(values):
        if size >= _SMALLEST_PRINT and numpy.isfinite(value):
            shade = _readable_on(image.to_rgba(numpy.array([value]))[0])
            text = format(value, form)
            axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=size)


def _readable_on(colour: numpy.ndarray) -> str:
    """Return black or white, whichever contrasts more by the WCAG's relative luminance."""
    shades = colour[:3]
    linear = numpy.where(shades <= 0.04045, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4)
    luminance = numpy.dot((0.2126, 0.7152, 0.0722), linear)
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


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
