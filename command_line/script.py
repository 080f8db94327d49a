"""The life of a script: signals, several processes, and from an error to an exit code."""

import math
import os
import shlex
import signal
import sys
import threading
import time
import typing
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from command_line.errors import (
    EXIT_CLOSED_PIPE,
    EXIT_INTERRUPTED,
    FailedError,
    UsageError,
    is_out_of_memory,
)
from command_line.messages import is_leading, print_line, process_count, script_name

_ECHO_SECONDS = 2
_at_success: list[typing.Callable[[], None]] = []


def at_success(call: typing.Callable[[], None]) -> None:
    """Has `run_script` call this once the script has returned, and not where an error ends it.

    What was given last is called first.
    """
    _at_success.append(call)


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
            print_line(error)
        return error.exit_code
    except KeyboardInterrupt:
        if _is_first_to_tell():
            print(f"{script_name()}: interrupted", file=sys.stderr)
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
            print_line(FailedError(f"out of memory ({reason})"))
        return FailedError.exit_code


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
