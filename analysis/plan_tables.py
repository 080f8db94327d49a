"""Tables of plans: what each does as a model, and as the drafter of the unpruned model."""

from collections.abc import Callable, Sequence

from analysis.columns import MISSING, Columns, Row, Table, number
from analysis.comparison import QUALITIES, SAME_PLAN, Comparison
from analysis.intervals import Interval
from analysis.plan_names import decoder_words
from analysis.plan_uses import (
    TASK_SCORES,
    PlanUse,
    correlations,
    groups_of,
    over_seeds,
    plan_uses,
    predicted_over_measured,
)
from analysis.row_parts import bounds, facts, plan_facts, run_columns, where_known

_NUMBERS = (
    *("speedup_as_model", "log_perplexity_ratio", "acceptance_rate", "speedup_as_drafter"),
    *("predicted_over_measured", *(f"quality_{name}" for name in QUALITIES)),
)


def plans_table(comparisons: list[Comparison]) -> Table:
    """Return a row per plan, in groups with a pruned one, and a row for the seeds of a random plan.

    Bounds are those of each number, or over the seeds.
    """
    rows: list[Row] = []
    runs = []
    for group in groups_of(plan_uses(comparisons)).values():
        ordered = sorted(group, key=lambda use: use.place)
        own = {use.identity: _row(use) for use in ordered}
        for use in ordered:
            rows.append(own[use.identity])
        for seeds in over_seeds(ordered):
            rows.append(_range(seeds, [own[use.identity] for use in seeds]))
        runs += [use.run for use in ordered]
    named = run_columns(runs)
    for name in ("strategy", "layers"):
        del named[name]
    scores: Columns = {word: number(f"quality_{name}", ".3f") for name, word in TASK_SCORES.items()}
    columns = named | {
        "layers removed": number("layers_removed", ".3g"),
        **where_known(rows, scores),
        **where_known(rows, {"log-perplexity ratio": number("log_perplexity_ratio", "+.3f")}),
        "speed-up as model": number("speedup_as_model", ".2f"),
        "acceptance as drafter": number("acceptance_rate", ".3f"),
        "speed-up as drafter": number("speedup_as_drafter", ".2f"),
        "drafts": lambda row: row["drafts"] or MISSING,
        "predicted / measured": number("predicted_over_measured", ".2f"),
    }
    return Table("plans", "Plans, as models and as drafters", rows, columns)


def correlations_table(comparisons: list[Comparison]) -> Table:
    """Return a row per data set and draft length: do better models draft better?"""
    found = correlations(plan_uses(comparisons))
    rows = [
        facts(one.run)
        | {"num_speculations": one.length, "plans": one.plans, "log": None}
        | bounds("spearman", one.coefficient)
        for one in found
    ]
    named = run_columns([one.run for one in found])
    columns = {
        name: show for name, show in named.items() if name in ("model", "dataset", "prompts")
    }
    columns |= {
        "drafts": number("num_speculations", "d"),
        "plans": number("plans", "d"),
        "Spearman": number("spearman", ".2f"),
    }
    title = "Rank correlation of log-perplexity ratio and acceptance"
    return Table("plan_correlations", title, rows, columns)


def _row(use: PlanUse) -> Row:
    best = use.best_draft
    acceptance = best.run.metric("acceptance_rate", "token_weighted") if best else None
    words = decoder_words(best.run) if best else []
    return _named(use) | {
        "layers_removed": use.removed_layers,
        "patch": use.plan.patch,
        "prune_seed": use.plan.prune_seed,
        "seeds": None,
        **bounds("speedup_as_model", use.speed_up),
        **bounds("log_perplexity_ratio", use.log_perplexity_ratio),
        "acceptance_rate": acceptance,
        **bounds("speedup_as_drafter", best.speedups.get(SAME_PLAN) if best else None),
        "drafts": " ".join(word for word in words if not word.startswith("draft ")) or None,
        "predicted_over_measured": predicted_over_measured(best),
        **{f"quality_{name}": use.quality(name) for name in QUALITIES},
    }


def _named(use: PlanUse) -> Row:
    """Return the columns that name the plan, and the log of its run as a model."""
    model = use.model.run if use.model else None
    best = use.best_draft
    return (
        facts(use.run)
        | plan_facts(use.plan)
        | {
            "strategy": None,
            "exit_layer": best and best.run.exit_layer,
            "num_speculations": best and best.run.num_speculations,
            "drafter": None,
            "drafter_layers": None,
            "log": model and model.path.name,
            "draft_log": best and best.run.path.name,
        }
    )


def _range(uses: Sequence[PlanUse], rows: Sequence[Row]) -> Row:
    """Return the means over the seeds of a random plan, with the least and the most."""
    _, _, param = uses[0].label.partition(" ")
    row: Row = rows[0] | {
        "param": f"{param}, {len(uses)} seeds [range]",
        **dict.fromkeys(("log", "draft_log", "drafts", "num_speculations", "layers_kept")),
        "prune_seed": " ".join(str(use.plan.prune_seed) for use in uses),
        "seeds": len(uses),
        **_mean_of(rows, "layers_removed", lambda found: None),
    }
    for name in _NUMBERS:
        row |= _mean_of(rows, name, lambda found: (min(found), max(found)))
    return row


def _mean_of(
    rows: Sequence[Row], name: str, ends: Callable[[list[float]], tuple[float, float] | None]
) -> Row:
    found = [row[name] for row in rows if row[name] is not None]
    if not found:
        return bounds(name, None)
    mean, limits = sum(found) / len(found), ends(found)
    return bounds(name, Interval(mean, *limits) if limits else Interval(mean))
