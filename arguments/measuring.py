"""The flags of measuring: batches, timed passes, and what is compared with the unpruned model."""

from dataclasses import dataclass
from typing import Any

from command_line.errors import reject
from command_line.flags import check_least, flag

FIRST_TOKENS = ("bos", "skip")
_WINDOW = 512


@dataclass(frozen=True)
class MeasureArguments:
    """Measures beside text and speed, and the prompts that are read at a time."""

    batch_size: int | None = flag(
        None,
        "autoregressive: prompts decoded at a time; the log then holds throughput, which no table "
        "sets beside the speed of single prompts (default: 1)",
    )
    repeats: int = flag(
        1, "timed passes over the prompts; a sweep alternates between decoders from pass to pass"
    )
    teacher_forced: bool = flag(
        False,
        "also measure the perplexity of references, and KL divergence and top-1 agreement with the "
        "unpruned model",
    )
    window: int | None = flag(
        None, "text: tokens that one pass over the model reads (default: 512)"
    )
    stride: int | None = flag(
        None, "text: tokens from one window to the next (default: --window); at most --window"
    )
    first_token: str | None = flag(
        None,
        "text: bos puts the tokenizer's first token before each text, so that every token is "
        "predicted; skip predicts all but each text's first (default: bos)",
        FIRST_TOKENS,
    )

    def check(self) -> None:
        check_least(self, batch_size=1, repeats=1, window=2, stride=1)
        windows = self.windows()
        if windows["stride"] > windows["window"]:
            allowed = f"must be at most --window {windows['window']}, or tokens are left out"
            reject("stride", self.stride, allowed)

    @property
    def at_once(self) -> int:
        """Prompts, or windows of a text, that are read at a time."""
        return self.batch_size or 1

    def windows(self) -> dict[str, Any]:
        """Return how plain texts are divided into passes."""
        window = self.window or _WINDOW
        return {
            "window": window,
            "stride": self.stride or window,
            "first_token": self.first_token or FIRST_TOKENS[0],
        }

    def identity(self) -> dict[str, Any]:
        """Return the flags that decide what a run measures, without those at their defaults.

        Absent flags keep the ids of runs of earlier releases. `repeats` is no part of it: a further
        pass adds to the same run.
        """
        batch = {"batch_size": self.at_once} if self.at_once > 1 else {}
        return batch | ({"teacher_forced": True} if self.teacher_forced else {})
