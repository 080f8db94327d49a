"""Columns that tables share: those that name a run, and those of a metric that some runs lack."""

import re
from collections.abc import Callable, Mapping, Sequence

from analysis.columns import MISSING, Columns, Row, number
from analysis.finished_runs import FinishedRun, LoggedRun
from analysis.intervals import Interval
from analysis.plan_names import method_place
from arguments.model import SYNTHETIC
from pruning.plan import PrunePlan


def facts(run: FinishedRun) -> Row:
    """Return the first columns of each table, which name the run."""
    row: Row = {
        "dataset": run.dataset,
        "approach": run.method,
        "param": run.param,
        "strategy": run.strategy,
        "exit_layer": run.exit_layer,
        "num_speculations": run.num_speculations,
        "drafter": run.drafter and run.drafter.name,
        "drafting": run.drafting or None,
        "drafter_layers": run.drafter and len(run.drafter.kept_layers),
        "compiled": None,
        "layers_kept": None,
        "layers": None,
        "n_shot": None,
        "num_samples": run.num_samples,
        "batch_size": None,
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
            "batch_size": run.conditions["batch_size"],
            "log": run.path.name,
        }
    return row


def plan_facts(plan: PrunePlan) -> Row:
    """Return the first columns that name a plan, whichever run used it."""
    _, _, parameters = plan.approach.partition(" ")
    return {"approach": plan.method, "param": parameters, "layers_kept": len(plan.kept_layers)}


def run_columns(runs: Sequence[FinishedRun]) -> Columns:
    """Return the first columns to read, which name the run.

    Name the model if there are several or it is synthetic; tell older logs from new ones, and runs
    of other counts of prompts or batch sizes.
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
    if len({run.num_samples for run in runs}) > 1:
        columns["prompts"] = number("num_samples", "g")
    if len({run.conditions["batch_size"] for run in own}) > 1:
        columns["batch"] = number("batch_size", "d")
    if len(own) < len(runs):
        columns["log"] = lambda row: "older" if row["log"] == "older" else "new"
    return columns


def where_known(rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> Columns:
    """Return the columns, without those that show a number in no row."""
    return {
        name: show for name, show in columns.items() if any(show(row) != MISSING for row in rows)
    }


def bounds(name: str, interval: Interval | None) -> Row:
    """Return an estimate and its bounds under the columns of a CSV file."""
    keys = name, f"{name}_low", f"{name}_high"
    values = (interval.value, interval.low, interval.high) if interval else (None, None, None)
    return dict(zip(keys, values, strict=True))


def numbers(run: FinishedRun, name: str) -> Row:
    """Return the numbers of a metric under names such as tokens_per_second_mean."""
    value = run.metrics.get(name)
    if not isinstance(value, dict):
        return {name: value}
    return {f"{name}_{key}": one for key, one in value.items() if not isinstance(one, list)}


def order(run: FinishedRun) -> tuple:
    """Order by data set, method and its numbers, model, batch, decoder: n=10 after n=2.

    Larger batches come first, since they measure the quality of the runs that follow.
    """
    method, parameters = _plan_order(run.method, run.param)
    batch = -run.conditions["batch_size"] if isinstance(run, LoggedRun) else 0
    drafter, _, its_param = (run.drafter.name if run.drafter else "").partition(" ")
    drafts = run.exit_layer or 0, _plan_order(drafter, its_param), its_param, run.drafting
    decoder = (run.strategy or "", bool(drafter), drafts, run.num_speculations or 0)
    plan = run.dataset, method, run.method, parameters, run.model or ""
    return *plan, batch, decoder, run.path.name


def _plan_order(method: str, param: str) -> tuple[int, tuple[float, ...]]:
    parameters = tuple(float(one) for one in re.findall(r"\d+\.?\d*", param))
    return method_place(method), parameters


def _dataset(row: Row) -> str:
    shots = row["n_shot"]
    return row["dataset"] + (f", {shots} shot{'s' if shots > 1 else ''}" if shots else "")


def _strategy(row: Row) -> str:
    exit_layer, drafts = row["exit_layer"], row["num_speculations"]
    drafting = [row["drafting"]] if row.get("drafting") else []
    if row["drafter"]:
        return ", ".join([f"pruned draft: {row['drafter']}", *drafting, f"k={drafts}"])
    if drafting and not exit_layer:
        return f"drafts by {row['drafting']}, k={drafts}"
    words = [row["strategy"] or MISSING]
    words += [f"E={exit_layer}"] if exit_layer else []
    words += drafting
    return " ".join(words + ([f"k={drafts}"] if drafts else []))


def _layers(row: Row) -> str:
    return f"{row['layers_kept']}/{row['layers']}" if row["layers"] else MISSING
