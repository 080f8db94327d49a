"""Tables of runs beside their baselines: speed-ups, changes, cells of a sweep, seeds."""

from collections.abc import Callable
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
    quality_intervals,
)
from analysis.finished_runs import LoggedRun
from analysis.plan_names import without_seed
from analysis.plan_uses import predicted_over_measured
from analysis.row_parts import bounds, facts, order, run_columns, where_known

# Columns of the run that measured the plan's quality instead of the row's run.
_QUALITY_COLUMNS: Columns = {
    "plan's ROUGE-L": number("quality_rouge-l", ".3f"),
    "its change": number("quality_change_rouge-l", "+.3f"),
    "plan's pass@1": number("quality_pass@1", ".3f"),
    "plan's numeric match": number("quality_numeric_match", ".3f"),
    "plan's perplexity": number("quality_perplexity", ".3f"),
    "plan's KL": number("quality_kl", ".4f"),
    "plan's agreement": number("quality_agreement", ".3f"),
    "prompts of quality": number("quality_prompts", "g"),
    "quality run": lambda row: row["quality_run"] or MISSING,
}


def sweep_table(comparisons: list[Comparison]) -> Table:
    """Return a row per cell of a grid; the fastest cell of each plan and data set is marked."""
    drafting = [one for one in comparisons if one.run.num_speculations]
    fastest: dict[tuple, float] = {}
    for one in drafting:
        fastest[_study(one.run)] = max(one.run.speed or 0, fastest.get(_study(one.run), 0))
    rows = [
        facts(one.run)
        | {
            "threads": one.run.conditions["threads"],
            "tokens_per_second": one.run.speed,
            "acceptance_rate": one.run.metric("acceptance_rate", "token_weighted"),
            **_predictions(one),
            "best": one.run.speed == fastest[_study(one.run)],
        }
        | bounds(SAME_PLAN, one.speedups.get(SAME_PLAN))
        | _plan_quality(one)
        for one in sorted(drafting, key=lambda one: order(one.run))
    ]
    columns = run_columns([one.run for one in drafting]) | {
        "tokens/s": number("tokens_per_second", ".2f"),
        "spec. / autoregr.": number(SAME_PLAN, ".2f"),
        "predicted": number("predicted_speedup", ".2f"),
        "at most": number("speedup_bound", ".2f"),
        "acceptance": number("acceptance_rate", ".3f"),
        **where_known(rows, _QUALITY_COLUMNS),
        "best": lambda row: "*" if row["best"] else "",
    }
    return Table("sweep", "Sweep", rows, columns)


def _study(run: LoggedRun) -> tuple:
    """Return the plan and the conditions: runs that share both can be compared by speed."""
    return run.plan_name, run.condition_key


def comparison_table(comparisons: list[Comparison]) -> Table:
    """Return a row per run with a baseline, or with a reason why it has none."""
    rows = [_compared_row(one) for one in comparisons]
    few = {
        "pass@1 change": number("change_pass@1", "+.3f"),
        "numeric match change": number("change_numeric_match", "+.3f"),
        "nats/token change": number("change_nats_per_token", "+.4f"),
    }
    columns = run_columns([one.run for one in comparisons]) | {
        "parameters, M": number("parameters", ".1f", 1e-6),
        "spec. / autoregr.": number(SAME_PLAN, ".2f"),
        "predicted": number("predicted_speedup", ".2f"),
        "at most": number("speedup_bound", ".2f"),
        "pruned / base": number(SAME_DECODER, ".2f"),
        "pruned spec. / base autoregr.": number(BOTH, ".2f"),
        "ROUGE-L change": number("change_rouge-l", "+.3f"),
        **where_known(rows, few),
        "equal outputs": _equal_outputs,
        "peak memory, GB": number("peak_memory_bytes", ".2f", 1e-9),
        **where_known(rows, _QUALITY_COLUMNS),
    }
    return Table("summary_comparison", "Comparisons", rows, columns)


