"""Names and order of plans and of the drafters that keep a plan's layers."""

import re

from analysis.finished_runs import FinishedRun

# The order of methods in tables and plots.
METHODS = (
    *("base", "random", "angular", "last", "block_influence", "perplexity", "taylor"),
    *("magnitude", "layers"),
)
_SEED = re.compile(r" seed=\S+")


def without_seed(name: str) -> str:
    """Return a plan's name, or the part of it after the method, without the seed."""
    return _SEED.sub("", f" {name}").strip()


def plan_label(run: FinishedRun) -> str:
    """Return the plan of the run's model, without its seed."""
    return without_seed(f"{run.method} {run.param}".strip())


def mark_label(run: FinishedRun) -> str:
    """Return the plan, without its seed, by which plots mark the run.

    It is that of a pruned drafter, because such runs differ in nothing else.
    """
    return without_seed(run.drafter.name) if run.drafter else plan_label(run)


def drafting_title(run: FinishedRun) -> str:
    """Return what drafts in the runs that a panel compares: their marks tell pruned drafters."""
    words = [run.drafting] if run.drafting else []
    if run.drafter:
        words = [f"pruned drafts of {plan_label(run)}", *words]
    elif run.exit_layer is not None:
        words = [f"exit layer {run.exit_layer}", *words]
    return ", ".join(words)


def decoder_words(run: FinishedRun) -> list[str]:
    """Return what drafts and how many tokens, where a run drafts."""
    if run.drafter:
        words = [f"draft {run.drafter.name}"]
    else:
        words = [f"E={run.exit_layer}"] if run.exit_layer is not None else []
    words += [run.drafting] if run.drafting else []
    return words + ([f"k={run.num_speculations}"] if run.num_speculations else [])


def method_place(method: str) -> int:
    """Return a method's place in the order; unknown methods come last."""
    return METHODS.index(method) if method in METHODS else len(METHODS)
