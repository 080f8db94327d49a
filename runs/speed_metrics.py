"""Seconds and rates of a run's examples."""

import math
import statistics
from collections.abc import Collection, Iterable
from typing import Any

from runs.record import DoneSample, Key, SampleRecord

Steps = dict[str, dict[str, float]]


def speed(done: list[DoneSample]) -> dict[str, Any]:
    """Return the metrics of speed, computed from the lines of all passes that are done.

    All seconds come from the largest group of examples with one rank and thread count. Examples
    without seconds of their own, as in a batch, are left out.
    """
    timed = _timed_alike(done)
    steps = total_steps(timed)
    step_seconds = _step_seconds(timed, steps)
    decoded = sum(sample.decoded_tokens for sample in timed)
    seconds = sum(sample.decode_seconds for sample in timed)
    return {
        "total_time": spread(s.prefill_seconds + s.decode_seconds for s in timed),
        "time_to_first_token": spread(seconds for s in timed for seconds in _first_tokens(s)),
        "time_per_token": spread(_seconds_per_token(s) for s in timed if s.decoded_tokens),
        "tokens_per_second": spread(1 / _seconds_per_token(s) for s in timed if s.decoded_tokens)
        | {"token_weighted": ratio(decoded, seconds) if decoded else None},
        "prefill_seconds": spread(s.prefill_seconds for s in timed),
        "decode_seconds": spread(s.decode_seconds for s in timed),
        "step_seconds": step_seconds,
        "speedup_over_full_steps": _speedup(timed, step_seconds),
        "round_overhead": _round_overhead(timed, steps),
        "timed": {
            "ranks": timed[0].ranks if timed else None,
            "threads": timed[0].threads if timed else None,
            "prompts": len({sample.index for sample in timed}),
            "passes": len({sample.repeat for sample in timed}),
        },
    }


def batched(done: list[DoneSample]) -> dict[str, Any]:
    """Return the throughput of prompts that were decoded together, under `batched`; else nothing.

    Seconds are those of prefills and decoding alone. With several processes, the rate is that of
    one of them. `batch_size` is the largest in use.
    """
    samples = [sample for sample in done if sample.batch]
    batches = {(one.repeat, one.batch["first"]): one.batch for one in samples if one.batch}
    if not batches:
        return {}
    tokens = sum(len(sample.output_ids) for sample in samples)
    seconds = sum(batch["seconds"] for batch in batches.values())
    return {
        "batched": {
            "batch_size": max(batch["size"] for batch in batches.values()),
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": ratio(tokens, seconds),
        }
    }


def throughput(
    samples: list[SampleRecord], keys: Collection[Key], seconds: float, ranks: int
) -> dict[str, float]:
    """Return the joint speed of the latest start's processes, which decoded these `keys`.

    A prompt counts once per pass. The seconds include scores, files and the wait for the last
    process.
    """
    chosen = set(keys)
    new = [sample for sample in samples if sample.key in chosen]
    tokens = sum(len(sample.output_ids) for sample in new)
    return {
        "ranks": ranks,
        "prompts": len(new),
        "generated_tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }


def predicted_speedup(k: float, r: float, c: float, v: float) -> float:
    """Return (k r + 1) / (k c + v): the tokens of a speculative round / its cost in full steps.

    k: tokens drafted per round; r: the share accepted; c, v: a draft step and a verify pass, in
    full steps (Leviathan et al. 2023, where v is 1).
    """
    return (k * r + 1) / (k * c + v)


def total_steps(done: list[DoneSample]) -> Steps:
    """Return the calls and seconds of all passes by their kind."""
    totals: Steps = {}
    for sample in done:
        for name, step in sample.steps.items():
            total = totals.setdefault(name, {"calls": 0, "seconds": 0.0})
            total["calls"] += step["calls"]
            total["seconds"] += step["seconds"]
    return totals


def spread(values: Iterable[float]) -> dict[str, float | None]:
    """Return mean, median, 95th percentile and standard deviation; None where undefined."""
    found = sorted(values)
    if not found:
        return dict.fromkeys(("mean", "median", "p95", "standard_deviation"))
    return {
        "mean": statistics.fmean(found),
        "median": statistics.median(found),
        "p95": _percentile(found, 0.95),
        "standard_deviation": statistics.stdev(found) if len(found) > 1 else None,
    }


def ratio(numerator: float, denominator: float) -> float | None:
    """Return the quotient; None if the denominator is 0."""
    return numerator / denominator if denominator else None


def _percentile(ascending: list[float], share: float) -> float:
    """Return a percentile by linear interpolation between the two values beside it."""
    place = share * (len(ascending) - 1)
    below, above = ascending[math.floor(place)], ascending[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def _timed_alike(done: list[DoneSample]) -> list[DoneSample]:
    """Return the largest group of samples with one rank and thread count."""
    groups: dict[tuple[int, int], list[DoneSample]] = {}
    for sample in done:
        if sample.decode_seconds is not None:
            groups.setdefault((sample.ranks, sample.threads), []).append(sample)
    return max(groups.values(), key=len, default=[])


def _first_tokens(sample: DoneSample) -> list[float]:
    """Return the seconds before the first token of each answer."""
    prefills = [turn["prefill_seconds"] for turn in sample.turns if turn["generated_tokens"]]
    return prefills or [sample.prefill_seconds]


def _seconds_per_token(sample: DoneSample) -> float:
    return sample.decode_seconds / sample.decoded_tokens


def _step_seconds(done: list[DoneSample], steps: Steps) -> dict[str, float | None]:
    mean = {name: ratio(step["seconds"], step["calls"]) for name, step in steps.items()}
    full = [sample.full_step for sample in done if sample.full_step]
    if full:
        mean["full"] = ratio(sum(s["seconds"] for s in full), sum(s["calls"] for s in full))
    return {name: mean.get(name) for name in ("draft", "verify", "full", "early_exit")}


def _speedup(
    done: list[DoneSample], step_seconds: dict[str, float | None]
) -> dict[str, float | None]:
    drafted = sum(sample.drafted_tokens for sample in done)
    draft, verify, full = (step_seconds[name] for name in ("draft", "verify", "full"))
    if not (drafted and draft and verify and full):
        return {"predicted": None, "bound": None, "measured": None}
    k = drafted / sum(len(sample.rounds) for sample in done)
    r = sum(sample.accepted_tokens for sample in done) / drafted
    c, v = draft / full, verify / full
    by_full_steps = sum(sample.decoded_tokens for sample in done) * full
    return {
        "predicted": predicted_speedup(k, r, c, v),
        "bound": predicted_speedup(k, 1, c, v),
        "measured": by_full_steps / sum(sample.decode_seconds for sample in done),
    }


def _round_overhead(done: list[DoneSample], steps: Steps) -> float | None:
    passes = sum(step["seconds"] for step in steps.values())
    return sum(sample.decode_seconds for sample in done) / passes - 1 if passes else None
