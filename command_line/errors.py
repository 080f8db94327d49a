"""Errors that end a script: one line each, and an exit code."""

from typing import NoReturn

EXIT_USAGE = 2
EXIT_BUSY = 75  # sysexits.h: a temporary failure, worth another try
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141
_CPU_MEMORY = "DefaultCPUAllocator: can't allocate memory"


class UsageError(ValueError):
    """Input that cannot work; the message names the flag, the value and the allowed values."""

    exit_code = EXIT_USAGE
    told = False  # whether another process prints the message


class FailedError(UsageError):
    """A run broke down; its log keeps the results so far."""

    exit_code = 1


class BusyError(UsageError):
    """Another process holds the run or the folder."""

    exit_code = EXIT_BUSY


class InterruptedRunError(UsageError):
    """A signal ended another process of the run."""

    exit_code = EXIT_INTERRUPTED


class LostError(FailedError):
    """Another process of the run is gone, so the run cannot go on."""


def error_named(name: str) -> type[UsageError]:
    """Return the class of an error that another process raised."""
    kinds = (UsageError, FailedError, BusyError, InterruptedRunError, LostError)
    return {kind.__name__: kind for kind in kinds}.get(name, FailedError)


def reject(flag: str, value: object, allowed: str) -> NoReturn:
    """Raise the `UsageError` of a bad flag; it shows the value as the command line spells it."""
    shown = "" if value is None else f" {str(value).lower() if isinstance(value, bool) else value}"
    raise UsageError(f"--{flag}{shown}: {allowed}")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a device or this machine lacked memory, without importing torch."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"OutOfMemoryError", "MemoryError"}) or _CPU_MEMORY in str(error)
