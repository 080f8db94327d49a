"""Sides that decode the same prompts in turn, and what becomes of a side that fails."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.measuring import timed
from benchmarks.peer_engines import PACKAGES, Decoded, Engine, Setting, Side, build
from command_line.messages import warn
from self_speculation.timing import now


@dataclass
class Turns:
    """The sides that take part, with their engines, and the reasons of those left out.

    A side that fails is left out and the others go on. `needed` is the system whose errors are
    raised instead.
    """

    setting: Setting
    needed: str | None = None
    engines: dict[Side, Engine] = field(default_factory=dict)
    setup: dict[str, dict[str, float | None]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def prepare(self, side: Side, prompt_ids: list[int], steps: int) -> None:
        """Build the side, and decode so many tokens once with it, as far as there is room."""
        steps = min(steps, self.setting.capacity - len(prompt_ids))
        device = self.setting.model.device
        started = now(device)
        with self.attempt(side):
            engine = build(side, self.setting)
            engine.decode(prompt_ids, steps).check_count(steps)
            self.engines[side] = engine
            self.setup[side.name] = {
                "seconds": now(device) - started,
                "compile_seconds": engine.compile_seconds,
            }
            print(f"ready: {side.name}", file=sys.stderr, flush=True)

    @contextmanager
    def attempt(self, side: Side) -> Iterator[None]:
        """Leave out the side, and warn, if it fails inside the block."""
        try:
            yield
        except Exception as error:  # a peer may raise anything
            if side.system == self.needed:
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if isinstance(error, ModuleNotFoundError) and error.name in PACKAGES:
                reason = f"{error.name} is not installed; see benchmarks/requirements.txt"
            self.left_out[side.name] = reason
            self.engines.pop(side, None)
            warn(f"{side.name} is left out: {reason}")

    def timed(self, side: Side, prompt_ids: list[int], steps: int) -> tuple[float, Decoded]:
        """Return the seconds and the output of exactly so many tokens."""
        decode = self.engines[side].decode
        seconds, made = timed(self.setting.model.device, lambda: decode(prompt_ids, steps))
        made.check_count(steps)
        return seconds, made
