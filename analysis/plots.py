"""Plots of compared runs, each as PNG and PDF; colours, marks and lines differ together."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.acceptance_plot import acceptance_panels
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
from analysis.draft_points import decoder_without_seed, fastest_drafts
from analysis.figures import (
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
from analysis.plan_names import mark_label, plan_label
from analysis.plan_plots import correlation_keys, correlation_panels, uses_keys, uses_panels
from analysis.plan_styles import (
    METHOD_STYLES,
    PLANS,
    WITHOUT_TREND,
    Style,
    method_keys,
    patch_keys,
    patch_style,
    plan_keys,
    plan_styles,
)
from analysis.plan_uses import PlanUse, plan_uses
from analysis.score_plots import SCORE_KEYS, score_panels

_BESIDE = 0.15  # layers
_BAND = 0.45  # layers, over which plans that remove equally many are spread
_BARS = "bars: 95 % intervals over prompts"
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
    uses: list[PlanUse] = field(default_factory=list)

    @classmethod
    def of(
        cls, runs: list[FinishedRun], quality: str, comparisons: Sequence[Comparison] = ()
    ) -> "Study":
        own = [run for run in runs if isinstance(run, LoggedRun)]
        sources = {one.run.path: one.measuring(quality).run for one in comparisons}
        measured = {path: run for path, run in sources.items() if run.path != path}
        results = category_results(list(comparisons))
        scored = [run for run in own if measured.get(run.path, run).quality(quality) is not None]
        uses = plan_uses(list(comparisons))
        return cls(own, quality, scored, plan_styles(own), measured, results, uses)

    def source(self, run: LoggedRun) -> LoggedRun:
        """Return the run whose quality a plot shows for this run's plan."""
        return self.measured.get(run.path, run)

    def settings(self, runs: Runs) -> list[tuple[str, Runs]]:
        """Return the groups of runs that may be compared, with titles that differ."""
        groups: dict[str, Runs] = defaultdict(list)
        for run in runs:
            groups[run.condition_key].append(run)
        titles = group_titles(runs, self.runs)
        named = [(titles[key], group) for key, group in groups.items()]
        return sorted(named, key=lambda setting: setting[0])

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
    """Quality against layers removed: a line for each criterion, a mark for each random plan."""
    measuring = [run for run in study.scored if study.source(run) is run]
    return [
        Panel(title, partial(_draw_quality, runs=group, study=study))
        for title, group in study.settings(measuring)
        if any(run.removed_layers for run in group)
    ]


def _draw_quality(axes: Axes, runs: Runs, study: Study) -> None:
    drawn: Counter[int] = Counter()
    shown = [(method, run) for method in METHOD_STYLES for run in _by_removed(runs, method)]
    crowd = Counter(run.removed_layers for _, run in shown)
    beside = min(_BESIDE, _BAND / max(crowd.values(), default=1))
    trends: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for method, run in shown:
        score = quality_intervals(run, [study.quality]).get(study.quality)
        if score is None:
            continue
        low = score.value if score.low is None else score.low
        high = score.value if score.high is None else score.high
        # Draw bars of plans that remove equally many layers beside each other.
        place = run.removed_layers + beside * drawn[run.removed_layers]
        drawn[run.removed_layers] += 1
        bar = [[score.value - low], [high - score.value]]
        style = METHOD_STYLES[method] | patch_style(run.record.plan)
        axes.errorbar(place, score.value, yerr=bar, capsize=2.5, linestyle="", **style)
        if method == "base":
            axes.axhline(score.value, color="0.75", linestyle=":", zorder=0)
        if method not in WITHOUT_TREND and run.record.plan.get("patch") is None:
            trends[method].append((place, score.value))
    whole = trends.pop("base", [])
    for method, trend in trends.items():
        colour = METHOD_STYLES[method]["color"]
        axes.plot(*zip(*whole, *trend, strict=True), color=colour, linewidth=1, zorder=1)
    axes.set_xlabel(f"layers removed, of {runs[0].original_layers}")
    axes.set_ylabel(study.quality_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _by_removed(runs: Runs, method: str) -> Runs:
    return sorted(texts(runs, method), key=lambda run: run.removed_layers)


def _speed_panels(study: Study) -> list[Panel]:
    """Quality against speed: each plan with each decoder, random plans averaged over seeds."""
    return [
        Panel(title, partial(_draw_speed, runs=group, study=study))
        for title, group in study.settings(study.scored)
        if any(run.speed is not None for run in group)  # batches have none
    ]


def _draw_speed(axes: Axes, runs: Runs, study: Study) -> list[NamedPoint]:
    """Draw a mark for each plan and decoder, and the Pareto front; return the points to name."""
    found: dict[tuple[str, str, Decoder], list[tuple[float, float]]] = defaultdict(list)
    lossy = set()  # plans that removed a layer
    for run in runs:
        speed, score = run.speed, study.source(run).quality(study.quality)
        if run.decodes_whole_model and speed is not None and score is not None:
            key = plan_label(run), mark_label(run), decoder_without_seed(run.decoder)
            found[key].append((speed, score))
            if run.removed_layers:
                lossy.add(plan_label(run))
    points = fastest_drafts(
        {
            key: (fmean(speed for speed, _ in values), fmean(score for _, score in values))
            for key, values in found.items()
        }
    )
    crowded = sum(how.drafter is not None for *_, how in points) > PLANS
    for (plan, mark, decoder), point in points.items():
        style = study.styles[mark] | _DECODER_STYLES[decoder.strategy] | {"linestyle": ""}
        axes.plot(*point, **style)
        if plan not in lossy and not (crowded and decoder.drafter):
            axes.plot(*point, **_LOSSLESS)
    axes.set_xlabel("decoding speed (tokens/s)")
    prompts = {f"{study.source(run).num_samples:g}" for run in runs if run.path in study.measured}
    others = f",\non {' and '.join(sorted(prompts))} prompts" if prompts else ""
    axes.set_ylabel(study.quality_label + others)
    fastest = max((speed for speed, _ in points.values()), default=0)
    axes.set_xlim(0, 1.12 * fastest or 1)
    axes.margins(y=0.15)
    _draw_front(axes, list(points.values()), study.quality)
    return [NamedPoint(*at, _point_name(plan, how)) for (plan, _, how), at in points.items()]


def _draw_front(axes: Axes, points: list[tuple[float, float]], quality: str) -> None:
    on_front = pareto_front(points, quality in LESS_IS_BETTER)
    front = sorted({point for point, on in zip(points, on_front, strict=True) if on})
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), drawstyle="steps-pre", gid="front", **_FRONT)


