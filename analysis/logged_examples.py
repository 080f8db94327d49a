"""Reads the examples of a finished run into arrays."""

import dataclasses
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from files.reading import bounded_lines, opened, parse_log
from runs.record import RunRecord, samples_path

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
        arrays = {
            item.name: getattr(self, item.name)[places]
            for item in dataclasses.fields(self)
            if item.name != "scores"
        }
        return Examples(scores={k: v[places] for k, v in self.scores.items()}, **arrays)


def read_examples(path: Path, record: RunRecord) -> tuple[Examples | None, list[str]]:
    """Return the run's examples, or None and a warning if their file does not hold them all."""
    try:
        samples = [sample for sample in map(parse_log, _lines(path)) if sample]
        expected = record.metrics["counts"]["prompts"]
        if len(samples) != expected:
            found = f"its samples file holds {len(samples)} of {expected} prompts"
            return None, [f"is compared without intervals: {found}"]
        done = [sample for sample in samples if sample["status"] == "done"]
        return _arrays(done, record.metrics.get("timed") or {}) if done else None, []
    except UNREADABLE as error:
        return None, [f"is compared without intervals: its samples are damaged ({reason(error)})"]


def _arrays(done: list[dict[str, Any]], timed: dict[str, Any]) -> Examples:
    """Return the finished examples; `timed` names the ranks and threads of the run's seconds."""
    alike = [(timed or done[0])[name] for name in ("ranks", "threads")]

    def numbers(values: Iterable[float]) -> numpy.ndarray:
        return numpy.array(list(values), dtype=float)

    return Examples(
        indices=numpy.array([operator.index(sample["index"]) for sample in done]),
        scores={
            name: numbers(sample["scores"][name] for sample in done) for name in done[0]["scores"]
        },
        decoded_tokens=numbers(len(sample["output_ids"]) - 1.0 for sample in done),
        decode_seconds=numbers(sample["decode_seconds"] for sample in done),
        outputs=numpy.array([hash(tuple(sample["output_ids"])) for sample in done]),
        timed=numpy.array([[sample["ranks"], sample["threads"]] == alike for sample in done]),
    )


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with opened(samples_path(path)) as file:
            yield from bounded_lines(file)
    except FileNotFoundError:
        return


def reason(error: BaseException) -> str:
    """Return why a log cannot be read, in one line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    if isinstance(error, TypeError | AttributeError):
        return "a value in it is of another kind than in a run's log"
    return " ".join(str(error).split())
