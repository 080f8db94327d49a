"""Reads the examples of a finished run into arrays."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy

from runs.reader import whole_lines
from runs.record import RUN, RunRecord, SampleRecord, is_finished, samples_path

# Errors from reading a file that is no log of either tool.
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, IndexError)


@dataclass(frozen=True)
class Examples:
    """A run's E finished examples, which its R timed passes decoded: arrays (E,) and (E, R).

    Plain texts, which are not decoded, have no output, no token and no time.

    `scores` and `outputs`, which are hashes of token ids, come from the first pass. `timed` marks
    the examples that count for speed: those with the ranks and threads of the run's seconds in some
    pass. Their `decoded_tokens` and `decode_seconds` are sums over these passes, so that tokens /
    seconds is the run's speed. `tokens_by_pass` and `seconds_by_pass` hold each pass alone, NaN
    where it does not count, as in a batch; `repeats` (R,) numbers the passes. `categories` are
    texts, empty where there are none. `copied_tokens` is NaN where nothing was counted.
    `teacher_forced` holds sums over tokens, `scores` also their `nats_per_token`.
    """

    indices: numpy.ndarray
    example_ids: numpy.ndarray
    scores: dict[str, numpy.ndarray]
    decoded_tokens: numpy.ndarray
    decode_seconds: numpy.ndarray
    outputs: numpy.ndarray
    timed: numpy.ndarray
    repeats: numpy.ndarray
    tokens_by_pass: numpy.ndarray
    seconds_by_pass: numpy.ndarray
    categories: numpy.ndarray
    output_tokens: numpy.ndarray
    drafted_tokens: numpy.ndarray
    accepted_tokens: numpy.ndarray
    rounds: numpy.ndarray
    copied_tokens: numpy.ndarray
    teacher_forced: dict[str, numpy.ndarray]

    def at(self, places: numpy.ndarray) -> "Examples":
        """Return the examples at these places."""

        def chosen(held: Any) -> Any:
            if isinstance(held, dict):
                return {name: values[places] for name, values in held.items()}
            return held[places]

        by_example = {name: held for name, held in vars(self).items() if name != "repeats"}
        return replace(self, **{name: chosen(held) for name, held in by_example.items()})

    def whole_passes(self, chosen_E: numpy.ndarray) -> numpy.ndarray:
        """Return the numbers of the passes with seconds of all these examples, (W,)."""
        return self.repeats[numpy.isfinite(self.seconds_by_pass[chosen_E]).all(axis=0)]

    def timings(self, chosen_E: numpy.ndarray, passes_W: numpy.ndarray) -> numpy.ndarray:
        """Return decoded tokens and seconds of these examples in each of the passes, (E, W, 2).

        Without passes, the sums over all of them are one pass.
        """
        if len(passes_W):
            parts_ER2 = numpy.stack([self.tokens_by_pass, self.seconds_by_pass], axis=2)
            return parts_ER2[chosen_E][:, numpy.isin(self.repeats, passes_W)]
        return numpy.stack([self.decoded_tokens, self.decode_seconds], axis=1)[chosen_E, None]


def read_examples(path: Path, record: RunRecord) -> tuple[Examples | None, list[str]]:
    """Return the run's examples, or None and a warning if their file does not hold them all."""
    try:
        samples = whole_lines(samples_path(path), RUN)[0]
        expected = record.metrics["counts"]["prompts"]
        first = [sample for sample in samples if sample.repeat == 0]
        if len(first) != expected:
            found = f"its samples file holds {len(first)} of {expected} prompts"
            return None, [f"is compared without intervals: {found}"]
        done = list(filter(is_finished, first))
        passes = list(filter(is_finished, samples))
        return _arrays(done, passes, record.metrics.get("timed")) if done else None, []
    except UNREADABLE as error:
        return None, [f"is compared without intervals: its samples are damaged ({reason(error)})"]


