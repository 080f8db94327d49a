"""Parse a command line into checked dataclasses.

This module does not import torch, so a mistyped flag is reported at once.
"""

import argparse
import dataclasses
import difflib
import math
import os
import re
import sys
import types
import typing
from dataclasses import field
from pathlib import Path
from typing import Any, NoReturn

from command_line.errors import UsageError, reject


def is_folder(name: str) -> bool:
    """Return whether the folder exists, for any name at all."""
    return os.path.isdir(name)  # noqa: PTH112  Path.is_dir raises for long names


def check_new_folder(name: str, value: str, may_exist: bool) -> None:
    """Reject a folder that cannot be made or written, before any computation."""
    try:
        if Path(value).exists() and not may_exist:
            reject(name, value, "exists already; name a new folder")
        nearest = next(path for path in (Path(value), *Path(value).parents) if path.exists())
    except OSError as error:
        reject(name, value, f"is no possible folder ({error.strerror})")
    if not nearest.is_dir():
        reject(name, value, f"{nearest} is a file; name a folder")
    if not os.access(nearest, os.W_OK):
        reject(name, value, f"{nearest} is not writable")


def check_new_file(name: str, value: str, suffix: str) -> None:
    """Reject a file that cannot be written, before any computation; an existing one is replaced."""
    path = Path(value)
    if path.suffix != suffix:
        reject(name, value, f"must end in {suffix}")
    if is_folder(value):
        reject(name, value, f"is a folder; name a file that ends in {suffix}")
    try:
        check_new_folder(name, str(path.parent), may_exist=True)
    except UsageError as error:
        reject(name, value, str(error).partition(": ")[2])


def unescaped(text: str) -> str:
    r"""Return the text with \n, \t and \\ replaced by the characters they stand for."""
    named = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda match: named[match[1]], text)


def check_least(flags: Any, **least: float) -> None:
    """Reject a flag's number, or a number in its list, that is infinite or below the least."""
    for name, smallest in least.items():
        value = getattr(flags, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not smallest <= number < math.inf:
                finite = "" if math.isfinite(number) else "a finite number of "
                reject(name, number, f"must be {finite}at least {smallest}")


def flag(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """Return a dataclass field that is a command-line flag."""
    metadata = {"help": help, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises a one-line `UsageError` instead of printing its usage and exiting."""

    def read(self, argv: list[str] | None) -> argparse.Namespace:
        """Return the flags of `argv`, by default of the process."""
        words = sys.argv[1:] if argv is None else argv
        for text in words:
            if text != text.encode(errors="replace").decode():
                shown = text.encode(errors="backslashreplace").decode()
                raise UsageError(f"{shown}: is not UTF-8 text")
            if "\0" in text:
                raise UsageError(f"{text!r}: holds a null character")
        values, unknown = self.parse_known_args(words)
        if unknown:
            raise UsageError(_unknown_message(unknown[0], vars(values)))
        return values

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def parse(
    argv: list[str] | None,
    description: str,
    *groups: type,
    defaults: dict[str, Any] | None = None,
) -> list[Any]:
    """Parse `argv` (default: of the process) into one checked instance per dataclass.

    `defaults` replace those of the fields. Raise `UsageError` for any error that can be seen
    without a model.
    """
    parser = OneLineParser(description=description, allow_abbrev=False)
    for group in groups:
        section = parser.add_argument_group((group.__doc__ or "").rstrip("."))
        for item in dataclasses.fields(group):
            hint = typing.get_type_hints(group)[item.name]
            _add_flag(section, item, hint, (defaults or {}).get(item.name, default_of(item)))
    values = parser.read(argv)
    instances = [
        group(**{item.name: getattr(values, item.name) for item in dataclasses.fields(group)})
        for group in groups
    ]
    for instance in instances:
        instance.check()
    return instances


def _unknown_message(unknown: str, known: dict[str, Any]) -> str:
    name = unknown.partition("=")[0]
    close = difflib.get_close_matches(name.lstrip("-"), known, n=1)
    hint = f"; did you mean --{close[0]}?" if close and name.startswith("-") else ""
    return f"{name}: no such flag{hint}"


def default_of(item: dataclasses.Field) -> Any:
    """Return the default of a field that `flag` made."""
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def _add_flag(section: Any, item: dataclasses.Field, hint: Any, default: Any) -> None:
    kind, many = hint, False
    if isinstance(kind, types.UnionType):
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is list:
        (kind,), many = typing.get_args(kind), True
    shown = "" if default in (None, "", []) else f" (default: {default})"
    section.add_argument(
        f"--{item.name}",
        type=_boolean if kind is bool else kind,
        nargs="+" if many else None,
        default=default,
        choices=item.metadata["choices"],
        help=item.metadata["help"].replace("%", "%%") + shown,
        metavar=None if item.metadata["choices"] else kind.__name__.upper(),
    )


def _boolean(text: str) -> bool:
    choices = {"true": True, "false": False}
    if text.lower() not in choices:
        raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")
    return choices[text.lower()]