def seeds_table(groups: list[dict[int, Comparison]]) -> Table:
    """Return a row per plan of which several seeds were drawn: means over its seeds."""
    measures: dict[str, Callable[[Comparison], float | None]] = {
        "layers": lambda one: len((one.run.drafter or one.run).kept_layers),
        "rouge-l": lambda one: one.run.metric("predicted_text", "rouge-l"),
        "exact_match": lambda one: one.run.metric("predicted_text", "exact_match"),
        "pass@1": lambda one: one.run.metric("predicted_text", "pass@1"),
        "tokens_per_second": lambda one: one.run.metric("tokens_per_second", "mean"),
        "acceptance_rate": lambda one: one.run.metric("acceptance_rate", "mean"),
    } | {name: partial(Comparison.speedup, name=name) for name in BASELINES}
    rows = []
    for group in groups:
        run = first_of(group)
        row = facts(run) | {
            "param": without_seed(run.param),
            "drafter": run.drafter and without_seed(run.drafter.name),
            "log": None,
            "layers_kept": None,
            "prune_seed": " ".join(map(str, sorted(group))),
            "seeds": len(group),
        }
        for name, measure in measures.items():
            found = [value for value in map(measure, group.values()) if value is not None]
            mean, deviation = mean_and_deviation(found) or (None, None)
            row |= {f"{name}_mean": mean, f"{name}_standard_deviation": deviation}
            row |= {f"{name}_least": min(found, default=None)}
            row |= {f"{name}_most": max(found, default=None)}
        rows.append(row)
    named = run_columns(list(map(first_of, groups)))
    del named["layers"]
    columns = named | {
        "seeds": number("seeds", "d"),
        "layers": spread("layers", ".1f"),
        "ROUGE-L": spread("rouge-l", ".3f"),
        **where_known(rows, {"pass@1": spread("pass@1", ".3f")}),
        "tokens/s": spread("tokens_per_second", ".2f"),
        "acceptance": spread("acceptance_rate", ".3f"),
        "spec. / autoregr.": spread(SAME_PLAN, ".2f"),
        "pruned / base": spread(SAME_DECODER, ".2f"),
        "pruned spec. / base autoregr.": spread(BOTH, ".2f"),
    }
    return Table("summary_seeds", "Random plans, mean ± standard deviation", rows, columns)


def first_of(group: dict[int, Comparison]) -> LoggedRun:
    """Return the run with the least seed of a group."""
    return group[min(group)].run


def _compared_row(one: Comparison) -> Row:
    run = one.run
    row = facts(run) | {"parameters": run.record.model["parameters"]}
    for name in BASELINES:
        baseline = one.baselines.get(name)
        row |= bounds(name, one.speedups.get(name))
        row[f"{name}_baseline"] = baseline and baseline.path.name
        row[f"{name}_missing"] = one.missing.get(name)
    for name in QUALITIES:
        row |= bounds(f"change_{name}", one.quality_changes.get(name))
    equal, both = one.equal_outputs or (None, None)
    return row | {
        "equal_outputs": equal,
        "paired_outputs": both,
        **_predictions(one),
        "peak_memory_bytes": run.metric("peak_memory_bytes"),
        **_plan_quality(one),
    }


def _plan_quality(one: Comparison) -> Row:
    """Return the plan's quality from the run that measured it on more prompts, and that run."""
    measured = one.quality
    row: Row = {
        "quality_run": measured and measured.run.record.run_id,
        "quality_log": measured and measured.run.path.name,
        "quality_prompts": measured and measured.run.num_samples,
    }
    intervals = quality_intervals(measured.run) if measured else {}
    for name in QUALITIES:
        row |= bounds(f"quality_{name}", intervals.get(name))
        change = measured.quality_changes.get(name) if measured else None
        row |= bounds(f"quality_change_{name}", change)
    return row | {
        f"quality_{name}": measured and measured.run.metric("teacher_forced", name)
        for name in ("perplexity", "bits_per_byte", "kl", "agreement")
    }


def _predictions(one: Comparison) -> Row:
    return {
        "predicted_speedup": one.run.metric("speedup_over_full_steps", "predicted"),
        "predicted_over_measured": predicted_over_measured(one),
        "speedup_bound": one.run.metric("speedup_over_full_steps", "bound"),
    }


def _equal_outputs(row: Row) -> str:
    equal, both = row["equal_outputs"], row["paired_outputs"]
    return MISSING if both is None else f"{equal}/{both}"