def _arrays(
    done: list[SampleRecord], passes: list[SampleRecord], timed: dict[str, Any] | None
) -> Examples:
    """Return the examples that the first pass finished, with the times of all `passes`.

    `timed` names the ranks and threads of the run's seconds.
    """
    alike = timed or vars(done[0])
    counting = [s for s in passes if (s.ranks, s.threads) == (alike["ranks"], alike["threads"])]
    repeats = sorted({sample.repeat for sample in passes})
    tokens_ER, seconds_ER = _by_pass(done, counting, repeats)
    is_timed = ~numpy.isnan(seconds_ER).all(axis=1)
    sums_by_name = _teacher_forced(done)

    def sums(values_ER: numpy.ndarray, untimed: Iterable[float | None]) -> numpy.ndarray:
        return numpy.where(is_timed, numpy.nansum(values_ER, axis=1), _numbers(untimed))

    return Examples(
        indices=numpy.array([sample.index for sample in done]),
        example_ids=numpy.array([sample.example_id for sample in done]),
        scores=_scores(done, sums_by_name),
        decoded_tokens=sums(tokens_ER, (sample.decoded_tokens for sample in done)),
        decode_seconds=sums(seconds_ER, (sample.decode_seconds for sample in done)),
        outputs=numpy.array([hash(tuple(sample.output_ids)) for sample in done]),
        timed=is_timed,
        repeats=numpy.array(repeats),
        tokens_by_pass=tokens_ER,
        seconds_by_pass=seconds_ER,
        categories=numpy.array([sample.category or "" for sample in done]),
        output_tokens=_numbers(len(sample.output_ids) for sample in done),
        drafted_tokens=_numbers(sample.drafted_tokens for sample in done),
        accepted_tokens=_numbers(sample.accepted_tokens for sample in done),
        rounds=_numbers(len(sample.rounds) for sample in done),
        copied_tokens=_numbers(sample.copied_tokens for sample in done),
        teacher_forced=sums_by_name,
    )


def _by_pass(
    done: list[SampleRecord], counting: list[SampleRecord], repeats: list[int]
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return tokens and seconds of each example in each pass, (E, R), NaN where none counts."""
    row = {sample.index: number for number, sample in enumerate(done)}
    column = {repeat: number for number, repeat in enumerate(repeats)}
    tokens_ER = numpy.full((len(done), len(repeats)), numpy.nan)
    seconds_ER = tokens_ER.copy()
    for sample in counting:
        if sample.index in row and sample.decode_seconds is not None:
            at = row[sample.index], column[sample.repeat]
            tokens_ER[at] = sample.decoded_tokens
            seconds_ER[at] = sample.decode_seconds
    return tokens_ER, seconds_ER


def _scores(
    done: list[SampleRecord], sums_by_name: dict[str, numpy.ndarray]
) -> dict[str, numpy.ndarray]:
    scores = {name: _numbers(sample.scores[name] for sample in done) for name in done[0].scores}
    if sums_by_name and sums_by_name["tokens"].all():
        scores["nats_per_token"] = sums_by_name["nats"] / sums_by_name["tokens"]
    return scores


def _teacher_forced(done: list[SampleRecord]) -> dict[str, numpy.ndarray]:
    """Return the sums that all examples have."""
    found = [sample.teacher_forced or {} for sample in done]
    names = set(found[0]).intersection(*found)
    sums = {name: _numbers(one[name] for one in found) for name in sorted(names)}
    return sums if {"tokens", "nats"} <= names else {}


def _numbers(values: Iterable[float | None]) -> numpy.ndarray:
    """Return an array of numbers, NaN where one is None."""
    return numpy.array(list(values), dtype=float)


def reason(error: BaseException) -> str:
    """Return why a log cannot be read, in one line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    if isinstance(error, TypeError | AttributeError):
        return "a value in it is of another kind than in a run's log"
    return " ".join(str(error).split())
