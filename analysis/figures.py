"""Figures of several panels, with titles that differ, saved as PNG and PDF."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from analysis.comparison import telling
from analysis.finished_runs import LoggedRun
from files.writing import whole_file

PANELS = 12  # per figure
LABELLED = 12  # most points with names per panel
# Four colours of Okabe and Ito and four more, with a contrast of at least 2.9 on white; base plans
# are black.
BLACK = "#000000"
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#6A00F4", "#5C4A00", "#8B0A50", "#5B8DEF"),
)
_PANEL_INCHES = (4.2, 3.3)
_TITLE_CHARACTERS = 48  # per line above a panel
_LABEL_POINTS = 7
_MARK_POINTS = 6  # half the side of the square that a mark covers
_COINCIDE_POINTS = 3
_DISTANCES = (9, 14, 20, 28, 38, 50)  # from a point to its label, in typographic points
_DIRECTIONS = (
    *((1, 0), (1, 0.5), (1, -0.5), (-1, 0), (-1, 0.5), (-1, -0.5)),
    *((1, 1), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, -1)),
)

_HEADING = ("model", "dtype", "device")

Runs = list[LoggedRun]


class NamedPoint(NamedTuple):
    """A point of a plot, in data coordinates."""

    x: float
    y: float
    name: str


@dataclass(frozen=True)
class Panel:
    """One part of a figure; `draw` returns the points that need names, or None."""

    title: str
    draw: Callable[[Axes], list[NamedPoint] | None]


def make_figure(panels: list[Panel], keys: list[Line2D], heading: str) -> Figure:
    """Return the panels in a grid, under a heading and above a legend of the keys."""
    columns = min(len(panels), 2 if len(panels) in (2, 4) else 3)
    rows = -(-len(panels) // columns)
    width, height = columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1] + 0.6
    layout = ConstrainedLayoutEngine()
    figure = Figure(figsize=(width, height), layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    points = {}
    for axes, panel in zip(grid, panels, strict=False):
        points[axes] = panel.draw(axes)
        axes.set_title(_wrapped(panel.title, _TITLE_CHARACTERS), fontsize=10)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(_wrapped(heading, _TITLE_CHARACTERS * columns), fontsize=9, color="0.3")
    figure.legend(
        handles=keys, loc="outside lower center", ncols=2 * columns, fontsize=8, frameon=False
    )
    # Lay out before, and as rarely as possible, since it takes most of the time: labels are placed
    # beside the points' final places.
    layout.execute(figure)
    if _narrow_titles(figure, grid, panels):
        layout.execute(figure)
    figure.set_layout_engine("none")
    for axes, found in points.items():
        if found and len(found) <= LABELLED:
            _name_points(figure, axes, found)
    return figure


def _wrapped(text: str, characters: int) -> str:
    return "\n".join(fill(line, characters) for line in text.splitlines())


def _narrow_titles(figure: Figure, grid: list[Axes], panels: list[Panel]) -> bool:
    """Wrap titles that are wider than their axes, which long labels narrow; tell if any is."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    found = False
    for axes, panel in zip(grid, panels, strict=False):
        text = axes.get_title()
        room = axes.bbox.width / axes.title.get_window_extent(renderer).width
        if room < 1:
            longest = max(map(len, text.splitlines()))
            axes.set_title(_wrapped(panel.title, max(int(longest * room), 1)), fontsize=10)
            found = True
    return found


