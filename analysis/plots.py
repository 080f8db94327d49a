"""Plots of compared runs, each as PNG and PDF; colours, marks and lines differ together."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.categories import CategoryResult, category_results
from analysis.category_plot import category_panels
from analysis.comparison import (
    LESS_IS_BETTER,
    QUALITIES,
    Comparison,
    pareto_front,
    quality_intervals,
)
from analysis.distance_plot import REMOVED_BLOCK_KEY, distance_panels
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
from analysis.finished_runs import Decoder, FinishedRun, LoggedRun

Style = dict[str, Any]

_METHOD_STYLES: dict[str, Style] = {
    "base": {"marker": "*", "color": BLACK, "markersize": 10},
    "angular": {"marker": "o", "color": PALETTE[0], "markersize": 5},
    "random": {"marker": "s", "color": PALETTE[1], "markersize": 5},
}
_BESIDE = 0.15  # layers
_PLAN_MARKERS = "osv^DPX<>hp"
_PLAN_LINES = ("--", "-.", ":", "-")
_LOSSLESS: Style = {
    "marker": "o",
    "markersize": 15,
    "markerfacecolor": "none",
    "markeredgecolor": "0.3",
    "markeredgewidth": 0.8,
    "linestyle": "",
}
_FRONT: Style = {"color": "0.45", "linewidth": 1, "linestyle": (0, (5, 2)), "zorder": 1}
_DECODER_STYLES: dict[str, Style] = {
    "autoregressive": {},
    "self_speculative": {"markerfacecolor": "white"},
}


@dataclass(frozen=True)
class Study:
    """The runs that are plotted, those whose plan has a score, and the mark of each plan.

    `measured` maps runs to those that measured their plan's quality on more prompts, by their logs.
    """

    runs: Runs
    quality: str
    scored: Runs
    styles: dict[str, Style]
    measured: dict[Path, LoggedRun] = field(default_factory=dict)
    categories: list[CategoryResult] = field(default_factory=list)

    @classmethod
    def of(
        cls, runs: list[FinishedRun], quality: str, comparisons: Sequence[Comparison] = ()
    ) -> "Study":
        own = [run for run in runs if isinstance(run, LoggedRun)]
        sources = {one.run.path: one.measuring(quality).run for one in comparisons}
        measured = {path: run for path, run in sources.items() if run.path != path}
        results = category_results(list(comparisons))
        scored = [run for run in own if measured.get(run.path, run).quality(quality) is not None]
        return cls(own, quality, scored, _plan_styles(own), measured, results)

    def source(self, run: LoggedRun) -> LoggedRun:
        """Return the run whose quality a plot shows for this run's plan."""
        return self.measured.get(run.path, run)

    @property
    def quality_label(self) -> str:
        less_is_better = self.quality in LESS_IS_BETTER
        return QUALITIES[self.quality] + (",\nless is better" if less_is_better else "")


def make_plots(
    runs: list[FinishedRun], quality: str, folder: Path, comparisons: Sequence[Comparison] = ()
) -> list[str]:
    """Write each plot that runs of this tool have data for; return notes on what is left out."""
    study = Study.of(runs, quality, comparisons)
    notes = []
    if missing := len(study.runs) - len(study.scored):
        count = f"{missing} of {len(study.runs)} runs have no" if study.scored else "no run has"
        notes.append(f"{count} {quality}; plots of quality leave such runs out")
    for name, (panels_of, keys_of) in PLOTS.items():
        panels = panels_of(study)
        if len(panels) > PANELS:
            notes.append(
                f"{name} shows {PANELS} of {len(panels)} groups of comparable runs; name fewer "
                "folders to see others"
            )
        if panels:
            figure = make_figure(panels[:PANELS], keys_of(study), common_heading(study.runs))
            save_figure(figure, folder / name)
    return notes


def _quality_panels(study: Study) -> list[Panel]:
    """Quality against layers removed: a line for angular plans, a mark for each random plan."""
    return [
        Panel(title, partial(_draw_quality, runs=group, study=study))
        for title, group in settings([run for run in study.scored if study.source(run) is run])
        if any(run.removed_layers for run in group)
    ]


