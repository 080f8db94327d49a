"""Tables of each score's difference from the base run, of two models, and of categories."""

from analysis.categories import CategoryResult, category_results
from analysis.columns import MISSING, Columns, Row, Shown, Table, number
from analysis.comparison import Comparison
from analysis.differences import Difference, find_differences
from analysis.model_differences import ACCEPTANCE, ModelDifference, model_differences
from analysis.row_parts import bounds, facts, run_columns, where_known


def differences_table(comparisons: list[Comparison]) -> Table:
    """Return a row per pruned run and score, with a test; Holm's family is the whole table."""
    found = find_differences(comparisons)
    columns = run_columns([one.run for one in found]) | {
        "score": lambda row: row["score"],
        "base": _score("base_mean"),
        "pruned": _score("pruned_mean"),
        "change": _score("change", "+"),
        "p": number("p", ".2g"),
        "p (Holm)": number("p_holm", ".2g"),
        "test": lambda row: row["test"],
        "smallest detectable": _score("detectable_change"),
        "only base : only pruned": _discordant,
        "pairs": number("pairs", "d"),
        "base run": lambda row: row["base_run"],
        "run": lambda row: row["run"],
    }
    rows = [_difference_row(one) for one in found]
    discordant = "only base : only pruned"
    if not where_known(rows, {discordant: columns[discordant]}):
        del columns[discordant]
    return Table("summary_differences", "Differences from the base run", rows, columns)


def models_table(comparisons: list[Comparison]) -> Table:
    """Return a row per plan and score that two models share; Holm's family is the whole table."""
    found = model_differences(comparisons)
    rows = [_models_row(one) for one in sorted(found, key=_score_and_plan)]
    columns: Columns = {
        "model": lambda row: row["model"],
        "other model": lambda row: row["other_model"],
        "dataset": lambda row: row["dataset"],
        "score": lambda row: row["score"],
        "approach": lambda row: row["approach"],
        "param": lambda row: row["param"] or MISSING,
        "change": _change("mine"),
        "other's change": _change("its"),
        "difference": _score("difference", "+"),
        "p": number("p", ".2g"),
        "p (Holm)": number("p_holm", ".2g"),
        "pairs": number("pairs", "d"),
    }
    return Table("summary_models", "Plans in two models", rows, columns)


def _score_and_plan(one: ModelDifference) -> tuple:
    runs = one.use.run, one.other.run
    return [run.model or "" for run in runs], runs[0].dataset, one.score, one.use.place


def _change(name: str) -> Shown:
    """Show a change with its sign, and a share of accepted drafts without."""
    change, share = _score(name, "+"), _score(name)
    return Shown(name, lambda row: (share if row["score"] == ACCEPTANCE else change)(row))


def _models_row(one: ModelDifference) -> Row:
    method, _, param = one.use.name.partition(" ")
    return {
        "dataset": one.use.run.dataset,
        "model": one.use.run.model,
        "other_model": one.other.run.model,
        "approach": method,
        "param": param,
        "layers_removed": one.use.removed_layers,
        "other_layers_removed": one.other.removed_layers,
        "score": one.score,
        **bounds("mine", one.mine),
        **bounds("its", one.its),
        **bounds("difference", one.difference),
        "p": one.p,
        "p_holm": one.adjusted_p,
        "pairs": one.pairs,
    }


def _difference_row(one: Difference) -> Row:
    return facts(one.run) | {
        "score": one.score,
        "base_mean": one.base_mean,
        "pruned_mean": one.pruned_mean,
        **bounds("change", one.change),
        "p": one.p,
        "p_holm": one.adjusted_p,
        "test": one.test,
        "detectable_change": one.detectable,
        "only_base": one.only_base,
        "only_pruned": one.only_pruned,
        "pairs": one.pairs,
        "run": one.run.record.run_id,
        "base_run": one.base.record.run_id,
        "base_log": one.base.path.name,
    }


def _score(name: str, sign: str = "") -> Shown:
    """Show a number of the row's score, nats with the digits that small changes of them need."""
    coarse, fine = (number(name, f"{sign}.{digits}f") for digits in (3, 4))
    return Shown(name, lambda row: (fine if row["score"] == "nats_per_token" else coarse)(row))


def _discordant(row: Row) -> str:
    return MISSING if row["only_base"] is None else f"{row['only_base']} : {row['only_pruned']}"


def categories_table(comparisons: list[Comparison]) -> Table:
    """Return a row per run and category of its prompts, for runs with a speed or drafts."""
    results = category_results(comparisons)
    found = [one for one in results if one.speed or one.acceptance is not None]
    rows = [_category_row(one) for one in found]
    named = run_columns([one.run for one in found])
    named.pop("prompts", None)  # those of the category stand in their place
    measured: Columns = {
        "all tokens / all s": number("speed", ".2f"),
        "spec. / autoregr.": number("speedup", ".2f"),
        "tokens/verification": number("acceptance_length", ".2f"),
        "acceptance": number("acceptance_rate", ".3f"),
        "copied": number("copied_share", ".3f"),
    }
    columns = named | {
        "category": lambda row: row["category"],
        "prompts": number("prompts", "d"),
        **where_known(rows, measured),
        "run": lambda row: row["run"],
    }
    return Table("summary_categories", "Categories of prompts", rows, columns)


def _category_row(one: CategoryResult) -> Row:
    return facts(one.run) | {
        "category": one.category,
        "prompts": one.prompts,
        **bounds("speed", one.speed),
        **bounds("speedup", one.speedup),
        "acceptance_length": one.acceptance_length,
        "acceptance_rate": one.acceptance,
        "copied_share": one.copied_share,
        "run": one.run.record.run_id,
    }
