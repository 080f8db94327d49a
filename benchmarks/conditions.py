"""The facts at the head of every benchmark's results, the line under its table, and its files."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from files.commit import current_commit
from files.writing import replace_text


def head(command: str, argv: list[str] | None, model: str) -> dict[str, Any]:
    """Return the first facts of the results: the whole command, commit, date and model."""
    flags = sys.argv[1:] if argv is None else argv
    return {
        "command": shlex.join([*command.split(), *flags]),
        "commit": current_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "model": model,
    }


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
    replace_text(path.with_suffix(".json"), json.dumps(results, indent=1) + "\n")
    replace_text(path.with_suffix(".md"), page)
