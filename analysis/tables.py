"""Tables of compared runs: raw numbers as CSV and JSON, and the columns that people read.

A CSV file holds all numbers of a metric that `runs.metrics.summarize` adds under `predicted_text`,
`acceptance_rate` or a name in `_TIMINGS`. A column to read is a heading and a formatter in
`_metrics_table`, `_timing_table` or `_comparison_table`, such as
`"ROUGE-L": number("predicted_text_rouge-l", ".3f")`.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

from analysis.columns import MISSING, Columns, Row, Table, number, spread
from analysis.comparison import (
    BASELINES,
    BOTH,
    QUALITIES,
    SAME_DECODER,
    SAME_PLAN,
    Comparison,
    mean_and_deviation,
    spread_over_seeds,
)
from analysis.finished_runs import FinishedRun, LoggedRun
from analysis.intervals import Interval
from arguments.model import SYNTHETIC

_METHODS = ("base", "random", "angular")
_TIMINGS = (
    *("total_time", "time_per_token", "tokens_per_second", "prefill_seconds", "step_seconds"),
    "peak_memory_bytes",
)


def make_tables(runs: list[FinishedRun], comparisons: list[Comparison]) -> list[Table]:
    """Return quality and timing; comparisons and seeds where there is something to compare."""
    ordered = sorted(runs, key=_order)
    tables = [_metrics_table(ordered), _timing_table(ordered)]
    compared = [one for one in comparisons if one.baselines or one.missing]
    if compared:
        tables.append(_comparison_table(sorted(compared, key=lambda one: _order(one.run))))
    groups = spread_over_seeds(comparisons)
    if groups:
        tables.append(_seeds_table(sorted(groups, key=lambda group: _order(_first(group)))))
    return tables


def sweep_table(comparisons: list[Comparison]) -> Table:
    """Return a row per cell of a grid; the fastest cell of each plan and data set is marked."""
    drafting = [one for one in comparisons if one.run.num_speculations]
    fastest: dict[tuple, float] = {}
    for one in drafting:
        fastest[_study(one.run)] = max(one.run.speed or 0, fastest.get(_study(one.run), 0))
    rows = [
        _facts(one.run)
        | {
            "threads": one.run.conditions["threads"],
            "tokens_per_second": one.run.speed,
            "acceptance_rate": one.run.metric("acceptance_rate", "token_weighted"),
            **_predictions(one.run),
            "best": one.run.speed == fastest[_study(one.run)],
        }
        | _bounds(SAME_PLAN, one.speedups.get(SAME_PLAN))
        for one in sorted(drafting, key=lambda one: _order(one.run))
    ]
    columns = _names([one.run for one in drafting]) | {
        "tokens/s": number("tokens_per_second", ".2f"),
        "spec. / autoregr.": number(SAME_PLAN, ".2f"),
        "predicted": number("predicted_speedup", ".2f"),
        "at most": number("speedup_bound", ".2f"),
        "acceptance": number("acceptance_rate", ".3f"),
        "best": lambda row: "*" if row["best"] else "",
    }
    return Table("sweep", "Sweep", rows, columns)


def _study(run: LoggedRun) -> tuple:
    """Return the plan and the conditions: runs that share both can be compared by speed."""
    return run.plan_name, run.condition_key


def _metrics_table(runs: list[FinishedRun]) -> Table:
    rows = [
        _facts(run) | _numbers(run, "predicted_text") | _numbers(run, "acceptance_rate")
        for run in runs
    ]
    columns = _names(runs) | {
        "ROUGE-L": number("predicted_text_rouge-l", ".3f"),
        "ROUGE-1": number("predicted_text_rouge-1", ".3f"),
        "ROUGE-2": number("predicted_text_rouge-2", ".3f"),
        "BLEU": number("predicted_text_bleu_score", ".3f"),
        "exact match": number("predicted_text_exact_match", ".3f"),
        "edit distance": number("predicted_text_edit_distance", ".1f"),
        **_where_executed(runs, "pass@1", number("predicted_text_pass@1", ".3f")),
        "acceptance": number("acceptance_rate_mean", ".3f"),
        "prompts": number("num_samples", "g"),
    }
    return Table("summary_metrics", "Metrics", rows, columns)


def _timing_table(runs: list[FinishedRun]) -> Table:
    rows = []
    for run in runs:
        row = _facts(run)
        for name in _TIMINGS:
            row |= _numbers(run, name)
        weights = run.record.model["weight_bytes"] if isinstance(run, LoggedRun) else None
        rows.append(row | {"weight_bytes": weights})
    columns = _names(runs) | {
        "total time, s": number("total_time_mean", ".3f"),
        "time per token, s": number("time_per_token_mean", ".4f"),
        "tokens/s": number("tokens_per_second_mean", ".2f"),
        "peak memory, GB": number("peak_memory_bytes", ".2f", 1e-9),
        "weights, GB": number("weight_bytes", ".2f", 1e-9),
    }
    return Table("summary_timing", "Timing", rows, columns)


def _comparison_table(comparisons: list[Comparison]) -> Table:
    runs = [one.run for one in comparisons]
    columns = _names(runs) | {
        "parameters, M": number("parameters", ".1f", 1e-6),
        "spec. / autoregr.": number(SAME_PLAN, ".2f"),
        "predicted": number("predicted_speedup", ".2f"),
        "at most": number("speedup_bound", ".2f"),
        "pruned / base": number(SAME_DECODER, ".2f"),
        "pruned spec. / base autoregr.": number(BOTH, ".2f"),
        "ROUGE-L change": number("change_rouge-l", "+.3f"),
        **_where_executed(runs, "pass@1 change", number("change_pass@1", "+.3f")),
        "equal outputs": _equal_outputs,
        "peak memory, GB": number("peak_memory_bytes", ".2f", 1e-9),
    }
    rows = [_compared_row(one) for one in comparisons]
    return Table("summary_comparison", "Comparisons", rows, columns)


def _seeds_table(groups: list[dict[int, Comparison]]) -> Table:
    measures: dict[str, Callable[[Comparison], float | None]] = {
        "layers": lambda one: len(one.run.kept_layers),
        "rouge-l": lambda one: one.run.metric("predicted_text", "rouge-l"),
        "exact_match": lambda one: one.run.metric("predicted_text", "exact_match"),
        "pass@1": lambda one: one.run.metric("predicted_text", "pass@1"),
        "tokens_per_second": lambda one: one.run.metric("tokens_per_second", "mean"),
        "acceptance_rate": lambda one: one.run.metric("acceptance_rate", "mean"),
    } | {name: partial(Comparison.speedup, name=name) for name in BASELINES}
    rows, runs = [], [one.run for group in groups for one in group.values()]
    for group in groups:
        run = _first(group)
        row = _facts(run) | {
            "param": run.param.partition(" ")[0],
            "log": None,
            "layers_kept": None,
            "prune_seed": " ".join(map(str, sorted(group))),
            "seeds": len(group),
        }
        for name, measure in measures.items():
            mean, deviation = mean_and_deviation(map(measure, group.values())) or (None, None)
            row |= {f"{name}_mean": mean, f"{name}_standard_deviation": deviation}
        rows.append(row)
    names = _names(list(map(_first, groups)))
    del names["layers"]
    columns = names | {
        "seeds": number("seeds", "d"),
        "layers": spread("layers", ".1f"),
        "ROUGE-L": spread("rouge-l", ".3f"),
        **_where_executed(runs, "pass@1", spread("pass@1", ".3f")),
        "tokens/s": spread("tokens_per_second", ".2f"),
        "acceptance": spread("acceptance_rate", ".3f"),
        "spec. / autoregr.": spread(SAME_PLAN, ".2f"),
        "pruned / base": spread(SAME_DECODER, ".2f"),
        "pruned spec. / base autoregr.": spread(BOTH, ".2f"),
    }
    return Table("summary_seeds", "Random plans, mean ± standard deviation", rows, columns)


def _first(group: dict[int, Comparison]) -> LoggedRun:
    return next(iter(group.values())).run


def _facts(run: FinishedRun) -> Row:
    """Return the first columns of each table, which name the run."""
    row: Row = {
        "dataset": run.dataset,
        "approach": run.method,
        "param": run.param,
        "strategy": run.strategy,
        "exit_layer": run.exit_layer,
        "num_speculations": run.num_speculations,
        "compiled": None,
        "layers_kept": None,
        "layers": None,
        "n_shot": None,
        "num_samples": run.num_samples,
        "model": run.model,
        "log": "older",
        "older_log": run.path.name if run.is_older else None,
    }
    if isinstance(run, LoggedRun):
        row |= {
            "compiled": run.conditions["compile"],
            "layers_kept": len(run.kept_layers),
            "layers": run.original_layers,
            "n_shot": run.conditions["n_shot"],
            "log": run.path.name,
        }
    return row


def _names(runs: Sequence[FinishedRun]) -> Columns:
    """Return the first columns to read.

    Name the model if there are several or it is synthetic; tell older logs from new ones.
    """
    columns: Columns = {
        "dataset": _dataset,
        "approach": lambda row: row["approach"],
        "param": lambda row: row["param"] or MISSING,
        "strategy": _strategy,
        "layers": _layers,
    }
    own = [run for run in runs if isinstance(run, LoggedRun)]
    models = {run.model or "" for run in own}
    if len(models) > 1 or any(model.startswith(SYNTHETIC) for model in models):
        columns = {"model": lambda row: row["model"] or MISSING} | columns
    if len({run.conditions["compile"] for run in own}) > 1:
        columns["compiled"] = lambda row: "yes" if row["compiled"] else "no"
    if len(own) < len(runs):
        columns["log"] = lambda row: "older" if row["log"] == "older" else "new"
    return columns


def _where_executed(
    runs: Sequence[FinishedRun], heading: str, show: Callable[[Row], str]
) -> Columns:
    """Return the column if a run has executed its completions."""
    executed = any(run.metric("predicted_text", "pass@1") is not None for run in runs)
    return {heading: show} if executed else {}


def _compared_row(one: Comparison) -> Row:
    run = one.run
    row = _facts(run) | {"parameters": run.record.model["parameters"]}
    for name in BASELINES:
        baseline = one.baselines.get(name)
        row |= _bounds(name, one.speedups.get(name))
        row[f"{name}_baseline"] = baseline and baseline.path.name
        row[f"{name}_missing"] = one.missing.get(name)
    for name in QUALITIES:
        row |= _bounds(f"change_{name}", one.quality_changes.get(name))
    equal, both = one.equal_outputs or (None, None)
    return row | {
        "equal_outputs": equal,
        "paired_outputs": both,
        **_predictions(run),
        "peak_memory_bytes": run.metric("peak_memory_bytes"),
    }


def _predictions(run: LoggedRun) -> Row:
    return {
        "predicted_speedup": run.metric("speedup_over_full_steps", "predicted"),
        "speedup_bound": run.metric("speedup_over_full_steps", "bound"),
    }


def _bounds(name: str, interval: Interval | None) -> Row:
    names = name, f"{name}_low", f"{name}_high"
    numbers = (interval.value, interval.low, interval.high) if interval else (None, None, None)
    return dict(zip(names, numbers, strict=True))


def _numbers(run: FinishedRun, name: str) -> Row:
    """Return the numbers of a metric under names such as tokens_per_second_mean."""
    value = run.metrics.get(name)
    if not isinstance(value, dict):
        return {name: value}
    return {f"{name}_{key}": one for key, one in value.items() if not isinstance(one, list)}


def _order(run: FinishedRun) -> tuple:
    """Order by data set, method and its numbers, model, decoder: n=10 after n=2."""
    numbers = tuple(float(number) for number in re.findall(r"\d+\.?\d*", run.param))
    method = _METHODS.index(run.method) if run.method in _METHODS else len(_METHODS)
    decoder = (run.strategy or "", run.exit_layer or 0, run.num_speculations or 0)
    return run.dataset, method, run.method, numbers, run.model or "", decoder, run.path.name


def _dataset(row: Row) -> str:
    shots = row["n_shot"]
    return row["dataset"] + (f", {shots} shot{'s' if shots > 1 else ''}" if shots else "")


def _strategy(row: Row) -> str:
    exit_layer, drafts = row["exit_layer"], row["num_speculations"]
    words = [row["strategy"] or MISSING]
    words += [f"E={exit_layer}"] if exit_layer else []
    return " ".join(words + ([f"k={drafts}"] if drafts else []))


def _layers(row: Row) -> str:
    return f"{row['layers_kept']}/{row['layers']}" if row["layers"] else MISSING


def _equal_outputs(row: Row) -> str:
    equal, both = row["equal_outputs"], row["paired_outputs"]
    return MISSING if both is None else f"{equal}/{both}"
