"""The results of every benchmark: their head, tables, line of conditions and files."""

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from files.commit import current_commit
from files.writing import replace_json, replace_text

Row = dict[str, Any]
Columns = dict[str, Callable[[Row], Any]]  # a heading, and what it shows of a row


def head(command: str, argv: list[str] | None, model: str) -> dict[str, Any]:
    """Return the first facts of the results: the whole command, commit, date and model."""
    flags = sys.argv[1:] if argv is None else argv
    return {
        "command": shlex.join([*command.split(), *flags]),
        "commit": current_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "model": model,
    }


def table_lines(columns: Columns, rows: Iterable[Row]) -> list[str]:
    """Return the lines of a table in Markdown."""
    cells = [[str(cell(row)) for cell in columns.values()] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in ([*columns], *cells)]
    return [lines[0], "|" + "---|" * len(columns), *lines[1:]]


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def bounded(values: Sequence[Any] | None) -> str:
    """Return a value with its low and high bounds, which are None for a single measurement."""
    if values is None:
        return "-"
    value, low, high = values
    return f"{value:.2f}" if low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def conditions(
    results: dict[str, Any],
    runtime: dict[str, Any],
    measured: str,
    packages: dict[str, str | None] | None = None,
) -> str:
    """Return the line under a table: what was measured, on which machine, by which command.

    `results` begin with the `head`, and `runtime` holds the facts of a `Runtime`. `packages` are
    the versions of other packages; None is not installed.
    """
    versions = {name: runtime["versions"].get(name) for name in ("torch", "transformers")}
    threads = runtime["threads"]
    known = (versions | (packages or {})).items()
    facts = [
        results["model"],
        measured,
        runtime["dtype"],
        f"{runtime['device']} ({threads} thread{'s' * (threads != 1)})",
        *(f"{name} {version}" for name, version in known if version),
        f"commit {(results['commit'] or 'unknown')[:12]}",
        results["date"],
    ]
    return f"{', '.join(facts)}: `{results['command']}`"


def write_results(path: Path, results: dict[str, Any], page: str) -> None:
    """Write `path`.json and `path`.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_json(path.with_suffix(".json"), results)
    replace_text(path.with_suffix(".md"), page)
