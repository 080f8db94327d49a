"""The command line that repeats one run."""

import dataclasses
import shlex
import typing
from typing import Any

from analysis.finished_runs import LoggedRun
from arguments.run import RunArguments
from command_line.flags import default_of


def command_of(run: LoggedRun) -> str:
    """Return the logged command, after `python`.

    Of a run that is one point of a sweep, return the command of benchmark.py with the run's flags,
    without those at their defaults.
    """
    logged, command = run.record.arguments, run.record.command
    script = command.partition(" ")[0]
    if not script.endswith("sweep.py") or not logged:
        return f"python {command}" if script.endswith(".py") else command
    words = ["python", "benchmark.py"]
    for group, kind in typing.get_type_hints(RunArguments).items():
        values = logged.get(group) or {}
        for item in dataclasses.fields(kind):
            value = values.get(item.name)
            if value is not None and value != default_of(item):
                words += _flag(item.name, value)
    return shlex.join(words)


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
