"""One self-contained page of a study: headline, interactive plots, tables and conditions.

The page loads nothing: styles, scripts, BokehJS and data lie in it, and its policy forbids any
request. Its template escapes every text of a log; the data that scripts read is JSON without `<`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analysis.columns import Table
from analysis.comparison import QUALITIES, Comparison
from analysis.finished_runs import FinishedRun, LoggedRun
from analysis.headline import headlines
from analysis.headline_text import headline_content
from analysis.plots import Study
from analysis.report_data import plot_data, run_facts, settings_of
from analysis.report_figures import figure_items, library
from analysis.report_text import conditions_content, table_content
from files.writing import json_text, replace_text

HEADLINES = 12  # groups of comparable runs with a headline
_PAGE = Path(__file__).parent / "page"  # template, style and script


@dataclass(frozen=True)
class Report:
    """The content of a page; `notes` are the lines that `analyze_logs.py` prints beside tables."""

    runs: list[FinishedRun]
    comparisons: list[Comparison]
    tables: list[Table]
    notes: list[str]
    folders: list[str]
    quality: str
    most_loss: float

    @property
    def own(self) -> list[LoggedRun]:
        return [run for run in self.runs if isinstance(run, LoggedRun)]


def write_report(path: Path, report: Report) -> None:
    """Write the page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, page(report))


def page(report: Report) -> str:
    """Return the page as HTML."""
    loader = FileSystemLoader(_PAGE)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = report.own
    places = {run.path.name: place for place, run in enumerate(own)}
    chosen = headlines(report.comparisons, report.quality, report.most_loss)
    return environment.get_template("report.html").render(
        report=report,
        own=own,
        places=places,
        quality=QUALITIES[report.quality],
        headlines=[
            headline_content(one, report.quality, report.most_loss) for one in chosen[:HEADLINES]
        ],
        more_headlines=max(len(chosen) - HEADLINES, 0),
        tables=[table_content(table, places, own) for table in report.tables],
        conditions=conditions_content(own),
        style=(_PAGE / "report.css").read_text(encoding="utf-8"),
        script=(_PAGE / "report.js").read_text(encoding="utf-8"),
        library=library() if own else "",
        data=_script_data(report, places),
    )


def _script_data(report: Report, places: Mapping[str, int]) -> str:
    """Return what the page's script draws, as JSON that cannot end its element."""
    study = Study.of(report.runs, report.quality, report.comparisons)
    settings = settings_of(study, report.comparisons, places)
    drawn = {
        "runs": [run_facts(run, study) for run in report.own],
        "settings": [plot_data(one) for one in settings],
        "figures": figure_items(study) if settings else {},
    }
    return json_text(drawn).replace("<", "\\u003c")
