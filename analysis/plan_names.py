"""Names and order of plans and of the drafters that keep a plan's layers."""

import re
from collections.abc import Mapping
from typing import Any

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


def drafting_name(options: Mapping[str, Any]) -> str:
    """Return what a log's identity says of its drafts, in a few words; empty for the default.

    `options` are those of `DraftArguments.identity`.
    """
    words = []
    if options.get("drafter") == "hybrid":
        least = options.get("hybrid_match")
        longest = f" from {least} tokens" if least else ""
        words.append(f"lookup{longest} or {options['hybrid_drafter']}")
    elif "drafter" in options:
        words.append(str(options["drafter"]))
    if options.get("lookup_history"):
        words.append("history")
    if "draft_vocab" in options:
        words.append(f"vocabulary {options['draft_vocab']}")
    if options.get("draft_stop") == "confidence":
        words.append(f"confidence {options['draft_threshold']}")
    elif "draft_stop" in options:
        words.append(str(options["draft_stop"]))
    if options.get("never_slower"):
        words.append("gate")
    return " + ".join(words)


def method_place(method: str) -> int:
    """Return a method's place in the order; unknown methods come last."""
    return METHODS.index(method) if method in METHODS else len(METHODS)
