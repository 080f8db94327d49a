"""The flags of measuring: batches, timed passes, and what is compared with the unpruned model."""

from dataclasses import dataclass
from typing import Any

from command_line.errors import reject
from command_line.flags import check_least, flag

FIRST_TOKENS = ("bos", "skip")


@dataclass(frozen=True)
class MeasureArguments:
    """What is measured beside text and speed, and on how many prompts at a time."""

    batch_size: int = flag(
        1,
        "autoregressive: prompts decoded at a time; the log then holds throughput, which no table "
        "sets beside the speed of single prompts",
    )
    repeats: int = flag(
        1, "timed passes over the prompts; a sweep alternates between decoders from pass to pass"
    )
    teacher_forced: bool = flag(
        False,
        "also measure the perplexity of references, and KL divergence and top-1 agreement with the "
        "unpruned model",
    )
    window: int = flag(512, "text: tokens that one pass over the model reads")
    stride: int | None = flag(
        None, "text: tokens from one window to the next (default: --window); at most --window"
    )
    first_token: str = flag(
        "bos",
        "text: bos puts the tokenizer's first token before each text, so that every token is "
        "predicted; skip predicts all but each text's first",
        FIRST_TOKENS,
    )

    def check(self) -> None:
        check_least(self, batch_size=1, repeats=1, window=2, stride=1)
        if self.stride is not None and self.stride > self.window:
            allowed = f"must be at most --window {self.window}, or tokens are left out"
            reject("stride", self.stride, allowed)

    def windows(self) -> dict[str, Any]:
        """Return how plain texts are divided into passes; the stride is never None."""
        stride = self.window if self.stride is None else self.stride
        return {"window": self.window, "stride": stride, "first_token": self.first_token}

    def identity(self) -> dict[str, Any]:
        """Return the flags that decide what a run measures, without those at their defaults.

        Absent flags keep the ids of runs of earlier releases. `repeats` is no part of it: a further
        pass adds to the same run.
        """
        flags = {"batch_size": self.batch_size, "teacher_forced": self.teacher_forced}
        defaults = {"batch_size": 1, "teacher_forced": False}
        return {name: value for name, value in flags.items() if value != defaults[name]}
