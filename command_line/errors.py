"""Errors that end a script: one line each, and an exit code."""

from typing import NoReturn

EXIT_USAGE = 2
EXIT_BUSY = 75  # sysexits.h: a temporary failure, worth another try
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141
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


def reject(flag: str, value: object, allowed: str) -> NoReturn:
    """Raises the `UsageError` that every bad flag gets."""
    shown = "" if value is None else f" {value}"
    raise UsageError(f"--{flag}{shown}: {allowed}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or this machine lacked memory, in torch's words or Python's."""
    # torch's own class has this name; it is not imported for it.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"OutOfMemoryError", "MemoryError"}) or _CPU_MEMORY in str(error)
