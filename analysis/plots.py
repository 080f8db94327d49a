"""Plots of compared runs, each as PNG and PDF; colours, marks and lines differ together."""

import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.comparison import LESS_IS_BETTER, QUALITIES, pareto_front, quality_intervals
from analysis.figures import (
    BLACK,
    PALETTE,
    PANELS,
    NamedPoint,
    Panel,
    Runs,
    common_heading,
    group_titles,
    make_figure,
    save_figure,
)
from analysis.logged_runs import Decoder, LoggedRun

_METHOD_STYLES = {
    "base": {"marker": "*", "color": BLACK, "markersize": 10},
    "angular": {"marker": "o", "color": PALETTE[0], "markersize": 5},
    "random": {"marker": "s", "color": PALETTE[1], "markersize": 5},
}
_BESIDE = 0.15  # layers
_PLAN_MARKERS = "osv^DPX<>hp"
_PLAN_LINES = ("--", "-.", ":", "-")
_LOSSLESS = {
    "marker": "o",
    "markersize": 15,
    "markerfacecolor": "none",
    "markeredgecolor": "0.3",
    "markeredgewidth": 0.8,
    "linestyle": "",
}
_FRONT = {"color": "0.45", "linewidth": 1, "linestyle": (0, (5, 2)), "zorder": 1}
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
            [
                *_decoder_keys(),
                *_plan_keys({p: plans[p] for p in plans if p in named}),
                *_speed_keys(),
            ],
        ),
        "acceptance_by_draft_position": (
            _acceptance_panels(runs, plans),
            _plan_keys(plans, lines=True),
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
    axes.plot(*zip(*trend, strict=True), color=PALETTE[0], linewidth=1, zorder=1)
    axes.set_xlabel(f"layers removed, of {runs[0].original_layers}")
    axes.set_ylabel(_quality_label(quality))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _speed_panels(runs: Runs, quality: str, plans: dict[str, dict]) -> list[Panel]:
    """Quality against speed: every plan with both decoders, random ones averaged over seeds."""
    return [
        Panel(title, lambda axes, group=group: _draw_speed(axes, group, quality, plans))
        for title, group in _settings(runs)
    ]


def _draw_speed(axes: Axes, runs: Runs, quality: str, plans: dict[str, dict]) -> list[NamedPoint]:
    """Draws a mark for each plan and decoder, and the Pareto front; returns what to name."""
    found: dict[tuple, list[tuple[float, float]]] = defaultdict(list)
    lossy = set()  # plans that removed a layer
    for run in runs:
        speed = run.metric("tokens_per_second", "token_weighted")
        score = run.metric("predicted_text", quality)
        if run.decodes_whole_model and speed is not None and score is not None:
            found[_plan(run), run.decoder].append((speed, score))
            lossy |= {_plan(run)} if run.removed_layers else set()
    points = {key: tuple(map(fmean, zip(*values, strict=True))) for key, values in found.items()}
    for (plan, decoder), point in points.items():
        style = plans[plan] | _DECODER_STYLES[decoder.strategy] | {"linestyle": ""}
        axes.plot(*point, **style)
        if plan not in lossy:
            axes.plot(*point, **_LOSSLESS)
    axes.set_xlabel("decoding speed (tokens/s)")
    axes.set_ylabel(_quality_label(quality))
    fastest = max((speed for speed, _ in points.values()), default=0)
    axes.set_xlim(0, 1.12 * fastest or 1)
    axes.margins(y=0.15)
    _draw_front(axes, list(points.values()), quality)
    return [NamedPoint(*point, _point_name(*key)) for key, point in points.items()]


def _draw_front(axes: Axes, points: list[tuple[float, float]], quality: str) -> None:
    on_front = pareto_front(points, quality in LESS_IS_BETTER)
    front = sorted({point for point, on in zip(points, on_front, strict=True) if on})
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), drawstyle="steps-pre", gid="front", **_FRONT)


def _point_name(plan: str, decoder: Decoder) -> str:
    if decoder.strategy == "autoregressive":
        return plan
    return f"{plan}, E={decoder.exit_layer} k={decoder.num_speculations}"


def _quality_label(quality: str) -> str:
    return QUALITIES[quality] + (",\nless is better" if quality in LESS_IS_BETTER else "")


def _speed_keys() -> list[Line2D]:
    return [
        Line2D([], [], label="lossless: no layer removed", **_LOSSLESS | {"markersize": 9}),
        Line2D([], [], label="Pareto front of speed and quality", **_FRONT),
    ]


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
        distances_NL, origin="lower", cmap="cividis", interpolation="nearest", aspect="auto"
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
    """A mark for every plan, base first: a shape, a colour and a line."""
    styles, others = {}, itertools.count()
    for method, style in _METHOD_STYLES.items():
        for plan in sorted({_plan(run) for run in runs if run.method == method}):
            styles[plan] = style | {"linestyle": "-"}
            if method != "base":
                number = next(others)
                styles[plan] |= {
                    "marker": _PLAN_MARKERS[number % len(_PLAN_MARKERS)],
                    "color": PALETTE[number % len(PALETTE)],
                    "linestyle": _PLAN_LINES[number % len(_PLAN_LINES)],
                }
    return styles


def _plan_keys(plans: dict[str, dict[str, Any]], lines: bool = False) -> list[Line2D]:
    return [
        Line2D([], [], label=plan, **style | ({} if lines else {"linestyle": ""}))
        for plan, style in plans.items()
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
