"""Reads a report's page, and studies to make reports of."""

import json
from html.parser import HTMLParser
from pathlib import Path

from analysis.comparison import compare
from analysis.report import Report, page
from analysis.tables import make_tables
from benchmarks.made_up_runs import MadeUpRun, angular_plan, base_plan, random_plan
from tests.made_up import AUTOREGRESSIVE, SPECULATIVE, read


def write_study(folder: Path) -> None:
    """Write runs for every plot: plans, exit layers, drafts, compiled and eager, two seeds."""
    for plan in (base_plan(), angular_plan(2), random_plan(0.2, 1), random_plan(0.2, 2)):
        score = 0.5 if plan.method == "base" else 0.3
        MadeUpRun(plan=plan, score=score, **AUTOREGRESSIVE).write(folder)
        for exit_layer, drafts in ((8, 4), (8, 6), (12, 6)):
            seconds = 0.4 + 0.02 * exit_layer - 0.02 * drafts
            run = MadeUpRun(plan=plan, score=score, seconds=seconds)
            run.exit_layer, run.num_speculations = exit_layer, drafts
            run.write(folder)
    for decoder in (AUTOREGRESSIVE, SPECULATIVE):
        MadeUpRun(identity={"compile": True}, seconds=0.3, **decoder).write(folder)


def make_report(folder: Path, **more) -> Report:
    runs = read(folder)
    comparisons = compare(runs)
    values = {
        "notes": [],
        "folders": [str(folder)],
        "quality": "rouge-l",
        "most_loss": 0.01,
    }
    return Report(runs, comparisons, make_tables(runs, comparisons), **values | more)


class Page(HTMLParser):
    """A parsed page: texts outside of scripts, tags with their attributes, and table rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        # Rows of each named table: the row's attributes, and its cells as (text, attributes).
        self.tables: dict[str, list[tuple[dict, list[tuple[str, dict]]]]] = {}
        self._table = self._inside = ""
        self.feed(text)
        self.close()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        self._inside = tag
        if tag == "table":
            self._table = found.get("data-name", "")
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append((found, []))
        elif tag == "td":
            self.tables[self._table][-1][1].append(("", found))
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.texts.append(data)
            if self._inside == "td":
                cells = self.tables[self._table][-1][1]
                cells[-1] = (cells[-1][0] + data.rstrip("\n"), cells[-1][1])


def parsed(folder: Path, **more) -> Page:
    return Page(page(make_report(folder, **more)))
