"""Tables of each score's difference from the base run, of two models, and of categories."""

from analysis.categories import CategoryResult, category_results
from analysis.columns import MISSING, Columns, Row, Shown, Table, number
from analysis.comparison import Comparison
from analysis.differences import Difference, find_differences
from analysis.model_differences import ACCEPTANCE, ModelDifference, model_differences
from analysis.row_parts import bounds, facts, plan_facts, run_columns, where_known
from pruning.plan import spans


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
    found = sorted(model_differences(comparisons), key=_score_and_plan)
    named = run_columns([one.runs[0] for one in found])
    for name in ("model", "strategy", "layers"):
        named.pop(name, None)
    columns: Columns = {
        "model": lambda row: row["model"],
        "other model": lambda row: row["other_model"],
        **named,
        "score": lambda row: row["score"],
        "change": _change("change"),
        "other's change": _change("other_change"),
        "difference": _score("difference", "+"),
        "p": number("p", ".2g"),
        "p (Holm)": number("p_holm", ".2g"),
        "pairs": number("pairs", "d"),
        "run": lambda row: row["run"],
        "other run": lambda row: row["other_run"],
    }
    rows = [_models_row(one) for one in found]
    return Table("summary_models", "Plans in two models", rows, columns)


def _score_and_plan(one: ModelDifference) -> tuple:
    names = [run.model or "" for run in one.runs]
    return names, one.runs[0].dataset, one.score, one.use.place, one.runs[0].path.name


def _change(name: str) -> Shown:
    """Show a change with its sign, and a share of accepted drafts without."""
    change, share = _score(name, "+"), _score(name)
    return Shown(name, lambda row: (share if row["score"] == ACCEPTANCE else change)(row))


def _models_row(one: ModelDifference) -> Row:
    run, other_run = one.runs
    return (
        facts(run)
        | plan_facts(one.use.plan)
        | {
            "other_model": other_run.model,
            "removed": spans(one.use.plan.removed_layers),
            "other_removed": spans(one.other.plan.removed_layers),
            "score": one.score,
            **bounds("change", one.change),
            **bounds("other_change", one.other_change),
            **bounds("difference", one.difference),
            "p": one.p,
            "p_holm": one.adjusted_p,
            "pairs": one.pairs,
            "run": run.record.run_id,
            "other_run": other_run.record.run_id,
            "other_log": other_run.path.name,
        }
    )


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
