"""Summary of the samples of `benchmarks.peers`: rates, paired ratios, shares of the floor."""

import statistics
from collections import Counter, defaultdict
from typing import Any

import numpy

from analysis.intervals import mean_intervals
from benchmarks.measuring import law, quartiles
from benchmarks.peer_engines import GENERATE, OURS, Side

Sample = dict[str, Any]
Ratio = dict[str, Any]  # value, low, high and median


def summarize(measured: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of all sides that completed every turn, and of removed layers.

    Rates are medians over turns. A ratio compares seconds within a turn: the median over the
    repeats of a prompt, then the mean over prompts, with its interval. Decoding alone is the time
    of a call less the time of a call for one token, in which a side reads the prompt.
    """
    samples = defaultdict(list)
    for sample in measured["samples"]:
        samples[sample["side"]].append(sample)
    sides = [Side(**{key: of[key] for key in vars(GENERATE)}) for of in measured["sides"]]
    timed = {side for side in sides if any(each["later_seconds"] for each in samples[side.name])}
    done = [side for side in sides if side in timed and side.name not in measured["left_out"]]
    by_side = {side: samples[side.name] for side in done}
    floors = floors_of_turns(measured["samples"], measured["step_bytes"])
    return {
        "floor_tokens_per_second": statistics.median(floors.values()) if floors else None,
        "floor_tokens_per_second_at_best": (
            1e9 * measured["bandwidth"]["best_gigabytes_per_second"] / measured["step_bytes"]
        ),
        "sides": [_row(side, by_side, floors) for side in done if not side.removed],
        "removal": _removal(by_side, measured),
    }


def floors_of_turns(samples: list[Sample], bytes_per_step: int) -> dict[int, float]:
    """Return the floor's tokens per second by turn, from the median of the turn's readings."""
    readings = defaultdict(list)
    for sample in samples:
        readings[sample["turn"]].append(sample["bytes_per_second"])
    return {turn: statistics.median(found) / bytes_per_step for turn, found in readings.items()}


def paired_ratio(numerators: list[Sample], denominators: list[Sample], key: str) -> Ratio | None:
    """Return seconds of one side over another's, turn by turn; None if a turn lacks either."""
    others = {sample["turn"]: sample[key] for sample in denominators}
    by_prompt = defaultdict(list)
    for sample in numerators:
        other = others.get(sample["turn"])
        if not other or not sample[key]:
            return None
        by_prompt[sample["prompt"]].append(sample[key] / other)
    if not by_prompt:
        return None
    medians = [statistics.median(ratios) for ratios in by_prompt.values()]
    (interval,) = mean_intervals(numpy.array(medians)[:, None])
    everything = [ratio for ratios in by_prompt.values() for ratio in ratios]
    return vars(interval) | {"median": statistics.median(everything)}


def _row(side: Side, by_side: dict[Side, list[Sample]], floors: dict[int, float]) -> dict[str, Any]:
    samples, generate = by_side[side], by_side.get(GENERATE, [])
    known = [sample for sample in samples if sample["later_seconds"]]
    rates = [(sample["tokens"] - 1) / sample["later_seconds"] for sample in known]
    floor_of_each = [floors[sample["turn"]] for sample in known]
    shares = [rate / floor for rate, floor in zip(rates, floor_of_each, strict=True)]
    return vars(side) | {
        "name": side.name,
        "tokens_per_second": quartiles([each["tokens"] / each["seconds"] for each in samples]),
        "decoding_tokens_per_second": quartiles(rates),
        "share_of_floor": statistics.median(shares),
        "over_generate": paired_ratio(generate, samples, "seconds"),
        "decoding_over_generate": paired_ratio(generate, samples, "later_seconds"),
        "decoding_over_own": paired_ratio(by_side.get(side.plain(), []), samples, "later_seconds"),
        "acceptance": _acceptance(samples),
        "law": _law(side, by_side),
        "verdicts": dict(Counter(sample["verdict"] for sample in samples)),
    }


def _acceptance(samples: list[Sample]) -> dict[str, float] | None:
    """Return accepted / drafted and drafts per round; None if a prompt lookup drafted nothing."""
    drafted, rounds = (sum(sample[key] or 0 for sample in samples) for key in ("drafted", "rounds"))
    if not drafted:
        return None
    accepted = sum(sample["accepted"] for sample in samples)
    return {"rate": accepted / drafted, "drafted_a_round": drafted / rounds}


def _law(side: Side, by_side: dict[Side, list[Sample]]) -> dict[str, Any] | None:
    """Return the speed-up predicted by (k r + 1) / (k c + v), and the measured, decoding alone.

    c and v are in full steps of the same system's autoregressive decoding, compiled or not alike.
    """
    plain, samples = by_side.get(side.plain(), []), by_side[side]
    measured = paired_ratio(plain, samples, "decode_seconds")
    if side.system != OURS or not measured or not _acceptance(samples):
        return None
    found = law(plain, samples)
    over = measured["value"] / found["predicted"]
    return found | {"measured": measured, "measured_over_predicted": over}


def _removal(by_side: dict[Side, list[Sample]], measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a token's time without some layers over the whole model's; the ideal goes by bytes."""
    rows = []
    for side, samples in by_side.items():
        whole = by_side.get(side.plain())
        if not side.removed or not whole:
            continue
        ratio = paired_ratio(samples, whole, "decode_seconds")
        ideal = measured["step_bytes_without"][str(side.removed)] / measured["step_bytes"]
        rows.append(
            {
                "layers_removed": side.removed,
                "compiled": side.compiled,
                "time_of_whole": ratio,
                "ideal": ideal,
                "measured_over_ideal": ratio["value"] / ideal if ratio else None,
            }
        )
    return rows
