"""Plots of compared runs, each as PNG and PDF; none needs colour to be read."""

import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from comparison import QUALITIES, quality_intervals
from figures import PANELS, Panel, Runs, common_heading, group_titles, make_figure, save_figure
from logged_runs import LoggedRun

_METHOD_STYLES = {
    "base": {"marker": "*", "color": "0.0", "markersize": 10},
    "angular": {"marker": "o", "color": "0.0", "markersize": 5},
    "random": {"marker": "s", "color": "0.5", "markersize": 5},
}
_BESIDE = 0.15  # layers
_PLAN_MARKERS = "osv^DPX<>hp"
_DECODER_STYLES = {"autoregressive": {}, "self_speculative": {"markerfacecolor": "white"}}


def make_plots(runs: Runs, quality: str, folder: Path) -> list[str]:
    """Writes every plot that runs of this tool have data for; returns what they leave out."""
    runs = [run for run in runs if not run.is_older]
    plans = _plan_styles(runs)
    scored = [run for run in runs if run.metric("predicted_text", quality) is not None]
    named = {_plan(run) for run in scored}
    plots = {
        "quality_by_layers_removed": (_quality_panels(scored, quality), _method_keys(scored)),
        "speed_and_quality": (
            _speed_panels(scored, quality, plans),
            [*_decoder_keys(), *_plan_keys({p: plans[p] for p in plans if p in named})],
        ),
        "acceptance_by_draft_position": (
            _acceptance_panels(runs, plans),
            _plan_keys(plans, linestyle="-"),
        ),
        "angular_distance": (_distance_panels(runs), [_block_key()]),
    }
    notes = _unscored(len(runs) - len(scored), len(runs), quality)
    for name, (panels, keys) in plots.items():
        if len(panels) > PANELS:
            notes.append(
                f"{name} shows {PANELS} of {len(panels)} groups of comparable runs; name fewer "
                "folders to see others"
            )
        if panels:
            save_figure(make_figure(panels[:PANELS], keys, common_heading(runs)), folder / name)
    return notes


def _unscored(missing: int, total: int, quality: str) -> list[str]:
    if not missing:
        return []
    count = "no run has" if missing == total else f"{missing} of {total} runs have no"
    return [f"{count} {quality}; plots of quality leave such runs out"]


def _quality_panels(runs: Runs, quality: str) -> list[Panel]:
    """Quality against layers removed: a line for angular plans, a mark for every random one."""
    return [
        Panel(title, lambda axes, group=group: _draw_quality(axes, group, quality))
        for title, group in _settings(runs)
        if any(run.removed_layers for run in group)
    ]


def _draw_quality(axes: Axes, runs: Runs, quality: str) -> None:
    drawn: Counter[int] = Counter()
    trend = []  # from the whole model through the angular plans
    for method, style in _METHOD_STYLES.items():
        for run in sorted(_texts(runs, method), key=lambda run: run.removed_layers):
            score = quality_intervals(run)[quality]
            low, high = (score.value, score.value) if score.low is None else (score.low, score.high)
            # Bars of plans that remove as many layers stand beside each other.
            place = run.removed_layers + _BESIDE * drawn[run.removed_layers]
            drawn[run.removed_layers] += 1
            bar = [[score.value - low], [high - score.value]]
            axes.errorbar(place, score.value, yerr=bar, capsize=2.5, linestyle="", **style)
            if method != "random":
                trend.append((place, score.value))
            if method == "base":
                axes.axhline(score.value, color="0.75", linestyle=":", zorder=0)
    axes.plot(*zip(*trend, strict=True), color="0.0", linewidth=1)
    axes.set_xlabel(f"layers removed, of {runs[0].original_layers}")
    axes.set_ylabel(QUALITIES[quality])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _speed_panels(runs: Runs, quality: str, plans: dict[str, dict]) -> list[Panel]:
    """Quality against speed: every plan with both decoders, random ones averaged over seeds."""
    return [
        Panel(title, lambda axes, group=group: _draw_speed(axes, group, quality, plans))
        for title, group in _settings(runs)
    ]


