"""Messages on stderr, from one process of a run."""

import os
import sys
from pathlib import Path

from command_line.errors import UsageError


def process_count() -> int:
    """Return the number of processes that torchrun started for this run; 1 without torchrun."""
    return _launched("WORLD_SIZE", 1)


def is_leading() -> bool:
    """Return whether this process prints for all processes of the run."""
    return process_count() == 1 or _launched("RANK", 0) == 0


def _launched(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def warn(message: str) -> None:
    """Print a warning on stderr, from the leading process only."""
    if is_leading():
        print(f"warning: {message}", file=sys.stderr)


def shown(value: float | None, form: str) -> str:
    """Format a number of a summary; `none` if it was not measured."""
    return "none" if value is None else format(value, form)


def print_error(error: UsageError) -> None:
    """Print an error after which the script goes on, from the leading process only."""
    if is_leading():
        print_line(error)


def print_line(error: UsageError) -> None:
    """Print an error as one line on stderr, after the script's name."""
    line = " ".join(str(error).split())
    print(f"{script_name()}: error: {line}", file=sys.stderr)


def script_name() -> str:
    return Path(sys.argv[0]).name
