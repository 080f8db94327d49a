"""The report's figures, drawn in the browser by BokehJS; their sources are filled there.

A figure is made once, without data: the page fills its sources with the columns of the chosen group
of runs (`analysis.report_data`).
"""

from typing import Any

from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    CustomJS,
    FactorRange,
    HoverTool,
    LinearColorMapper,
    Range1d,
    TapTool,
)
from bokeh.models.annotations import ColorBar
from bokeh.palettes import Cividis256
from bokeh.plotting import figure
from bokeh.resources import Resources

from analysis.plots import Study
from analysis.report_data import WHITE

_HEIGHT = 380  # pixels
_SPAN = 0.2  # of an axis on which all scores are equal
_GREY = "#737373"
_RUN = [("run", "@id"), ("", "@name"), ("prompts", "@prompts")]
_POINT = {
    "marker": "marker",
    "size": 10,
    "line_color": "line",
    "fill_color": "fill",
    "line_width": 1.5,
    # A chosen run must not fade the others away.
    "nonselection_alpha": 1.0,
}
# All drafting runs are self-speculative, so that white marks would say nothing.
_SMALL = {"size": 7, "fill_color": "line"}


def library() -> str:
    """Return the text of BokehJS, without the parts that the figures do not use."""
    return "\n".join(Resources(mode="inline", components=["bokeh"], log_level="error").js_raw)


def figure_items(study: Study) -> dict[str, Any]:
    """Return each figure as JSON that BokehJS embeds into the element `plot-<name>`."""
    drawn = {
        "speed": _speed(study.quality_label),
        "quality": _quality(study.quality_label),
        "sweep": _sweep(),
        "acceptance": _acceptance(),
    }
    return {name: json_item(plot, ID(f"plot-{name}")) for name, plot in drawn.items()}


def _figure(x_label: str, y_label: str, **more: Any) -> Any:
    plot = figure(
        height=_HEIGHT,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,reset,save",
        x_axis_label=x_label,
        y_axis_label=y_label,
        background_fill_color=WHITE,
        **more,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.toolbar.active_drag = None  # a finger that drags scrolls the page
    return plot


def _source(name: str, *columns: str) -> ColumnDataSource:
    return ColumnDataSource({column: [] for column in columns}, name=name)


def _runs_source(name: str, *columns: str) -> ColumnDataSource:
    """Return a source of runs: a click on one opens its row."""
    facts = ("run", "id", "name", "prompts", "plan", "marker", "line", "fill")
    source = _source(name, *facts, *columns)
    code = "if (cb_obj.indices.length) openRun(source.data.run[cb_obj.indices[0]])"
    source.selected.js_on_change("indices", CustomJS(args={"source": source}, code=code))
    return source


def _respond(plot: Any, glyph: Any, *numbers: tuple[str, str]) -> None:
    """Let hovering tell the run and its numbers, and a click choose it."""
    plot.add_tools(HoverTool(renderers=[glyph], tooltips=[*_RUN, *numbers]))
    plot.add_tools(TapTool(renderers=[glyph]))


def _below(plot: Any) -> None:
    """Put the legend below the plot, where it covers no point."""
    legend = plot.legend[0]
    legend.ncols = 3
    legend.border_line_color = None
    plot.add_layout(legend, "below")


def _speed(label: str) -> Any:
    plot = _figure("decoding speed (tokens/s)", label)
    plot.x_range.start = 0
    plot.y_range.default_span = _SPAN
    front = _source("speed_front", "x", "y")
    plot.step(
        "x",
        "y",
        source=front,
        mode="before",
        color=_GREY,
        line_dash="dashed",
        legend_label="Pareto front",
    )
    points = _runs_source("speed_points", "x", "y", "ring", "scored")
    plot.scatter(
        "x",
        "y",
        source=points,
        size=17,
        marker="circle",
        fill_color=None,
        line_color=_GREY,
        line_alpha="ring",
        nonselection_line_alpha="ring",
    )
    glyph = plot.scatter("x", "y", source=points, legend_field="plan", **_POINT)
    _respond(plot, glyph, ("tokens/s", "@x{0.0}"), (label, "@y{0.000}, of @scored"))
    _below(plot)
    return plot


def _quality(label: str) -> Any:
    plot = _figure("layers removed", label)
    plot.xaxis.ticker = BasicTicker(min_interval=1)
    points = _runs_source("quality_points", "x", "y", "low", "high")
    trend = _source("quality_trend", "xs", "ys", "line")
    plot.multi_line("xs", "ys", source=trend, line_color="line", line_alpha=0.5)
    plot.segment(
        x0="x",
        y0="low",
        x1="x",
        y1="high",
        source=points,
        line_color="line",
        nonselection_alpha=1.0,
    )
    glyph = plot.scatter("x", "y", source=points, legend_field="plan", **_POINT)
    interval = ("95 % interval", "@low{0.000} to @high{0.000}")
    _respond(plot, glyph, ("layers removed", "@x"), (label, "@y{0.000}"), interval)
    _below(plot)
    return plot


def _sweep() -> Any:
    plot = _figure(
        "drafted tokens per round",
        "exit layer",
        x_range=FactorRange(name="sweep_x"),
        y_range=FactorRange(name="sweep_y"),
    )
    plot.grid.visible = False
    cells = _runs_source("sweep_cells", "x", "y", "speedup", "shown", "ink")
    mapper = LinearColorMapper(palette=Cividis256, name="sweep_shades")
    shades = {"field": "speedup", "transform": mapper}
    glyph = plot.rect(
        "x", "y", 1, 1, source=cells, fill_color=shades, line_color=WHITE, nonselection_alpha=1.0
    )
    plot.text(
        "x",
        "y",
        text="shown",
        source=cells,
        text_color="ink",
        text_align="center",
        text_baseline="middle",
        text_font_size="12px",
        nonselection_text_alpha=1.0,
    )
    plot.add_layout(ColorBar(color_mapper=mapper, width=12), "right")
    _respond(plot, glyph, ("speed-up over autoregressive", "@speedup{0.000}"))
    return plot


def _acceptance() -> Any:
    plot = _figure(
        "position in the draft (tokens)",
        "accepted (share of drafts there)",
        y_range=Range1d(start=0, end=1.05),
    )
    plot.xaxis.ticker = BasicTicker(min_interval=1)
    lines = _runs_source("acceptance_lines", "xs", "ys")
    plot.multi_line("xs", "ys", source=lines, line_color="line", line_alpha=0.5)
    points = _runs_source("acceptance_points", "x", "y")
    glyph = plot.scatter("x", "y", source=points, legend_field="plan", **_POINT | _SMALL)
    _respond(plot, glyph, ("position", "@x"), ("accepted", "@y{0.000}"))
    _below(plot)
    return plot
