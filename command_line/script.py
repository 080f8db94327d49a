"""The life of a script: signals, several processes, errors and exit codes."""

import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
_at_success: list[Callable[[], None]] = []


def at_success(call: Callable[[], None]) -> None:
    """Make `run_script` call this after the script returns without an error; last in, first out."""
    _at_success.append(call)


def command_text(argv: list[str] | None) -> str:
    """Return the command line of a script that was called with `argv`."""
    return shlex.join([sys.argv[0], *(sys.argv[1:] if argv is None else argv)])


def run_script(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Call `main` and return the exit code; print a `UsageError` as one line on stderr.

    SIGTERM interrupts as Ctrl-C does. In a run of several processes only the leading process
    prints its output, and the first process to meet an error prints it.
    """
    try:
        with _interruptible(), _only_leading_prints():
            code = main(argv)
            while _at_success:
                _at_success.pop()()
            return code
    except UsageError as error:
        if not error.told and _is_first_to_report():
            print_line(error)
        return error.exit_code
    except KeyboardInterrupt:
        if _is_first_to_report():
            print(f"{script_name()}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of the output, such as `head`, has left. Without this, Python would complain
        # at its end when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    except Exception as error:
        if _is_first_to_report():
            if not is_out_of_memory(error):
                raise
            reason = str(error) or type(error).__name__
            print_line(FailedError(f"out of memory ({reason})"))
        return FailedError.exit_code


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM too.

    Under torchrun a Ctrl-C arrives twice, from the terminal and from torchrun, so a second signal
    within a moment is ignored.
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
def _only_leading_prints() -> Iterator[None]:
    """Silence the output of all processes except the leading one."""
    if is_leading():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def _is_first_to_report() -> bool:
    """Return whether no other process on this machine has printed how the run ended."""
    if process_count() == 1:
        return True
    # torchrun makes a folder per process, all in one common folder.
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
