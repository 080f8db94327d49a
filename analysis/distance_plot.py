"""The plot of angular distances between layers, with the blocks that plans removed."""

import json
from collections import defaultdict
from functools import partial
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures import Panel, Runs, group_titles

_BLOCK: dict[str, Any] = {
    "marker": "o",
    "markersize": 7,
    "markerfacecolor": "white",
    "markeredgecolor": "black",
    "markeredgewidth": 1.5,
    "linestyle": "",
}
REMOVED_BLOCK_KEY = Line2D([], [], label="block removed by the plan for this n", **_BLOCK)


def distance_panels(runs: Runs) -> list[Panel]:
    """d(l, n) for each first layer l and number of layers n, and the blocks that plans removed."""
    maps: dict[str, Runs] = defaultdict(list)
    for run in runs:
        if run.method == "angular":
            maps[json.dumps(run.record.plan["scores"]["distances"])].append(run)
    titles = group_titles(runs)
    return [
        Panel(titles[group[0].condition_key], partial(_draw_distances, runs=group))
        for group in maps.values()
    ]


def _draw_distances(axes: Axes, runs: Runs) -> None:
    layers, scores = runs[0].original_layers, runs[0].record.plan["scores"]
    # Rows become n and columns l. The last layer always stays, so that l + n < L.
    distances_NL = numpy.array(scores["distances"], dtype=float).T
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
