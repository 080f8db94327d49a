"""Finds the run that measured a plan's quality on the prompts of a run of its speed, or more."""

import json
from collections import defaultdict
from pathlib import Path

from analysis.finished_runs import LoggedRun

# The conditions in which such runs differ: how many prompts there are, and what only speed feels.
_OTHERS = ("num_samples", "prompts", "prompt tokens", "text scores")
_SPEED = ("batch_size", "compile", "threads", "ranks")


def quality_runs(runs: list[LoggedRun]) -> dict[Path, LoggedRun]:
    """Map each run to the run that measured its plan's quality best, by its log.

    That run has the same model, writes by the same flags, and read all prompts of the run; decoders
    differ in speed alone. Most prompts go first, then teacher-forced runs, then the newest. A run
    that is as good itself is left out, and so is early-exit inference, another model.
    """
    by_law: dict[str, list[LoggedRun]] = defaultdict(list)
    for run in runs:
        if run.decodes_whole_model:
            by_law[_law(run)].append(run)
    found = {}
    for group in by_law.values():
        best_last = sorted((run for run in group if _measures_quality(run)), key=_rank)
        for run in group:
            better = [o for o in best_last if _rank(o) > _rank(run) and _read_all_of(o, run)]
            if better:
                found[run.path] = better[-1]
    return found


def _measures_quality(run: LoggedRun) -> bool:
    return run.is_batched or run.is_forced


def _rank(run: LoggedRun) -> tuple[int, bool, bool]:
    return run.conditions["num_samples"], run.is_forced, run.is_batched


def _law(run: LoggedRun) -> str:
    """Return a key of everything that decides which texts a run writes for a prompt."""
    conditions = {k: v for k, v in run.conditions.items() if k not in (*_OTHERS, *_SPEED)}
    evaluation = run.record.data["evaluation"]
    prompts = evaluation.get("source"), evaluation["shots"]
    return json.dumps([run.plan_name, conditions, prompts], sort_keys=True)


def _read_all_of(quality: LoggedRun, run: LoggedRun) -> bool:
    """Return whether one run read the other's prompts, but for those that memory ran out on."""
    if quality.examples is None or run.examples is None:
        return False
    lacking = set(run.examples.example_ids.tolist()) - set(quality.examples.example_ids.tolist())
    return len(lacking) <= quality.record.failed_prompts
