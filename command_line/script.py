"""From a command line to checked dataclasses, and from an error to one line and an exit code.

Nothing here imports torch, so that a mistyped flag is answered at once.
"""

import argparse
import dataclasses
import difflib
import math
import os
import re
import shlex
import signal
import sys
import threading
import time
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import field
from pathlib import Path
from typing import Any, NoReturn

EXIT_USAGE = 2
EXIT_BUSY = 75  # sysexits.h: a temporary failure, worth another try
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141
_ECHO_SECONDS = 2
_at_success: list[typing.Callable[[], None]] = []
_CPU_MEMORY = "DefaultCPUAllocator: can't allocate memory"


class UsageError(ValueError):
    """Input that cannot work; the message names the flag, the value and what is allowed."""

    exit_code = EXIT_USAGE
    told = False  # whether another process says it


class FailedError(UsageError):
    """A run that broke down on its way; what it had is in its log."""

    exit_code = 1


class BusyError(UsageError):
    """Another process is at it."""

    exit_code = EXIT_BUSY


class InterruptedRunError(UsageError):
    """A signal ended the run in another process."""

    exit_code = EXIT_INTERRUPTED


class LostError(FailedError):
    """Another process is gone, and nothing more can be done together with it."""


def error_named(name: str) -> type[UsageError]:
    """The kind of error that another process raised."""
    kinds = (UsageError, FailedError, BusyError, InterruptedRunError, LostError)
    return {kind.__name__: kind for kind in kinds}.get(name, FailedError)


def at_success(call: typing.Callable[[], None]) -> None:
    """Has `run_script` call this once the script has returned, and not where an error ends it.

    What was given last is called first.
    """
    _at_success.append(call)


def process_count() -> int:
    """How many processes torchrun started for this run; 1 without it."""
    return _launched("WORLD_SIZE", 1)


def is_leading() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return process_count() == 1 or _launched("RANK", 0) == 0


def _launched(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def reject(flag: str, value: object, allowed: str) -> NoReturn:
    """Raises the `UsageError` that every bad flag gets."""
    shown = "" if value is None else f" {value}"
    raise UsageError(f"--{flag}{shown}: {allowed}")


def warn(message: str) -> None:
    """Says on stderr what the user should know of a run that goes on; one process says it."""
    if is_leading():
        print(f"warning: {message}", file=sys.stderr)


def shown(value: float | None, form: str) -> str:
    """A number as a summary prints it, which may not have been measured."""
    return "none" if value is None else format(value, form)


def is_folder(name: str) -> bool:
    """Whether there is such a folder; no name is too odd to be asked for."""
    return os.path.isdir(name)  # noqa: PTH112  Path's own raises where a name is too long


def check_new_folder(name: str, value: str, may_exist: bool) -> None:
    """Refuses a folder that cannot be made or written, before anything is computed for it."""
    try:
        if Path(value).exists() and not may_exist:
            reject(name, value, "exists already; name a new folder")
        nearest = next(path for path in (Path(value), *Path(value).parents) if path.exists())
    except OSError as error:
        reject(name, value, f"is no possible folder ({error.strerror})")
    if not nearest.is_dir():
        reject(name, value, f"{nearest} is a file; name a folder")
    if not os.access(nearest, os.W_OK):
        reject(name, value, f"{nearest} may not be written")


def unescaped(text: str) -> str:
    r"""The text with \n, \t and \\ read as a shell's user means them."""
    named = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda match: named[match[1]], text)


