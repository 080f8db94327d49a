"""Tables of runs: raw numbers as CSV and JSON, and the columns that people read.

A CSV file holds all numbers of a metric whose name is in `_QUALITY` or `_TIMINGS`. A column to read
is a heading and a formatter in `_metrics_table` or `_timing_table`, such as
`"ROUGE-L": number("predicted_text_rouge-l", ".3f")`; one that few runs have stands in
`where_known`. Tables that compare runs are in `analysis/comparison_tables.py`, tests of difference
and categories in `analysis/detail_tables.py`.
"""

import math
from collections.abc import Callable

import numpy

from analysis.columns import MISSING, Columns, Row, Table, number
from analysis.comparison import Comparison, speed_interval, spread_over_seeds
from analysis.comparison_tables import comparison_table, first_of, seeds_table
from analysis.detail_tables import categories_table, differences_table, models_table
from analysis.finished_runs import FinishedRun, LoggedRun
from analysis.intervals import Interval, ratio_interval
from analysis.plan_tables import correlations_table, plans_table
from analysis.row_parts import bounds, facts, numbers, order, run_columns, where_known

_QUALITY = (
    *("predicted_text", "acceptance_rate", "acceptance_length", "copied_share"),
    "teacher_forced",
)
_TIMINGS = (
    *("total_time", "time_to_first_token", "time_per_token", "tokens_per_second"),
    *("prefill_seconds", "step_seconds", "batched", "peak_memory_bytes"),
)
_WINDOWS = ("window", "stride", "first_token")
# The sum behind each likelihood, and the function of its mean over tokens.
_LIKELIHOODS: dict[str, tuple[str, Callable[[float], float]]] = {
    "perplexity": ("nats", lambda nats: math.exp(min(nats, _MOST_NATS))),
    "nats_per_token": ("nats", float),
    "kl": ("kl_nats", float),
    "agreement": ("agreeing", float),
}
_MOST_NATS = 700.0  # exp of more is no float


def make_tables(runs: list[FinishedRun], comparisons: list[Comparison]) -> list[Table]:
    """Return quality and timing; comparisons, seeds, tests and categories where there are any."""
    ordered = sorted(runs, key=order)
    by_name = sorted(comparisons, key=lambda one: order(one.run))
    tables = [_metrics_table(ordered), _timing_table(ordered)]
    if compared := [one for one in by_name if one.baselines or one.missing]:
        tables.append(comparison_table(compared))
    if groups := spread_over_seeds(comparisons):
        tables.append(seeds_table(sorted(groups, key=lambda group: order(first_of(group)))))
    details = (
        *(plans_table(comparisons), correlations_table(comparisons)),
        *(models_table(comparisons), differences_table(by_name), categories_table(by_name)),
    )
    return tables + [table for table in details if table.rows]


def _metrics_table(runs: list[FinishedRun]) -> Table:
    rows = []
    for run in runs:
        row = facts(run)
        for name in _QUALITY:
            row |= numbers(run, name)
        rows.append(row | _likelihood(run))
    few: Columns = {
        "ROUGE-L": number("predicted_text_rouge-l", ".3f"),
        "ROUGE-1": number("predicted_text_rouge-1", ".3f"),
        "ROUGE-2": number("predicted_text_rouge-2", ".3f"),
        "BLEU": number("predicted_text_bleu_score", ".3f"),
        "exact match": number("predicted_text_exact_match", ".3f"),
        "edit distance": number("predicted_text_edit_distance", ".1f"),
        "pass@1": number("predicted_text_pass@1", ".3f"),
        "numeric match": number("predicted_text_numeric_match", ".3f"),
        "perplexity": number("teacher_forced_perplexity", ".3f"),
        "bits/byte": number("teacher_forced_bits_per_byte", ".4f"),
        "window, stride, first token": _windows,
        "KL, nats/token": number("teacher_forced_kl", ".4f"),
        "top-1 agreement": number("teacher_forced_agreement", ".3f"),
        "copied": number("copied_share_mean", ".3f"),
        "acceptance": number("acceptance_rate_mean", ".3f"),
        "tokens/verification": number("acceptance_length_mean", ".2f"),
    }
    columns = run_columns(runs) | where_known(rows, few) | {"prompts": number("num_samples", "g")}
    return Table("summary_metrics", "Metrics", rows, columns)


def _likelihood(run: FinishedRun) -> Row:
    """Return bounds, over prompts, of what teacher-forced passes measured, and their windows."""
    identity = run.record.identity if isinstance(run, LoggedRun) else {}
    row: Row = {f"teacher_forced_{name}": identity.get(name) for name in _WINDOWS}
    sums = run.examples.teacher_forced if isinstance(run, LoggedRun) and run.examples else {}
    for name, (total, finish) in _LIKELIHOODS.items():
        interval = None
        if total in sums:
            interval = ratio_interval(numpy.stack([sums[total], sums["tokens"]], axis=1)[:, None])
        for side in ("low", "high"):
            bound = getattr(interval, side, None)
            row[f"teacher_forced_{name}_{side}"] = None if bound is None else finish(bound)
    return row


def _timing_table(runs: list[FinishedRun]) -> Table:
    rows = []
    for run in runs:
        row = facts(run)
        for name in _TIMINGS:
            row |= numbers(run, name)
        weights = run.record.model["weight_bytes"] if isinstance(run, LoggedRun) else None
        rows.append(row | {"weight_bytes": weights} | bounds("speed", _speed(run)))
    few: Columns = {
        "total time, s": number("total_time_mean", ".3f"),
        "time per token, s": number("time_per_token_mean", ".4f"),
        "tokens/s": number("tokens_per_second_mean", ".2f"),
        "all tokens / all s": number("speed", ".2f"),
        "first token, s (median)": number("time_to_first_token_median", ".3f"),
        "time per token, s (median)": number("time_per_token_median", ".4f"),
        "time per token, s (p95)": number("time_per_token_p95", ".4f"),
        "throughput, tokens/s": _throughput,
    }
    columns = run_columns(runs) | {
        **where_known(rows, few),
        "peak memory, GB": number("peak_memory_bytes", ".2f", 1e-9),
        "weights, GB": number("weight_bytes", ".2f", 1e-9),
    }
    return Table("summary_timing", "Timing", rows, columns)


def _speed(run: FinishedRun) -> Interval | None:
    """Return all tokens by all seconds of decoding; None for prompts decoded together."""
    if not isinstance(run, LoggedRun) or run.speed is None:
        return None
    return speed_interval(run.examples) or Interval(run.speed)


def _throughput(row: Row) -> str:
    speed, size = row.get("batched_tokens_per_second"), row.get("batched_batch_size")
    return MISSING if speed is None else f"{speed:.1f} (batch {size:g})"


def _windows(row: Row) -> str:
    found = [row[f"teacher_forced_{name}"] for name in _WINDOWS]
    return MISSING if None in found else ", ".join(map(str, found))
