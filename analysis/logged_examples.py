"""Reads the examples of a finished run into arrays."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from runs.reader import whole_lines
from runs.record import RUN, DoneSample, RunRecord, is_done, samples_path

# Errors from reading a file that is no log of either tool.
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, IndexError)


@dataclass(frozen=True)
class Examples:
    """A run's finished examples: each array holds one number per example.

    `outputs` are hashes of token ids. `timed` marks the examples that count for speed: those with
    the ranks and threads of the run's seconds.
    """

    indices: numpy.ndarray
    scores: dict[str, numpy.ndarray]
    decoded_tokens: numpy.ndarray
    decode_seconds: numpy.ndarray
    outputs: numpy.ndarray
    timed: numpy.ndarray

    def at(self, places: numpy.ndarray) -> "Examples":
        """Return the examples at these places."""
        arrays = {name: one[places] for name, one in vars(self).items() if name != "scores"}
        return Examples(scores={k: v[places] for k, v in self.scores.items()}, **arrays)


def read_examples(path: Path, record: RunRecord) -> tuple[Examples | None, list[str]]:
    """Return the run's examples, or None and a warning if their file does not hold them all."""
    try:
        samples = whole_lines(samples_path(path), RUN)[0]
        expected = record.metrics["counts"]["prompts"]
        if len(samples) != expected:
            found = f"its samples file holds {len(samples)} of {expected} prompts"
            return None, [f"is compared without intervals: {found}"]
        done = list(filter(is_done, samples))
        return _arrays(done, record.metrics.get("timed")) if done else None, []
    except UNREADABLE as error:
        return None, [f"is compared without intervals: its samples are damaged ({reason(error)})"]


def _arrays(done: list[DoneSample], timed: dict[str, Any] | None) -> Examples:
    """Return the finished examples; `timed` names the ranks and threads of the run's seconds."""
    alike = timed or vars(done[0])

    def numbers(values: Iterable[float]) -> numpy.ndarray:
        return numpy.array(list(values), dtype=float)

    return Examples(
        indices=numpy.array([sample.index for sample in done]),
        scores={name: numbers(sample.scores[name] for sample in done) for name in done[0].scores},
        decoded_tokens=numbers(len(sample.output_ids) - 1 for sample in done),
        decode_seconds=numbers(sample.decode_seconds for sample in done),
        outputs=numpy.array([hash(tuple(sample.output_ids)) for sample in done]),
        timed=numpy.array(
            [(s.ranks, s.threads) == (alike["ranks"], alike["threads"]) for s in done]
        ),
    )


def reason(error: BaseException) -> str:
    """Return why a log cannot be read, in one line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    if isinstance(error, TypeError | AttributeError):
        return "a value in it is of another kind than in a run's log"
    return " ".join(str(error).split())
