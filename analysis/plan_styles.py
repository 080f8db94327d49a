"""Colours, marks and lines of methods and plans: they differ together."""

import itertools
from collections.abc import Iterable
from typing import Any

from matplotlib.lines import Line2D

from analysis.figures import BLACK, PALETTE, Runs
from analysis.plan_names import mark_label, plan_label

Style = dict[str, Any]

METHOD_STYLES: dict[str, Style] = {
    "base": {"marker": "*", "color": BLACK, "markersize": 10},
    "angular": {"marker": "o", "color": PALETTE[0], "markersize": 5},
    "random": {"marker": "s", "color": PALETTE[1], "markersize": 5},
    "last": {"marker": "v", "color": PALETTE[2], "markersize": 5},
    "block_influence": {"marker": "^", "color": PALETTE[3], "markersize": 5},
    "perplexity": {"marker": "D", "color": PALETTE[4], "markersize": 5},
    "taylor": {"marker": "P", "color": PALETTE[5], "markersize": 6},
    "magnitude": {"marker": "X", "color": PALETTE[6], "markersize": 6},
    "layers": {"marker": "h", "color": PALETTE[7], "markersize": 6},
}
PLANS = 12  # with more plans, marks tell only their methods apart
WITHOUT_TREND = {"random", "layers"}  # their plans are no sequence
_PATCH_STYLES: dict[str, Style] = {
    "linear": {"markerfacecolor": "white"},
    "folded": {"fillstyle": "left", "markerfacecoloralt": "white"},
}
_PLAN_MARKERS = "osv^DPX<>hp"
_PLAN_LINES = ("--", "-.", ":", "-")


def method_of(label: str) -> str:
    """Return the method of a plan's name."""
    return label.partition(" ")[0]


def plan_styles(runs: Runs) -> dict[str, Style]:
    """Return a shape, a colour and a line for each plan that runs or drafts, base first.

    Many plans look like their methods, since no legend of them could be read.
    """
    labels = {label(run) for run in runs for label in (plan_label, mark_label)}
    ordered = sorted(labels, key=lambda label: (_place(method_of(label)), label))
    if sum(method_of(label) != "base" for label in ordered) > PLANS:
        return {label: METHOD_STYLES[method_of(label)] | {"linestyle": "-"} for label in ordered}
    looks = zip(
        itertools.cycle(_PLAN_MARKERS),
        itertools.cycle(PALETTE),
        itertools.cycle(_PLAN_LINES),
        strict=False,
    )
    styles = {}
    for label in ordered:
        styles[label] = METHOD_STYLES[method_of(label)] | {"linestyle": "-"}
        if method_of(label) != "base":
            marker, colour, line = next(looks)
            styles[label] |= {"marker": marker, "color": colour, "linestyle": line}
    return styles


def plan_keys(styles: dict[str, Style], **changes: Any) -> list[Line2D]:
    """Return the legend's keys of plans, or of their methods where these share a look."""
    if sum(method_of(label) != "base" for label in styles) > PLANS:
        styles = {method_of(label): style for label, style in styles.items()}
    return [Line2D([], [], label=name, **style | changes) for name, style in styles.items()]


def patch_style(plan: dict[str, Any]) -> Style:
    """Return the fill of a mark that shows a logged plan's patch."""
    return _PATCH_STYLES.get(plan.get("patch") or "", {})


def patch_keys(plans: Iterable[dict[str, Any]]) -> list[Line2D]:
    """Return the legend's keys of the patches that logged plans have."""
    found = {plan.get("patch") for plan in plans}
    return [
        Line2D([], [], marker="o", color="0.3", linestyle="", label=f"+ {patch} patch", **style)
        for patch, style in _PATCH_STYLES.items()
        if patch in found
    ]


def method_keys(methods: set[str], **changes: Any) -> list[Line2D]:
    """Return the legend's keys of these methods."""
    return [
        Line2D([], [], label=name, **style | changes)
        for name, style in METHOD_STYLES.items()
        if name in methods
    ]


def _place(method: str) -> int:
    return list(METHOD_STYLES).index(method)
