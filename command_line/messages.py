"""What a script says on stderr, from one process of several."""

import os
import sys
from pathlib import Path

from command_line.errors import UsageError


def process_count() -> int:
    """How many processes torchrun started for this run; 1 without it."""
    return _launched("WORLD_SIZE", 1)


def is_leading() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return process_count() == 1 or _launched("RANK", 0) == 0


def _launched(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def warn(message: str) -> None:
    """Says on stderr what the user should know of a run that goes on; one process says it."""
    if is_leading():
        print(f"warning: {message}", file=sys.stderr)


def shown(value: float | None, form: str) -> str:
    """A number as a summary prints it, which may not have been measured."""
    return "none" if value is None else format(value, form)


def print_error(error: UsageError) -> None:
    """Says on stderr what went wrong where the script goes on; one process says it."""
    if is_leading():
        print_line(error)


def print_line(error: UsageError) -> None:
    """One line on stderr, under the script's name."""
    line = " ".join(str(error).split())
    print(f"{script_name()}: error: {line}", file=sys.stderr)


def script_name() -> str:
    return Path(sys.argv[0]).name
