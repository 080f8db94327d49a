"""Finds the run that measured a plan's quality on more prompts than a run of its speed had."""

import json
from pathlib import Path

from analysis.finished_runs import LoggedRun

# The conditions in which such runs differ: how many prompts there are, and what only speed feels.
_OTHERS = ("num_samples", "prompts", "prompt tokens", "text scores")
_SPEED = ("batch_size", "compile", "threads", "ranks")


def quality_runs(runs: list[LoggedRun]) -> dict[Path, LoggedRun]:
    """Map each run to the batched run of its plan and data set with most prompts, by its log.

    The batched run has the same model and writes by the same flags; decoders differ in speed alone.
    A run with as many prompts itself is left out, and so is early-exit inference, another model.
    """
    largest: dict[str, LoggedRun] = {}
    whole = {run.path: _law(run) for run in runs if run.decodes_whole_model}
    for run in runs:
        if _measures_quality(run) and run.path in whole:
            known = largest.setdefault(whole[run.path], run)
            if _prompts(run) >= _prompts(known):  # the newest of equal runs
                largest[whole[run.path]] = run
    return {
        run.path: largest[law]
        for run in runs
        if (law := whole.get(run.path)) in largest and _prompts(largest[law]) > _prompts(run)
    }


def _measures_quality(run: LoggedRun) -> bool:
    return run.is_batched or bool(run.record.identity.get("teacher_forced"))


def _law(run: LoggedRun) -> str:
    """Return a key of everything that decides which texts a run writes for a prompt."""
    conditions = {k: v for k, v in run.conditions.items() if k not in (*_OTHERS, *_SPEED)}
    return json.dumps([run.plan_name, conditions], sort_keys=True)


def _prompts(run: LoggedRun) -> int:
    return run.conditions["num_samples"]
