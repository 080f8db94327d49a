"""Tables of compared runs: all raw numbers for programs, and the columns that people read."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas
from tabulate import tabulate

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
from analysis.intervals import Interval
from analysis.logged_runs import LoggedRun
from arguments.model import SYNTHETIC

_STYLES = {"markdown": "pipe", "latex": "latex_booktabs"}
FORMATS = (*_STYLES, "csv", "json")
_METHODS = ("base", "random", "angular")
_MISSING = "-"

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """`rows` hold raw numbers under the names of a CSV file's columns; None is missing.

    `columns` are what people read: headings, and how a row is shown under them.
    """

    name: str
    title: str
    rows: list[Row]
    columns: dict[str, Callable[[Row], str]]

    def csv(self) -> str:
        return pandas.DataFrame(self.rows, dtype=object).to_csv(index=False)

    def text(self, form: str) -> str:
        """The columns to read, as Markdown or LaTeX; all raw numbers as CSV."""
        if form == "csv":
            return self.csv().rstrip("\n")
        cells = [[show(row) for show in self.columns.values()] for row in self.rows]
        return tabulate(cells, list(self.columns), tablefmt=_STYLES[form], disable_numparse=True)


def make_tables(runs: list[LoggedRun], comparisons: list[Comparison]) -> list[Table]:
    """Quality, timing, comparisons and seeds, of which the last two may be missing."""
    ordered = sorted(runs, key=_order)
    tables = [_metrics_table(ordered), _timing_table(ordered)]
    compared = [one for one in comparisons if one.baselines or one.missing]
    if compared:
        compared.sort(key=lambda one: _order(one.run))
        tables.append(_comparison_table(compared))
    groups = sorted(spread_over_seeds(comparisons), key=lambda group: _order(group[0].run))
    if groups:
        tables.append(_seeds_table(groups))
    return tables


def sweep_table(comparisons: list[Comparison]) -> Table:
    """A row for every point of a grid; of every plan and data set, the fastest is marked."""
    drafting = [one for one in comparisons if one.run.num_speculations]
    fastest: dict[tuple, float] = {}
    for one in drafting:
        study, speed = _study(one.run), _speed(one.run)
        fastest[study] = max(speed or 0, fastest.get(study, 0))
    rows = []
    for one in sorted(drafting, key=lambda one: _order(one.run)):
        speed = _speed(one.run)
        row = _facts(one.run) | {
            "threads": one.run.conditions["threads"],
            "tokens_per_second": speed,
            "acceptance_rate": one.run.metric("acceptance_rate", "token_weighted"),
            "predicted_speedup": one.run.metric("speedup_over_full_steps", "predicted"),
            "speedup_bound": one.run.metric("speedup_over_full_steps", "bound"),
            "best": speed == fastest[_study(one.run)],
        }
        rows.append(row | _bounds(SAME_PLAN, one.speedups.get(SAME_PLAN)))
    columns = _names([one.run for one in drafting]) | {
        "tokens/s": _number("tokens_per_second", ".2f"),
        "spec. / autoregr.": _interval(SAME_PLAN, ".2f"),
        "predicted": _number("predicted_speedup", ".2f"),
        "at most": _number("speedup_bound", ".2f"),
        "acceptance": _number("acceptance_rate", ".3f"),
        "best": lambda row: "*" if row["best"] else "",
    }
    return Table("sweep", "Sweep", rows, columns)


def _study(run: LoggedRun) -> tuple:
    """The plan and the conditions, which two runs share if their speeds can be compared."""
    return run.plan_name, run.condition_key


def _speed(run: LoggedRun) -> float | None:
    return run.metric("tokens_per_second", "token_weighted")


def flattened(values: Row, prefix: str) -> Row:
    """Nested numbers under one name each, joined by `_`, as in tokens_per_second_mean."""
    flat: Row = {}
    for key, value in values.items():
        name = f"{prefix}_{key}"
        flat |= flattened(value, name) if isinstance(value, dict) else {name: value}
    return flat


def _metrics_table(runs: list[LoggedRun]) -> Table:
    rows = [
        _facts(run)
        | _nested(run, "predicted_text")
        | {k: v for k, v in _nested(run, "acceptance_rate").items() if not isinstance(v, list)}
        for run in runs
    ]
    columns = _names(runs) | {
        "ROUGE-L": _number("predicted_text_rouge-l", ".3f"),
        "ROUGE-1": _number("predicted_text_rouge-1", ".3f"),
        "ROUGE-2": _number("predicted_text_rouge-2", ".3f"),
        "BLEU": _number("predicted_text_bleu_score", ".3f"),
        "exact match": _number("predicted_text_exact_match", ".3f"),
        "edit distance": _number("predicted_text_edit_distance", ".1f"),
        **_where_executed(runs, "pass@1", _number("predicted_text_pass@1", ".3f")),
        "acceptance": _number("acceptance_rate_mean", ".3f"),
        "prompts": _number("num_samples", "g"),
    }
    return Table("summary_metrics", "Metrics", rows, columns)


def _timing_table(runs: list[LoggedRun]) -> Table:
    names = (
        "total_time",
        "time_per_token",
        "tokens_per_second",
        "prefill_seconds",
        "step_seconds",
        "peak_memory_bytes",
    )
    rows = []
    for run in runs:
        row = _facts(run)
        for name in names:
            row |= _nested(run, name)
        rows.append(row | {"weight_bytes": run.record and run.record.model["weight_bytes"]})
    columns = _names(runs) | {
        "total time, s": _number("total_time_mean", ".3f"),
        "time per token, s": _number("time_per_token_mean", ".4f"),
        "tokens/s": _number("tokens_per_second_mean", ".2f"),
        "peak memory, GB": _number("peak_memory_bytes", ".2f", 1e-9),
        "weights, GB": _number("weight_bytes", ".2f", 1e-9),
    }
    return Table("summary_timing", "Timing", rows, columns)


def _comparison_table(comparisons: list[Comparison]) -> Table:
    runs = [one.run for one in comparisons]
    columns = _names(runs) | {
        "parameters, M": _number("parameters", ".1f", 1e-6),
        "spec. / autoregr.": _interval(SAME_PLAN, ".2f"),
        "predicted": _number("predicted_speedup", ".2f"),
        "at most": _number("speedup_bound", ".2f"),
        "pruned / base": _interval(SAME_DECODER, ".2f"),
        "pruned spec. / base autoregr.": _interval(BOTH, ".2f"),
        "ROUGE-L change": _interval("change_rouge-l", "+.3f"),
        **_where_executed(runs, "pass@1 change", _interval("change_pass@1", "+.3f")),
        "equal outputs": _equal_outputs,
        "peak memory, GB": _number("peak_memory_bytes", ".2f", 1e-9),
    }
    rows = [_compared_row(one) for one in comparisons]
    return Table("summary_comparison", "Comparisons", rows, columns)


def _seeds_table(groups: list[list[Comparison]]) -> Table:
    measures = {
        "layers": lambda one: len(one.run.kept_layers),
        "rouge-l": lambda one: one.run.metric("predicted_text", "rouge-l"),
        "exact_match": lambda one: one.run.metric("predicted_text", "exact_match"),
        "pass@1": lambda one: one.run.metric("predicted_text", "pass@1"),
        "tokens_per_second": lambda one: one.run.metric("tokens_per_second", "mean"),
        "acceptance_rate": lambda one: one.run.metric("acceptance_rate", "mean"),
    } | {name: partial(Comparison.speedup, name=name) for name in BASELINES}
    rows, runs = [], [one.run for group in groups for one in group]
    for group in groups:
        run = group[0].run
        row = _facts(run) | {
            "param": run.param.partition(" ")[0],
            "log": None,
            "layers_kept": None,
            "prune_seed": " ".join(str(seed) for seed in sorted(c.run.prune_seed for c in group)),
            "seeds": len(group),
        }
        for name, measure in measures.items():
            mean, deviation = mean_and_deviation(map(measure, group)) or (None, None)
            row |= {f"{name}_mean": mean, f"{name}_standard_deviation": deviation}
        rows.append(row)
    names = _names([group[0].run for group in groups])
    del names["layers"]
    columns = names | {
        "seeds": _number("seeds", "d"),
        "layers": _spread("layers", ".1f"),
        "ROUGE-L": _spread("rouge-l", ".3f"),
        **_where_executed(runs, "pass@1", _spread("pass@1", ".3f")),
        "tokens/s": _spread("tokens_per_second", ".2f"),
        "acceptance": _spread("acceptance_rate", ".3f"),
        "spec. / autoregr.": _spread(SAME_PLAN, ".2f"),
        "pruned / base": _spread(SAME_DECODER, ".2f"),
        "pruned spec. / base autoregr.": _spread(BOTH, ".2f"),
    }
    return Table("summary_seeds", "Random plans, mean ± standard deviation", rows, columns)


def _facts(run: LoggedRun) -> Row:
    """What every table says of a run first."""
    return {
        "dataset": run.dataset,
        "approach": run.method,
        "param": run.param,
        "strategy": run.strategy,
        "exit_layer": run.exit_layer,
        "num_speculations": run.num_speculations,
        "compiled": None if run.is_older else run.conditions["compile"],
        "layers_kept": None if run.is_older else len(run.kept_layers),
        "layers": run.original_layers,
        "n_shot": None if run.is_older else run.conditions["n_shot"],
        "num_samples": run.num_samples,
        "model": run.model,
        "log": "older" if run.is_older else run.path.name,
    }


def _names(runs: list[LoggedRun]) -> dict[str, Callable[[Row], str]]:
    """The first columns to read; model, and which logs are older, where there are several.

    A model that is made up is always named.
    """
    columns: dict[str, Callable[[Row], str]] = {
        "dataset": _dataset,
        "approach": lambda row: row["approach"],
        "param": lambda row: row["param"] or _MISSING,
        "strategy": _strategy,
        "layers": _layers,
    }
    models = {run.model or "" for run in runs if not run.is_older}
    if len(models) > 1 or any(model.startswith(SYNTHETIC) for model in models):
        columns = {"model": lambda row: row["model"] or _MISSING} | columns
    if len({run.conditions["compile"] for run in runs if not run.is_older}) > 1:
        columns["compiled"] = lambda row: "yes" if row["compiled"] else "no"
    if any(run.is_older for run in runs):
        columns["log"] = lambda row: "older" if row["log"] == "older" else "new"
    return columns


def _where_executed(
    runs: list[LoggedRun], heading: str, show: Callable[[Row], str]
) -> dict[str, Callable[[Row], str]]:
    """The column, where a run has executed its completions."""
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
        "predicted_speedup": run.metric("speedup_over_full_steps", "predicted"),
        "speedup_bound": run.metric("speedup_over_full_steps", "bound"),
        "peak_memory_bytes": run.metric("peak_memory_bytes"),
    }


def _bounds(name: str, interval: Interval | None) -> Row:
    names = name, f"{name}_low", f"{name}_high"
    numbers = (interval.value, interval.low, interval.high) if interval else (None, None, None)
    return dict(zip(names, numbers, strict=True))


def _nested(run: LoggedRun, name: str) -> Row:
    value = run.metrics.get(name)
    return flattened(value, name) if isinstance(value, dict) else {name: value}


def _order(run: LoggedRun) -> tuple:
    """By data set, method and its numbers, model, decoder: n=10 after n=2."""
    numbers = tuple(float(number) for number in re.findall(r"\d+\.?\d*", run.param))
    method = _METHODS.index(run.method) if run.method in _METHODS else len(_METHODS)
    decoder = (run.strategy or "", run.exit_layer or 0, run.num_speculations or 0)
    return run.dataset, method, run.method, numbers, run.model or "", decoder, run.path.name


def _dataset(row: Row) -> str:
    shots = row["n_shot"]
    return row["dataset"] + (f", {shots} shot{'s' if shots > 1 else ''}" if shots else "")


def _strategy(row: Row) -> str:
    exit_layer, drafts = row["exit_layer"], row["num_speculations"]
    words = [row["strategy"] or _MISSING]
    words += [f"E={exit_layer}"] if exit_layer else []
    return " ".join(words + ([f"k={drafts}"] if drafts else []))


def _layers(row: Row) -> str:
    return f"{row['layers_kept']}/{row['layers']}" if row["layers"] else _MISSING


def _equal_outputs(row: Row) -> str:
    equal, both = row["equal_outputs"], row["paired_outputs"]
    return _MISSING if both is None else f"{equal}/{both}"


def _number(name: str, form: str, factor: float | None = None) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value = row.get(name)
        if value is None:
            return _MISSING
        return format(value if factor is None else value * factor, form)

    return show


def _interval(name: str, form: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
        if value is None:
            return _MISSING
        bounds = "" if low is None else f" [{low:{form}}, {high:{form}}]"
        return format(value, form) + bounds

    return show


def _spread(name: str, form: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        mean, deviation = row[f"{name}_mean"], row[f"{name}_standard_deviation"]
        return _MISSING if mean is None else f"{mean:{form}} ± {deviation:{form}}"

    return show
