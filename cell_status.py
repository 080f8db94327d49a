"""Tells of the cells of a sweep which are complete, and what is left of the others.

Reads the flags of benchmark.py from standard input, every flag ended by the ASCII unit separator
and every cell by the record separator. Writes a line for every cell, tabs between: complete,
partial, missing or error; the prompts that are left; the run's file, or what is wrong.
"""

import sys
from collections.abc import Callable
from typing import Any

from arguments.run import RUN_GROUPS, RunArguments
from command_line.errors import UsageError
from command_line.flags import parse
from command_line.script import run_script
from runs.reader import read_record, read_samples

UNIT, RECORD = "\037", "\036"
Status = tuple[str, int, Any]


def main(argv: list[str] | None = None) -> int:
    parse(argv, __doc__)
    status_of = make_status()
    for record in sys.stdin.read().split(RECORD)[:-1]:
        try:
            status = status_of(RunArguments(*parse(record.split(UNIT)[:-1], "", *RUN_GROUPS)))
        except UsageError as error:
            status = "error", 0, " ".join(str(error).split())
        print(*status, sep="\t", flush=True)
    return 0


def make_status() -> Callable[[RunArguments], Status]:
    """A function from a cell to its status, which finds a model and reads examples but once."""
    from runs.definition import run_definer
    from runs.writer import find_run

    define_run = run_definer()

    def status_of(arguments: RunArguments) -> Status:
        cell = define_run(arguments)
        path = find_run(arguments.log.output_dir, cell.run_id)
        count = len(cell.evaluated.examples)
        if path is None:
            return "missing", count, ""
        try:
            if read_record(path).status == "complete":
                return "complete", 0, path
            return "partial", count - len(read_samples(path)), path
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error}") from error

    return status_of


if __name__ == "__main__":
    sys.exit(run_script(main))