def flag(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that is a command-line flag."""
    metadata = {"help": help, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class OneLineParser(argparse.ArgumentParser):
    """Raises a one-line `UsageError` where argparse would print its usage and exit."""

    def parse_known_args(self, args: list[str] | None = None, namespace: Any = None) -> Any:
        for text in sys.argv[1:] if args is None else args:
            if text != text.encode(errors="replace").decode():
                shown = text.encode(errors="backslashreplace").decode()
                raise UsageError(f"{shown}: is not UTF-8 text")
            if "\0" in text:
                raise UsageError(f"{text!r}: holds a null, which no path or text may")
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: list[str] | None = None, namespace: Any = None) -> Any:
        values, unknown = self.parse_known_args(args, namespace)
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
    """Parses `argv` (default: the process's own) into one checked instance of each dataclass.

    `defaults` are a script's own, in place of the fields'. Raises `UsageError` for anything that
    no model is needed to see.
    """
    parser = OneLineParser(description=description, allow_abbrev=False)
    for group in groups:
        section = parser.add_argument_group(group.__doc__.rstrip("."))
        for item in dataclasses.fields(group):
            hint = typing.get_type_hints(group)[item.name]
            _add_flag(section, item, hint, (defaults or {}).get(item.name, _default(item)))
    values = parser.parse_args(argv)
    instances = [
        group(**{item.name: getattr(values, item.name) for item in dataclasses.fields(group)})
        for group in groups
    ]
    for instance in instances:
        instance.check()
    return instances


def command_text(argv: list[str] | None) -> str:
    """The command as a log tells it, of a script that was called with `argv`."""
    return shlex.join([sys.argv[0], *(sys.argv[1:] if argv is None else argv)])


def run_script(
    main: typing.Callable[[list[str] | None], int], argv: list[str] | None = None
) -> int:
    """Calls `main`; a `UsageError` becomes one line on stderr and its exit code, mostly 2.

    SIGTERM interrupts as Ctrl-C does. Of several processes the leading one has the terminal, and
    an error is shown by the first that meets it.
    """
    try:
        with _interruptible(), _one_voice():
            code = main(argv)
            while _at_success:
                _at_success.pop()()
            return code
    except UsageError as error:
        if not error.told and _is_first_to_tell():
            _print_line(error)
        return error.exit_code
    except KeyboardInterrupt:
        if _is_first_to_tell():
            print(f"{_script()}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has seen enough. Python would try to write the
        # rest at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    except Exception as error:
        if _is_first_to_tell():
            if not is_out_of_memory(error):
                raise
            reason = str(error) or type(error).__name__
            _print_line(FailedError(f"out of memory ({reason})"))
        return FailedError.exit_code


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or this machine lacked memory, in torch's words or Python's."""
    # torch's own class has this name; it is not imported for it.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"OutOfMemoryError", "MemoryError"}) or _CPU_MEMORY in str(error)


def print_error(error: UsageError) -> None:
    """Says on stderr what went wrong where the script goes on; one process says it."""
    if is_leading():
        _print_line(error)


def _print_line(error: UsageError) -> None:
    """One line on stderr, under the script's name."""
    line = " ".join(str(error).split())
    print(f"{_script()}: error: {line}", file=sys.stderr)


def _script() -> str:
    return Path(sys.argv[0]).name


@contextmanager
def _interruptible() -> Iterator[None]:
    """Makes SIGTERM a KeyboardInterrupt too.

    A Ctrl-C comes from the terminal, and once more, as either signal, from torchrun: what follows
    another within a moment is ignored there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    latest = -math.inf

    def interrupt(*_: Any) -> None:
        nonlocal latest
        now = time.monotonic()
        if "WORLD_SIZE" in os.environ and now - latest < _ECHO_SECONDS:
            return
        latest = now
        raise KeyboardInterrupt

    found = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        for one, handler in found.items():
            if handler is not signal.SIG_IGN:
                signal.signal(one, interrupt)
        yield
    finally:
        for one, handler in found.items():
            signal.signal(one, handler)


@contextmanager
def _one_voice() -> Iterator[None]:
    """Keeps what all processes print alike to the leading one."""
    if is_leading():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def _is_first_to_tell() -> bool:
    """Whether no other process of this machine has said yet how the run ended."""
    if process_count() == 1:
        return True
    # torchrun makes a folder for each of its processes, all in one.
    folder = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not folder:
        return is_leading()
    try:
        (Path(folder).parent.parent / "told").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return is_leading()
    return True


def _unknown_message(unknown: str, known: dict[str, Any]) -> str:
    name = unknown.partition("=")[0]
    close = difflib.get_close_matches(name.lstrip("-"), known, n=1)
    hint = f"; did you mean --{close[0]}?" if close and name.startswith("-") else ""
    return f"{name}: no such flag{hint}"


def _default(item: dataclasses.Field) -> Any:
    made = item.default_factory is not dataclasses.MISSING
    return item.default_factory() if made else item.default


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
