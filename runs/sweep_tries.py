"""Counts the runs that end a sweep's process: a device error, or the kernel's killer for memory.

`run_tests` names a file in SWEEP_TRIES. A run's id is a line of it from the run's begin to its end,
so that each line left over is a try that the process did not survive.
"""

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

from files.error_lines import causes

MOST_TRIES = 2


class Tries:
    """The tries that no process survived so far. Without SWEEP_TRIES nothing is counted.

    `writes` says whether this process keeps the file; other processes only read it, before a run
    begins.
    """

    def __init__(self, writes: bool) -> None:
        name = os.environ.get("SWEEP_TRIES")
        self._path = Path(name) if name else None
        self._writes = writes
        self._left_over: list[str] = []
        with suppress(OSError):
            if self._path and writes:
                self._path.touch()  # tells `run_tests` that the settings are good
            if self._path:
                self._left_over = self._path.read_text().split()

    @property
    def counts(self) -> bool:
        """Whether `run_tests` starts this sweep again after it has ended."""
        return self._path is not None

    def lost(self, run_id: str) -> bool:
        """Whether a process ended with this run."""
        return run_id in self._left_over

    def exhausted(self, run_id: str) -> bool:
        return Counter(self._left_over)[run_id] >= MOST_TRIES

    def begin(self, run_id: str) -> None:
        self._write(run_id)

    def end(self) -> None:
        self._write()

    def _write(self, *begun: str) -> None:
        if self._path and self._writes:
            with suppress(OSError):  # the sweep itself does not need the file
                self._path.write_text("".join(f"{name}\n" for name in [*self._left_over, *begun]))


def ends_the_device(error: BaseException) -> bool:
    """Whether this process can use its CUDA device no more after the error."""
    return is_device_error(error) or not _device_answers()


def _device_answers() -> bool:
    import torch

    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def is_device_error(error: BaseException) -> bool:
    """Return whether the error or a cause of it says that the CUDA device is unusable."""
    return any(map(_is_of_device, causes(error)))


def _is_of_device(error: BaseException) -> bool:
    text, kinds = str(error), {kind.__name__ for kind in type(error).__mro__}
    named = "AcceleratorError" in kinds or "CUDA error" in text
    return isinstance(error, RuntimeError) and named and "out of memory" not in text
