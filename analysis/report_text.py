"""The report's tables and conditions as plain values, which its template shows."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from analysis.columns import Row, Shown, Table
from analysis.finished_runs import LoggedRun

ROWS = 2000  # of a table at most, so that the page stays small
_VALUES = 12  # of a condition
Cells = list[tuple[str, str | None]]  # a cell's text, and the number to sort it by


def table_content(table: Table, places: Mapping[str, int], runs: list[LoggedRun]) -> dict[str, Any]:
    """Return a table's headings and rows; a row of one run leads with its id and its log."""
    rows = table.rows[:ROWS]
    logs = [_log(row) for row in rows]
    named = any(logs)
    columns = {name: show for name, show in table.columns.items() if not (named and name == "run")}
    content = []
    for row, log in zip(rows, logs, strict=True):
        place = places.get(log or "")
        cells: Cells = [_cell(column, row) for column in columns.values()]
        if named:
            run_id = "" if place is None else runs[place].record.run_id
            cells = [(run_id or "-", None), *cells, (log or "-", None)]
        content.append({"run": place, "cells": cells})
    headings = ["run", *columns, "log file"] if named else list(columns)
    return {
        "name": table.name,
        "title": table.title,
        "headings": headings,
        "rows": content,
        "left_out": len(table.rows) - len(rows),
    }


def _log(row: Row) -> str | None:
    """Return the name of the log of a row's run; None for a row that sums up several runs."""
    log: str | None = row.get("log")
    return row.get("older_log") if log == "older" else log


def _cell(column: Callable[[Row], str], row: Row) -> tuple[str, str | None]:
    """Return the cell's text and its number, which is empty if it is missing, None for words."""
    if not isinstance(column, Shown):
        return column(row), None
    value = row.get(column.name)
    return column(row), "" if value is None else f"{value:.9g}"


def conditions_content(runs: list[LoggedRun]) -> list[dict[str, Any]]:
    """Return each condition with its values and the number of runs that have each value."""
    counts: dict[str, Counter[str]] = {}
    for run in runs:
        for name, value in _conditions(run).items():
            counts.setdefault(name, Counter())[str(value)] += 1
    return [
        {
            "name": name,
            "values": [
                {"text": text, "runs": count} for text, count in values.most_common(_VALUES)
            ],
            "more": max(len(values) - _VALUES, 0),
        }
        for name, values in counts.items()
    ]


def _conditions(run: LoggedRun) -> dict[str, Any]:
    """Return what the run was made with: what decides a comparison, and what a reader may ask."""
    record = run.record
    seeds = record.arguments.get("generation") or {}
    calibration = record.data.get("calibration") or {}
    return {
        "model": run.model,
        "model files": record.identity["model_fingerprint"],
        **{name: value for name, value in run.conditions.items() if name != "model"},
        "data from": record.data["evaluation"].get("source"),
        "calibration rows": calibration.get("fingerprint"),
        "seed": seeds.get("seed"),
        "seed of the plan": run.prune_seed,
        "versions": ", ".join(f"{k} {v}" for k, v in record.runtime["versions"].items()),
        "commit": record.commit,
        "started on": record.started[:10],
        "starts after an interruption": len(record.resumed),
    }