def _point_name(plan: str, decoder: Decoder) -> str:
    if decoder.strategy == "autoregressive":
        return plan
    drafts = [f"draft {decoder.drafter}"] if decoder.drafter else []
    drafts += [f"E={decoder.exit_layer}"] if decoder.exit_layer is not None else []
    drafts += [decoder.drafting] if decoder.drafting else []
    return f"{plan}, {' '.join(drafts)} k={decoder.num_speculations}"


def _acceptance_panels(study: Study) -> list[Panel]:
    return [
        panel
        for title, group in study.settings(study.runs)
        for panel in acceptance_panels(title, group, study.styles)
    ]


def _category_panels(study: Study) -> list[Panel]:
    """Speed-ups over autoregressive decoding on the prompts of each category."""
    results: dict[Path, list[CategoryResult]] = defaultdict(list)
    for one in study.categories:
        results[one.run.path].append(one)
    return [
        panel
        for title, group in study.settings([run for run in study.runs if run.path in results])
        for panel in category_panels(
            title,
            [(mark_label(run), one) for run in group for one in results[run.path]],
            study.styles,
        )
    ]


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


def _quality_keys(study: Study) -> list[Line2D]:
    found = {run.method for run in study.scored}
    lines = [
        *method_keys(found - WITHOUT_TREND - {"base"}, linestyle="-"),
        *method_keys(found & (WITHOUT_TREND | {"base"}), linestyle=""),
    ]
    patches = patch_keys(run.record.plan for run in study.scored)
    return [*lines, *patches, Line2D([], [], linestyle="", label=_BARS)]


def _speed_keys(study: Study) -> list[Line2D]:
    key: Style = {"linestyle": "", "marker": "o", "color": "0.3"}
    named = {label for run in study.scored for label in (plan_label(run), mark_label(run))}
    shown = {label: style for label, style in study.styles.items() if label in named}
    return [
        *(
            Line2D([], [], label=strategy.replace("_", "-"), **key, **style)
            for strategy, style in _DECODER_STYLES.items()
        ),
        *plan_keys(shown, linestyle=""),
        Line2D([], [], label="lossless: no layer removed", **_LOSSLESS | {"markersize": 9}),
        Line2D([], [], label="Pareto front of speed and quality", **_FRONT),
    ]


def _category_keys(study: Study) -> list[Line2D]:
    return [
        *plan_keys(study.styles, linestyle=""),
        Line2D([], [], linestyle="", label=_BARS),
    ]


# The panels and the keys of each plot, by the name of its files.
PLOTS: dict[str, tuple[Callable[[Study], list[Panel]], Callable[[Study], list[Line2D]]]] = {
    "quality_by_layers_removed": (_quality_panels, _quality_keys),
    "speed_and_quality": (_speed_panels, _speed_keys),
    "acceptance_by_draft_position": (_acceptance_panels, lambda study: plan_keys(study.styles)),
    "angular_distance": (
        lambda study: distance_panels(study.runs),
        lambda _: [REMOVED_BLOCK_KEY],
    ),
    "speedup_by_category": (_category_panels, _category_keys),
    "layer_scores": (lambda study: score_panels(study.runs), lambda _: SCORE_KEYS),
    "plan_correlation": (
        lambda study: correlation_panels(study.uses, study.runs),
        lambda study: correlation_keys(study.uses),
    ),
    "plan_uses": (
        lambda study: uses_panels(study.uses, study.runs, study.quality, study.quality_label),
        lambda study: uses_keys(study.uses),
    ),
}
