"""Clocks that neither miss a device's work nor make it wait."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class StepTime:
    """Calls of one kind, and the seconds that they took in all."""

    calls: int
    seconds: float


@dataclass
class Calls:
    """How many calls are timed as one."""

    count: int = 1


def now(device: torch.device) -> float:
    """Seconds of a steady clock, once `device` has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Sums the time of named steps.

    On CUDA, steps are marked by events in the stream, so that timing one makes no step wait for the
    host; they are read once, by `steps`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: dict[str, list[tuple]] = defaultdict(list)

    @contextmanager
    def time(self, step: str) -> Iterator["Calls"]:
        """Times what is done inside as one call of `step`, or as many as are counted there."""
        begin, calls = self._mark(), Calls()
        yield calls
        self._marks[step].append((calls.count, begin, self._mark()))

    def steps(self) -> dict[str, StepTime]:
        """Calls and total seconds of every step timed so far."""
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

    def _seconds(self, begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
        return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000