def _draw_speed(axes: Axes, runs: Runs, quality: str, plans: dict[str, dict]) -> None:
    points: dict[tuple, list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        speed = run.metric("tokens_per_second", "token_weighted")
        score = run.metric("predicted_text", quality)
        if run.decodes_whole_model and speed is not None and score is not None:
            points[_plan(run), run.decoder].append((speed, score))
    for (plan, decoder), found in points.items():
        speed, score = (fmean(values) for values in zip(*found, strict=True))
        style = plans[plan] | _DECODER_STYLES[decoder.strategy]
        axes.plot(speed, score, linestyle="", **style)
    axes.set_xlabel("decoding speed (tokens/s)")
    axes.set_ylabel(QUALITIES[quality])
    axes.margins(x=0.1)
    axes.set_xlim(0, axes.get_xlim()[1])
    axes.margins(y=0.15)


def _acceptance_panels(runs: Runs, plans: dict[str, dict]) -> list[Panel]:
    """The share of first, second, ... drafts of a round that the model accepted."""
    panels = []
    for title, group in _settings(runs):
        decoders: dict[tuple, Runs] = defaultdict(list)
        for run in group:
            if run.metric("acceptance_rate", "by_position"):
                decoders[run.exit_layer, run.num_speculations].append(run)
        for (exit_layer, _), drafting in decoders.items():
            panels.append(
                Panel(
                    f"{title}, exit layer {exit_layer}",
                    lambda axes, drafting=drafting: _draw_acceptance(axes, drafting, plans),
                )
            )
    return panels


def _draw_acceptance(axes: Axes, runs: Runs, plans: dict[str, dict]) -> None:
    by_plan: dict[str, list[list[float]]] = defaultdict(list)
    for run in runs:
        by_plan[_plan(run)].append(run.metric("acceptance_rate", "by_position"))
    for plan in (plan for plan in plans if plan in by_plan):
        # Another seed of a random plan may have stopped before it drafted as far.
        means = [fmean(position) for position in zip(*by_plan[plan], strict=False)]
        axes.plot(range(1, len(means) + 1), means, **plans[plan], linewidth=1, clip_on=False)
    axes.set_xlabel("position in the draft (tokens)")
    axes.set_ylabel("accepted (share of drafts there)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)


def _distance_panels(runs: Runs) -> list[Panel]:
    """d(l, n) for every first layer l and number of layers n, and what plans removed by it."""
    maps: dict[str, Runs] = defaultdict(list)
    for run in runs:
        if run.method == "angular":
            maps[json.dumps(run.record.plan["scores"]["distances"])].append(run)
    titles = group_titles(runs)
    return [
        Panel(
            titles[group[0].condition_key],
            lambda axes, group=group: _draw_distances(axes, group),
        )
        for group in maps.values()
    ]


def _draw_distances(axes: Axes, runs: Runs) -> None:
    scores = runs[0].record.plan["scores"]
    # Rows become n and columns l. The last layer always stays, so that l + n < L.
    distances_NL = numpy.array(scores["distances"], dtype=float).T
    layers = runs[0].original_layers
    for count in range(layers + 1):
        distances_NL[count, max(layers - count, 0) :] = numpy.nan
    image = axes.imshow(
        distances_NL, origin="lower", cmap=_GREYS, interpolation="nearest", aspect="auto"
    )
    for run in runs:
        block = run.record.plan["scores"]["first_removed_layer"], run.record.plan["prune_n"]
        axes.plot(*block, **_BLOCK)
    axes.set_xlabel("first layer l (index, from 0)")
    axes.set_ylabel("layers removed n")
    axes.set_xlim(-0.5, layers - 1.5)
    axes.set_ylim(0.5, layers - 1.5)
    bar = axes.figure.colorbar(image, ax=axes)
    bar.set_label("angular distance d(l, n) (multiples of π)")


# Its lightest grey is darker than the paper, on which no block lies.
_GREYS = LinearSegmentedColormap.from_list("greys", ["0.0", "0.85"])
_BLOCK = {
    "marker": "o",
    "markersize": 7,
    "markerfacecolor": "white",
    "markeredgecolor": "black",
    "markeredgewidth": 1.5,
    "linestyle": "",
}


def _settings(runs: Runs) -> list[tuple[str, Runs]]:
    """Runs that may be compared, under a title that tells them from the other groups."""
    groups: dict[str, Runs] = defaultdict(list)
    for run in runs:
        groups[run.condition_key].append(run)
    titles = group_titles(runs)
    named = [(titles[key], group) for key, group in groups.items()]
    return sorted(named, key=lambda setting: setting[0])


def _texts(runs: Runs, method: str) -> Runs:
    """One run of every plan that has examples, the autoregressive one where there is one.

    Both decoders write by the same law; greedily, the same text up to rounding.
    """
    chosen: dict[tuple, LoggedRun] = {}
    for run in runs:
        if run.method == method and run.examples is not None and run.decodes_whole_model:
            key = run.param, run.kept_layers
            if key not in chosen or run.strategy == "autoregressive":
                chosen[key] = run
    return list(chosen.values())


def _plan(run: LoggedRun) -> str:
    """The plan without its seed."""
    return " ".join([run.method, *run.param.split(" ")[:1]]).strip()


def _plan_styles(runs: Runs) -> dict[str, dict[str, Any]]:
    """A mark for every plan, base first: a shape of its own, in its method's shade."""
    styles, shapes = {}, itertools.cycle(_PLAN_MARKERS)
    for method, style in _METHOD_STYLES.items():
        for plan in sorted({_plan(run) for run in runs if run.method == method}):
            styles[plan] = style if method == "base" else style | {"marker": next(shapes)}
    return styles


def _plan_keys(plans: dict[str, dict[str, Any]], linestyle: str = "") -> list[Line2D]:
    return [
        Line2D([], [], linestyle=linestyle, label=plan, **style) for plan, style in plans.items()
    ]


def _method_keys(runs: Runs) -> list[Line2D]:
    found = {run.method for run in runs}
    keys = [
        Line2D([], [], linestyle="-" if method == "angular" else "", label=method, **style)
        for method, style in _METHOD_STYLES.items()
        if method in found
    ]
    return [*keys, Line2D([], [], linestyle="", label="bars: 95 % bootstrap intervals")]


def _decoder_keys() -> list[Line2D]:
    key = {"linestyle": "", "marker": "o", "color": "0.3"}
    return [
        Line2D([], [], label=strategy.replace("_", "-"), **key, **style)
        for strategy, style in _DECODER_STYLES.items()
    ]


def _block_key() -> Line2D:
    return Line2D([], [], label="block removed by the plan for this n", **_BLOCK)