def _draw_quality(axes: Axes, runs: Runs, study: Study) -> None:
    drawn: Counter[int] = Counter()
    trend = []  # from the whole model through the angular plans
    for method, style in _METHOD_STYLES.items():
        for run in sorted(texts(runs, method), key=lambda run: run.removed_layers):
            score = quality_intervals(run, [study.quality]).get(study.quality)
            if score is None:
                continue
            low = score.value if score.low is None else score.low
            high = score.value if score.high is None else score.high
            # Draw bars of plans that remove equally many layers beside each other.
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
    axes.set_ylabel(study.quality_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _speed_panels(study: Study) -> list[Panel]:
    """Quality against speed: each plan with each decoder, random plans averaged over seeds."""
    return [
        Panel(title, partial(_draw_speed, runs=group, study=study))
        for title, group in settings(study.scored)
        if any(run.speed is not None for run in group)  # batches have none
    ]


def _draw_speed(axes: Axes, runs: Runs, study: Study) -> list[NamedPoint]:
    """Draw a mark for each plan and decoder, and the Pareto front; return the points to name."""
    found: dict[tuple[str, Decoder], list[tuple[float, float]]] = defaultdict(list)
    lossy = set()  # plans that removed a layer
    for run in runs:
        speed, score = run.speed, study.source(run).quality(study.quality)
        if run.decodes_whole_model and speed is not None and score is not None:
            found[plan_label(run), run.decoder].append((speed, score))
            if run.removed_layers:
                lossy.add(plan_label(run))
    points = {
        key: (fmean(speed for speed, _ in values), fmean(score for _, score in values))
        for key, values in found.items()
    }
    for (plan, decoder), point in points.items():
        style = study.styles[plan] | _DECODER_STYLES[decoder.strategy] | {"linestyle": ""}
        axes.plot(*point, **style)
        if plan not in lossy:
            axes.plot(*point, **_LOSSLESS)
    axes.set_xlabel("decoding speed (tokens/s)")
    prompts = {f"{study.source(run).num_samples:g}" for run in runs if run.path in study.measured}
    others = f",\non {' and '.join(sorted(prompts))} prompts" if prompts else ""
    axes.set_ylabel(study.quality_label + others)
    fastest = max((speed for speed, _ in points.values()), default=0)
    axes.set_xlim(0, 1.12 * fastest or 1)
    axes.margins(y=0.15)
    _draw_front(axes, list(points.values()), study.quality)
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


def _acceptance_panels(study: Study) -> list[Panel]:
    """The share of first, second, ... drafts of a round that the model accepted."""
    panels = []
    for title, group in settings(study.runs):
        decoders: dict[tuple, Runs] = defaultdict(list)
        for run in group:
            if run.acceptance_by_position:
                decoders[run.exit_layer, run.num_speculations].append(run)
        panels += [
            Panel(
                f"{title}, exit layer {exit_layer}",
                partial(_draw_acceptance, runs=drafting, styles=study.styles),
            )
            for (exit_layer, _), drafting in decoders.items()
        ]
    return panels


def _draw_acceptance(axes: Axes, runs: Runs, styles: dict[str, Style]) -> None:
    by_plan: dict[str, list[list[float]]] = defaultdict(list)
    for run in runs:
        by_plan[plan_label(run)].append(run.acceptance_by_position)
    for plan in (plan for plan in styles if plan in by_plan):
        # Another seed of a random plan may have fewer positions.
        means = [fmean(position) for position in zip(*by_plan[plan], strict=False)]
        axes.plot(range(1, len(means) + 1), means, **styles[plan], linewidth=1, clip_on=False)
    axes.set_xlabel("position in the draft (tokens)")
    axes.set_ylabel("accepted (share of drafts there)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)


def _category_panels(study: Study) -> list[Panel]:
    """Speed-ups over autoregressive decoding on the prompts of each category."""
    results: dict[Path, list[CategoryResult]] = defaultdict(list)
    for one in study.categories:
        results[one.run.path].append(one)
    return [
        panel
        for title, group in settings([run for run in study.runs if run.path in results])
        for panel in category_panels(
            title,
            [(plan_label(run), one) for run in group for one in results[run.path]],
            study.styles,
        )
    ]


def settings(runs: Runs) -> list[tuple[str, Runs]]:
    """Return the groups of runs that may be compared, with titles that differ."""
    groups: dict[str, Runs] = defaultdict(list)
    for run in runs:
        groups[run.condition_key].append(run)
    titles = group_titles(runs)
    named = [(titles[key], group) for key, group in groups.items()]
    return sorted(named, key=lambda setting: setting[0])


def texts(runs: Runs, method: str) -> Runs:
    """Return one run with examples per plan, the autoregressive run if there is one.

    Both decoders write by the same law; greedily, the same text up to rounding.
    """
    chosen: dict[tuple, LoggedRun] = {}
    for run in runs:
        if run.method == method and run.examples is not None and run.decodes_whole_model:
            key = run.param, run.kept_layers
            if key not in chosen or run.strategy == "autoregressive":
                chosen[key] = run
    return list(chosen.values())


def plan_label(run: LoggedRun) -> str:
    """Return the plan without its seed."""
    return f"{run.method} {run.param.partition(' ')[0]}".strip()


def _plan_styles(runs: Runs) -> dict[str, Style]:
    """Return a shape, a colour and a line for each plan, base first."""
    styles = {}
    looks = zip(
        itertools.cycle(_PLAN_MARKERS),
        itertools.cycle(PALETTE),
        itertools.cycle(_PLAN_LINES),
        strict=False,
    )
    for method, style in _METHOD_STYLES.items():
        for plan in sorted({plan_label(run) for run in runs if run.method == method}):
            styles[plan] = style | {"linestyle": "-"}
            if method != "base":
                marker, colour, line = next(looks)
                styles[plan] |= {"marker": marker, "color": colour, "linestyle": line}
    return styles


def _quality_keys(study: Study) -> list[Line2D]:
    found = {run.method for run in study.scored}
    keys = [
        Line2D([], [], linestyle="-" if method == "angular" else "", label=method, **style)
        for method, style in _METHOD_STYLES.items()
        if method in found
    ]
    return [*keys, Line2D([], [], linestyle="", label="bars: 95 % intervals over prompts")]


def _speed_keys(study: Study) -> list[Line2D]:
    key: Style = {"linestyle": "", "marker": "o", "color": "0.3"}
    named = {plan_label(run) for run in study.scored}
    return [
        *(
            Line2D([], [], label=strategy.replace("_", "-"), **key, **style)
            for strategy, style in _DECODER_STYLES.items()
        ),
        *(
            Line2D([], [], label=plan, **style | {"linestyle": ""})
            for plan, style in study.styles.items()
            if plan in named
        ),
        Line2D([], [], label="lossless: no layer removed", **_LOSSLESS | {"markersize": 9}),
        Line2D([], [], label="Pareto front of speed and quality", **_FRONT),
    ]


def _plan_keys(study: Study) -> list[Line2D]:
    return [Line2D([], [], label=plan, **style) for plan, style in study.styles.items()]


def _category_keys(study: Study) -> list[Line2D]:
    marks = [
        Line2D([], [], label=plan, **style | {"linestyle": ""})
        for plan, style in study.styles.items()
    ]
    return [*marks, Line2D([], [], linestyle="", label="bars: 95 % intervals over prompts")]


# The panels and the keys of each plot, by the name of its files.
PLOTS: dict[str, tuple[Callable[[Study], list[Panel]], Callable[[Study], list[Line2D]]]] = {
    "quality_by_layers_removed": (_quality_panels, _quality_keys),
    "speed_and_quality": (_speed_panels, _speed_keys),
    "acceptance_by_draft_position": (_acceptance_panels, _plan_keys),
    "angular_distance": (
        lambda study: distance_panels(study.runs),
        lambda _: [REMOVED_BLOCK_KEY],
    ),
    "speedup_by_category": (_category_panels, _category_keys),
}
