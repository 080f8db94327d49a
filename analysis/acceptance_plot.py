"""The plot of acceptance by position in the draft: a line for each plan."""

from collections import defaultdict
from functools import partial
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.figures import Panel, Runs
from analysis.plan_names import drafting_title, mark_label
from analysis.plan_styles import Style


def acceptance_panels(title: str, runs: Runs, styles: dict[str, Style]) -> list[Panel]:
    """The share of first, second, ... drafts of a round that the model accepted."""
    decoders: dict[tuple[str, int | None], Runs] = defaultdict(list)
    for run in runs:
        if run.acceptance_by_position:
            decoders[drafting_title(run), run.num_speculations].append(run)
    return [
        Panel(f"{title}, {drafted}", partial(_draw, runs=drafting, styles=styles))
        for (drafted, _), drafting in decoders.items()
    ]


def _draw(axes: Axes, runs: Runs, styles: dict[str, Style]) -> None:
    by_plan: dict[str, list[list[float]]] = defaultdict(list)
    for run in runs:
        by_plan[mark_label(run)].append(run.acceptance_by_position)
    for plan in (plan for plan in styles if plan in by_plan):
        # Another seed of a random plan may have fewer positions.
        means = [fmean(position) for position in zip(*by_plan[plan], strict=False)]
        axes.plot(range(1, len(means) + 1), means, **styles[plan], linewidth=1, clip_on=False)
    axes.set_xlabel("position in the draft (tokens)")
    axes.set_ylabel("accepted (share of drafts there)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