def _name_points(figure: Figure, axes: Axes, points: list[NamedPoint]) -> None:
    """Write names beside points where they cover nothing; points that coincide share a label.

    Leave out a name that fits nowhere.
    """
    scale = figure.dpi / 72
    renderer = FigureCanvasAgg(figure).get_renderer()
    places = axes.transData.transform([(point.x, point.y) for point in points])
    reach = _MARK_POINTS * scale
    taken = [Bbox([place - reach, place + reach]) for place in places]
    for group in _coinciding(places, _COINCIDE_POINTS * scale):
        first = points[group[0]]
        label = axes.annotate(
            "\n".join(dict.fromkeys(points[index].name for index in group)),
            (first.x, first.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=_LABEL_POINTS,
            va="center",
            ha="center",
            gid="point label",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.2},
        )
        box = label.get_window_extent(renderer)
        offset = _free_offset(box, axes.bbox, taken, scale)
        if offset is None:
            label.remove()
            continue
        label.set_position(tuple(offset))
        taken.append(box.translated(*(offset * scale)))
        half = numpy.array([box.width, box.height]) / 2 / scale
        gap = numpy.maximum(numpy.abs(offset) - half, 0)  # points from the label's edge
        if numpy.hypot(*gap) > _DISTANCES[0]:
            _draw_leader(axes, places[group[0]], taken[-1])


def _draw_leader(axes: Axes, place: numpy.ndarray, box: Bbox) -> None:
    ends = axes.transData.inverted().transform([place, numpy.clip(place, box.min, box.max)])
    axes.plot(*ends.T, color="0.6", linewidth=0.6, zorder=1, scalex=False, scaley=False)


def _coinciding(places: numpy.ndarray, reach: float) -> list[list[int]]:
    """Group the indices of points that lie within reach of the first point of their group."""
    groups: dict[int, list[int]] = {}
    for index, place in enumerate(places):
        near = (one for one in groups if numpy.hypot(*(places[one] - place)) <= reach)
        groups.setdefault(next(near, index), []).append(index)
    return list(groups.values())


def _free_offset(box: Bbox, frame: Bbox, taken: list[Bbox], scale: float) -> numpy.ndarray | None:
    """Return the nearest offset, in points, of the label's middle at which it covers nothing."""
    half = numpy.array([box.width, box.height]) / 2 / scale
    for distance in _DISTANCES:
        for direction in _DIRECTIONS:
            offset = numpy.array(direction) * (half + distance)
            moved = box.translated(*(offset * scale))
            inside = frame.contains(*moved.min) and frame.contains(*moved.max)
            if inside and not moved.count_overlaps(taken):
                return offset
    return None


def save_figure(figure: Figure, path: Path) -> None:
    """Write PNG and PDF."""
    for format in ("png", "pdf"):
        with whole_file(path.with_suffix(f".{format}")) as partial:
            figure.savefig(partial, dpi=150, format=format)


def group_titles(runs: Runs, every: Runs | None = None) -> dict[str, str]:
    """Return a title per condition key: the data set, and what differs between its groups.

    Every title names what the heading of `every` (default: `runs`) leaves out, because these do not
    share it. A group leaves out what it has no value of.
    """
    by_dataset: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for run in runs:
        by_dataset[run.dataset][run.condition_key] = _plain_facts(run)
    headed = [_plain_facts(run) for run in (runs if every is None else every)]
    unsaid = [name for name in _HEADING if _differ(headed, name)]
    titles = {}
    for dataset, groups in by_dataset.items():
        own = [*groups.values()]
        varying = telling([name for name in own[0] if _differ(own, name)])
        names = [name for name in own[0] if name in varying or name in unsaid]
        for key, facts in groups.items():
            others = [f"{name} {facts[name]}" for name in names if facts[name] is not None]
            lines = (", ".join(others[at : at + 2]) for at in range(0, len(others), 2))
            titles[key] = "\n".join([dataset, *lines])
    return titles


def _differ(groups: list[dict[str, Any]], name: str) -> bool:
    return len({str(facts[name]) for facts in groups}) > 1


def _plain_facts(run: LoggedRun) -> dict[str, Any]:
    """Return the run's conditions with the model's name and short fingerprints."""
    short = {name: str(run.conditions[name])[:6] for name in ("prompts", "prompt tokens")}
    return run.conditions | {"model": run.model} | short


def common_heading(runs: Runs) -> str:
    """Return the model, dtype and device that all runs share."""
    facts = [_plain_facts(run) for run in runs]
    return ", ".join(str(facts[0][name]) for name in _HEADING if not _differ(facts, name))
