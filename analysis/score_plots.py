"""The plot of the scores by which criteria ranked layers, and of those that plans removed."""

import json
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures import NamedPoint, Panel, Runs, group_titles
from analysis.plan_scores import LAYER_SCORES
from analysis.plan_styles import METHOD_STYLES

_KEPT: dict[str, Any] = {"markerfacecolor": "white"}
_LOG_RANGE = 30  # scores that differ by more are shown on a logarithmic axis
_LABEL_POINTS = 7
_WORDS = {
    "block_influence": "block influence (1 - cosine)",
    "taylor": "Taylor score of the layer",
    "magnitude": "magnitude score of the layer",
}
SCORE_KEYS = [
    Line2D(
        [], [], linestyle="", marker="o", color="0.3", label="removed; number: least n of its plans"
    ),
    Line2D([], [], linestyle="", marker="o", color="0.3", label="kept by every plan", **_KEPT),
]
Plans = list[dict[str, Any]]


def score_panels(runs: Runs) -> list[Panel]:
    """The score of each layer, a panel for each criterion and calibration."""
    titles = group_titles(runs)
    groups: dict[tuple[str, str], tuple[str, Plans]] = {}
    for run in runs:
        for plan in (run.record.plan, run.record.draft_plan):
            if plan and (shared := _shared_scores(plan)) is not None:
                key = plan["method"], shared
                groups.setdefault(key, (titles[run.condition_key], []))[1].append(plan)
    panels = [
        Panel(
            f"{title}, {method.replace('_', ' ')}",
            partial(_draw_steps if method == "perplexity" else _draw_layers, plans=plans),
        )
        for (method, _), (title, plans) in groups.items()
    ]
    return sorted(panels, key=lambda panel: panel.title)


def _shared_scores(plan: dict[str, Any]) -> str | None:
    """Return what all plans of one measurement share; None without such scores."""
    method, scores = plan["method"], plan["scores"]
    if not scores or method not in (*LAYER_SCORES, "perplexity"):
        return None
    if method == "perplexity":
        return json.dumps([scores["perplexity"], plan["calibration"]])
    return json.dumps(scores["layers"])


def _draw_layers(axes: Axes, plans: Plans) -> None:
    """Draw the score of each layer; a removed layer has the smallest n that removes it."""
    scores = plans[0]["scores"]["layers"]
    style = METHOD_STYLES[plans[0]["method"]] | {"linestyle": ""}
    known = [value for value in scores if value is not None]
    axes.plot(range(len(scores)), scores, color="0.8", linewidth=0.8, zorder=0)
    first_n: dict[int, int] = {}
    for plan in sorted(plans, key=lambda plan: plan["prune_n"], reverse=True):
        kept = set(plan["kept_layers"])
        first_n |= {layer: plan["prune_n"] for layer in range(len(scores)) if layer not in kept}
    for layer, score in enumerate(scores):
        if score is not None:
            axes.plot(layer, score, **style | ({} if layer in first_n else _KEPT))
            if layer in first_n:
                _write(axes, layer, score, str(first_n[layer]))
    axes.set_xlabel("layer (index, from 0)")
    axes.set_ylabel(_WORDS[plans[0]["method"]])
    if known and min(known) > 0 and max(known) / min(known) > _LOG_RANGE:
        axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_steps(axes: Axes, plans: Plans) -> list[NamedPoint]:
    """Draw the perplexity after each step of the longest search, with the layer it removed.

    Shorter searches made the same first steps.
    """
    scores = max((plan["scores"] for plan in plans), key=lambda scores: len(scores["steps"]))
    values = [scores["perplexity"], *(step["perplexity"] for step in scores["steps"])]
    axes.plot(range(len(values)), values, **METHOD_STYLES["perplexity"], linewidth=1)
    axes.set_xlabel("layers removed, one at a time")
    axes.set_ylabel("perplexity of the calibration texts")
    known = [value for value in values if value is not None]
    if known and max(known) / min(known) > _LOG_RANGE:
        axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return [
        NamedPoint(count, step["perplexity"], f"layer {step['layer']}")
        for count, step in enumerate(scores["steps"], start=1)
        if step["perplexity"] is not None
    ]


def _write(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 5),
        textcoords="offset points",
        fontsize=_LABEL_POINTS,
        ha="center",
    )
