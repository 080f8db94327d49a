"""What all plots are made of: panels under titles that tell them apart, saved as PNG and PDF."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from comparison import telling
from logged_runs import LoggedRun

PANELS = 12  # in one figure
_PANEL_INCHES = (4.2, 3.3)

Runs = list[LoggedRun]


@dataclass(frozen=True)
class Panel:
    """One data set under one set of conditions: its title, and how it is drawn."""

    title: str
    draw: Callable[[Axes], Any]


def make_figure(panels: list[Panel], keys: list[Line2D], heading: str) -> Figure:
    columns = min(len(panels), 2 if len(panels) in (2, 4) else 3)
    rows = -(-len(panels) // columns)
    width, height = columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1] + 0.6
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, panel in zip(grid, panels, strict=False):
        panel.draw(axes)
        axes.set_title(panel.title, fontsize=10)
    for axes in list(grid)[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(heading, fontsize=9, color="0.3")
    figure.legend(
        handles=keys, loc="outside lower center", ncols=2 * columns, fontsize=8, frameon=False
    )
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes PNG and PDF; the panels are laid out but once, which takes most of the time."""
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    figure.savefig(path.with_suffix(".png"), dpi=150)
    figure.savefig(path.with_suffix(".pdf"))


def group_titles(runs: Runs) -> dict[str, str]:
    """The data set of every group of runs, and what else tells groups of that data set apart."""
    groups = {run.condition_key: run for run in runs}
    by_dataset: dict[str, Runs] = defaultdict(list)
    for run in groups.values():
        by_dataset[run.dataset].append(run)
    titles = {}
    for dataset, alike in by_dataset.items():
        facts = {run.condition_key: _plain_facts(run) for run in alike}
        varying = [
            name
            for name in _plain_facts(alike[0])
            if len({str(found[name]) for found in facts.values()}) > 1
        ]
        for key, found in facts.items():
            others = [f"{name} {found[name]}" for name in telling(varying)]
            lines = (", ".join(others[at : at + 2]) for at in range(0, len(others), 2))
            titles[key] = "\n".join([dataset, *lines])
    return titles


def _plain_facts(run: LoggedRun) -> dict[str, Any]:
    """The run's conditions, its model by name; a fingerprint says nothing to a reader."""
    short = {name: str(run.conditions[name])[:6] for name in ("prompts", "prompt tokens")}
    return run.conditions | {"model": run.model} | short


def common_heading(runs: Runs) -> str:
    """What all runs share of model and machine."""
    shared = []
    for name in ("model", "dtype", "device"):
        found = {str(_plain_facts(run)[name]) for run in runs}
        shared += found if len(found) == 1 else []
    return ", ".join(shared)
