"""Clocks that include a device's work without making it wait."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class StepTime:
    """Number of calls of one kind, and their total seconds."""

    calls: int
    seconds: float


@dataclass
class Calls:
    """Number of calls that are timed together."""

    count: int = 1


def now(device: torch.device) -> float:
    """Wait for the device to finish its work; return the seconds of a steady clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Adds up the time of named steps.

    On CUDA, events in the stream mark the beginning and end of a step, so that no step waits for
    the host; only `steps` waits for them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: dict[str, list[tuple]] = defaultdict(list)

    @contextmanager
    def time(self, step: str) -> Iterator[Calls]:
        """Time the block as one call of `step`, or as many as it sets in `count`."""
        begin, calls = self._mark(), Calls()
        yield calls
        self._marks[step].append((calls.count, begin, self._mark()))

    def steps(self) -> dict[str, StepTime]:
        """Return calls and total seconds of every step timed so far."""
        now(self._device)
        return {
            step: StepTime(
                sum(calls for calls, _, _ in marks),
                sum(self._seconds(begin, end) for _, begin, end in marks),
            )
            for step, marks in self._marks.items()
        }

    def _mark(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _seconds(self, begin: float | torch.cuda.Event, end: Any) -> float:
        """Return the seconds between two marks, both times or both events."""
        return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000
