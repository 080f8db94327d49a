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
    """A run's E finished examples, which its R timed passes decoded: arrays (E,) and (E, R).

    `scores` and `outputs`, which are hashes of token ids, come from the first pass. `timed` marks
    the examples that count for speed: those with the ranks and threads of the run's seconds in some
    pass. Their `decoded_tokens` and `decode_seconds` are sums over these passes, so that tokens /
    seconds is the run's speed. `tokens_by_pass` and `seconds_by_pass` hold each pass alone, NaN
    where it does not count.
    """

    indices: numpy.ndarray
    scores: dict[str, numpy.ndarray]
    decoded_tokens: numpy.ndarray
    decode_seconds: numpy.ndarray
    outputs: numpy.ndarray
    timed: numpy.ndarray
    tokens_by_pass: numpy.ndarray
    seconds_by_pass: numpy.ndarray

    def at(self, places: numpy.ndarray) -> "Examples":
        """Return the examples at these places."""
        arrays = {name: one[places] for name, one in vars(self).items() if name != "scores"}
        return Examples(scores={k: v[places] for k, v in self.scores.items()}, **arrays)


def read_examples(path: Path, record: RunRecord) -> tuple[Examples | None, list[str]]:
    """Return the run's examples, or None and a warning if their file does not hold them all."""
    try:
        samples = whole_lines(samples_path(path), RUN)[0]
        expected = record.metrics["counts"]["prompts"]
        first = [sample for sample in samples if sample.repeat == 0]
        if len(first) != expected:
            found = f"its samples file holds {len(first)} of {expected} prompts"
            return None, [f"is compared without intervals: {found}"]
        done = list(filter(is_done, first))
        passes = list(filter(is_done, samples))
        return _arrays(done, passes, record.metrics.get("timed")) if done else None, []
    except UNREADABLE as error:
        return None, [f"is compared without intervals: its samples are damaged ({reason(error)})"]


def _arrays(
    done: list[DoneSample], passes: list[DoneSample], timed: dict[str, Any] | None
) -> Examples:
    """Return the examples that the first pass finished, with the times of all `passes`.

    `timed` names the ranks and threads of the run's seconds.
    """
    alike = timed or vars(done[0])
    counting = [s for s in passes if (s.ranks, s.threads) == (alike["ranks"], alike["threads"])]
    row = {sample.index: number for number, sample in enumerate(done)}
    repeats = sorted({sample.repeat for sample in passes})
    column = {repeat: number for number, repeat in enumerate(repeats)}
    tokens_ER = numpy.full((len(done), len(repeats)), numpy.nan)
    seconds_ER = tokens_ER.copy()
    for sample in counting:
        if sample.index in row and sample.decode_seconds is not None:
            at = row[sample.index], column[sample.repeat]
            tokens_ER[at] = len(sample.output_ids) - 1
            seconds_ER[at] = sample.decode_seconds
    is_timed = ~numpy.isnan(seconds_ER).all(axis=1)

    def numbers(values: Iterable[float]) -> numpy.ndarray:
        return numpy.array(list(values), dtype=float)

    def sums(values_ER: numpy.ndarray, untimed: Iterable[float]) -> numpy.ndarray:
        return numpy.where(is_timed, numpy.nansum(values_ER, axis=1), numbers(untimed))

    return Examples(
        indices=numpy.array([sample.index for sample in done]),
        scores={name: numbers(sample.scores[name] for sample in done) for name in done[0].scores},
        decoded_tokens=sums(tokens_ER, (sample.decoded_tokens for sample in done)),
        decode_seconds=sums(seconds_ER, (sample.decode_seconds for sample in done)),
        outputs=numpy.array([hash(tuple(sample.output_ids)) for sample in done]),
        timed=is_timed,
        tokens_by_pass=tokens_ER,
        seconds_by_pass=seconds_ER,
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
