"""The points of the report's plots: columns of one value per point, for each group of runs.

A point holds the place of its run in the report; the page adds the run's facts.

`PLOTS` maps each figure to a function from a group of comparable runs to the columns of the
figure's sources, which `analysis.report_figures` draws.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import Normalize

from analysis.comparison import (
    LESS_IS_BETTER,
    SAME_PLAN,
    Comparison,
    pareto_front,
    quality_intervals,
)
from analysis.figures import group_titles
from analysis.finished_runs import LoggedRun
from analysis.heat_maps import readable_on
from analysis.plan_names import METHODS, decoder_words, mark_label
from analysis.plan_styles import METHOD_STYLES, WITHOUT_TREND
from analysis.plots import Study, texts

# Matplotlib's marks in the printed plots, as Bokeh calls them.
_MARKERS = {
    "*": "star",
    "o": "circle",
    "s": "square",
    "v": "inverted_triangle",
    "^": "triangle",
    "D": "diamond",
    "P": "plus",
    "X": "square_pin",
    "<": "triangle_pin",
    ">": "triangle_dot",
    "h": "hex",
    "p": "circle_dot",
}
WHITE = "#ffffff"

Columns = dict[str, list[Any]]
Sources = dict[str, Columns]


@dataclass(frozen=True)
class Setting:
    """A group of comparable runs. `places` maps each run's file to its place in the report."""

    title: str
    compared: list[Comparison]
    study: Study
    places: Mapping[str, int]

    @property
    def runs(self) -> list[LoggedRun]:
        return [one.run for one in self.compared]

    def at(self, run: LoggedRun, **numbers: Any) -> dict[str, Any]:
        """Return the run's place with these numbers, a point of a plot."""
        return {"run": self.places[run.path.name]} | numbers


def run_facts(run: LoggedRun, study: Study) -> dict[str, Any]:
    """Return what hovering tells of a run, and how its points look in each plot."""
    label = mark_label(run)
    style = study.styles[label]
    return {
        "id": run.record.run_id,
        "name": run_name(run),
        "prompts": run.num_samples,
        "plan": label,
        "marker": _MARKERS[style["marker"]],
        "line": style["color"],
        "fill": WHITE if run.strategy == "self_speculative" else style["color"],
    }


def run_name(run: LoggedRun) -> str:
    """Return the plan and the decoder in a few words."""
    words = [f"{run.method} {run.param}".strip(), run.strategy.replace("_", "-")]
    return " ".join(words + decoder_words(run)) + (
        ", compiled" if run.conditions["compile"] else ""
    )


def settings_of(
    study: Study, comparisons: list[Comparison], places: Mapping[str, int]
) -> list[Setting]:
    """Return the groups of comparable runs, the largest first."""
    titles = group_titles(study.runs)
    groups: dict[str, list[Comparison]] = defaultdict(list)
    for one in comparisons:
        groups[one.run.condition_key].append(one)
    found = [Setting(titles[key], group, study, places) for key, group in groups.items()]
    return sorted(found, key=lambda one: (-len(one.compared), one.title))


def _columns(points: Iterable[dict[str, Any]]) -> Columns:
    """Turn points with the same keys into columns; no point, no column."""
    columns: Columns = defaultdict(list)
    for point in points:
        for name, value in point.items():
            columns[name].append(value)
    return dict(columns)


def _speed(setting: Setting) -> Sources:
    """Each run's speed and its plan's mean score, and the Pareto front."""
    quality = setting.study.quality
    points = [
        setting.at(
            run,
            x=run.speed,
            y=score,
            ring=0 if run.removed_layers else 1,
            scored=f"{source.num_samples:g} prompts, run {source.record.run_id}",
        )
        for run in setting.runs
        if run.decodes_whole_model
        and run.speed is not None
        and (score := (source := setting.study.source(run)).quality(quality)) is not None
    ]
    places = [(point["x"], point["y"]) for point in points]
    on_front = pareto_front(places, quality in LESS_IS_BETTER)
    front = sorted({place for place, on in zip(places, on_front, strict=True) if on})
    return {
        "speed_points": _columns(points),
        "speed_front": _columns({"x": x, "y": y} for x, y in front),
    }


def _quality(setting: Setting) -> Sources:
    """The mean score of each plan with its interval, over the layers that the plan removes."""
    points: list[dict[str, Any]] = []
    trends: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for method in METHODS:
        for run in texts(setting.runs, method):
            source = setting.study.source(run)
            found = quality_intervals(source).get(setting.study.quality)
            if found:
                low = found.value if found.low is None else found.low
                high = found.value if found.high is None else found.high
                place = run.removed_layers
                points.append(setting.at(source, x=place, y=found.value, low=low, high=high))
                if method not in WITHOUT_TREND and not run.record.plan.get("patch"):
                    trends[method].append((place, found.value))
    whole = trends.pop("base", [])
    lines = [
        {**_line(whole + sorted(trend)), "line": METHOD_STYLES[method]["color"]}
        for method, trend in trends.items()
    ]
    if not any(point["x"] for point in points):  # the unpruned model alone is no plot
        return {"quality_points": {}, "quality_trend": {}}
    return {
        "quality_points": _columns(points),
        "quality_trend": _columns(lines),
    }


def _line(places: list[tuple[float, float]]) -> dict[str, Any]:
    return {"xs": [x for x, _ in places], "ys": [y for _, y in places]}


def _acceptance(setting: Setting) -> Sources:
    """The acceptance of the first, second, ... draft of a round: a line for each run."""
    lines, points = [], []
    for run in setting.runs:
        shares = run.acceptance_by_position
        if shares:
            positions = list(range(1, len(shares) + 1))
            lines.append(setting.at(run, xs=positions, ys=shares))
            points += [
                setting.at(run, x=place, y=share)
                for place, share in zip(positions, shares, strict=True)
            ]
    return {"acceptance_lines": _columns(lines), "acceptance_points": _columns(points)}


def _sweep(setting: Setting) -> dict[str, Sources]:
    """Return the speed-ups over exit layer and drafts by plan; at least two cells, or no map."""
    maps: dict[str, dict[tuple[int, int], dict[str, Any]]] = defaultdict(dict)
    for one in setting.compared:
        run, speedup = one.run, one.speedups.get(SAME_PLAN)
        if run.exit_layer and run.num_speculations and speedup:
            cell = setting.at(
                run,
                x=str(run.num_speculations),
                y=str(run.exit_layer),
                speedup=speedup.value,
                shown=f"{speedup.value:.2f}",
            )
            plan = " ".join(filter(None, [run.record.plan["approach"], run.drafting]))
            maps[plan][run.exit_layer, run.num_speculations] = cell
    return {
        plan: {"sweep_cells": _columns(_inked(list(cells.values())))}
        for plan, cells in sorted(maps.items(), key=lambda one: -len(one[1]))
        if len(cells) > 1
    }


def _inked(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cells with the colour of the number on each cell's shade."""
    values = [cell["speedup"] for cell in cells]
    shades = Normalize(min(values), max(values))
    return [cell | {"ink": readable_on(shades(cell["speedup"]))} for cell in cells]


# Figures with one set of columns for each group of runs.
PLOTS: dict[str, Callable[[Setting], Sources]] = {
    "speed": _speed,
    "quality": _quality,
    "acceptance": _acceptance,
}


def plot_data(setting: Setting) -> dict[str, Any]:
    """Return the columns of each figure, and of the sweep's map for each plan."""
    return {
        "title": setting.title,
        "runs": len(setting.compared),
        "plots": {name: columns_of(setting) for name, columns_of in PLOTS.items()},
        "sweeps": _sweep(setting),
    }
