"""Finds and reads the logs of finished runs, of this tool and of the older one."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from analysis.finished_runs import Drafter, FinishedRun, LoggedRun
from analysis.logged_examples import UNREADABLE, Examples, read_examples, reason
from analysis.older_logs import UnknownLogError, is_console, read_console, read_objects
from analysis.plan_names import METHODS
from analysis.plan_scores import check_scores
from arguments.drafting import drafting_name
from files.reading import LOG_BYTES, parse_log, read_bounded, text_of
from files.values import check_kinds
from pruning.plan import PrunePlan
from runs.reader import check_metrics, read_samples, record_of
from runs.record import RunRecord

_UNFINISHED = {
    "running": "is in progress or was killed",
    "interrupted": "was interrupted",
    "failed": "failed",
}


@dataclass(frozen=True)
class Found:
    """The runs below some folders, and a warning for each file that is no finished run."""

    runs: list[FinishedRun]
    warnings: list[str]
    unreadable: int
    unfinished: int


def find_logged_runs(folders: list[Path]) -> Found:
    """Return all finished runs below the folders, oldest first."""
    return read_logged_runs(_log_files(folders))


def read_logged_runs(paths: Iterable[Path]) -> Found:
    """Return the finished runs in these files, oldest first. A bad file only adds a warning."""
    runs: list[FinishedRun] = []
    warnings: list[str] = []
    unknown: list[tuple[Path, UnknownLogError]] = []
    unreadable = unfinished = 0
    for path in paths:
        try:
            run, remarks = _read(path)
        except UnknownLogError as error:
            unknown.append((path, error))
            continue
        except UNREADABLE as error:
            unreadable += 1
            warnings.append(f"{path} cannot be read: {reason(error)}")
            continue
        warnings += [f"{path} {line}" for line in remarks]
        if run is None:
            unfinished += 1
        else:
            runs.append(run)
    once, copies = _counted_once(runs)
    warnings += _of_unknown(unknown) + copies
    return Found(once, warnings, unreadable + len(unknown), unfinished)


def _of_unknown(unknown: list[tuple[Path, UnknownLogError]]) -> list[str]:
    """Return one line for all logs of other tools, with the reason of the first."""
    if not unknown:
        return []
    path, error = unknown[0]
    if len(unknown) == 1:
        what = "is no log of this project nor of the known older format"
        return [f"{path} cannot be read: it {what} (it {error})"]
    others = ", ".join(path.name for path, _ in unknown[1:3])
    rest = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    return [
        f"{len(unknown)} files are no logs of this project nor of the known older format: "
        f"{path} (it {error}), {others}{rest}"
    ]


def _log_files(folders: list[Path]) -> Iterator[Path]:
    # realpath, unlike resolve, accepts links that lead in a circle.
    files = {
        os.path.realpath(path): path
        for folder in folders
        for path in folder.rglob("*")
        if path.match("benchmark_*.json") or is_console(path)
    }
    for path in sorted(files.values(), key=lambda path: (path.name, path)):
        if path.is_file():
            yield path


def _read(path: Path) -> tuple[FinishedRun | None, list[str]]:
    """Return a file's run, or None if it is not finished; and warnings about it."""
    if is_console(path):
        return read_console(path), []
    content = read_bounded(path, LOG_BYTES)
    try:
        values = parse_log(content)
    except ValueError as error:
        if b'"schema_version"' in content:
            raise ValueError(f"is cut off, or no JSON ({error})") from error
        return read_objects(text_of(content), path), []
    if not isinstance(values, dict) or "schema_version" not in values:
        raise UnknownLogError("has no schema_version")
    record = record_of(values)
    if record.status != "complete":
        return None, [_unfinished(path, record)]
    examples, warnings = read_examples(path, record)
    run = _run(path, record, examples)
    if record.failed_prompts:
        lost = f"lacks {record.failed_prompts} of {run.num_samples} prompts"
        warnings.append(f"{lost}, for which memory ran out; its means leave them out")
    return run, warnings


def _unfinished(path: Path, record: RunRecord) -> str:
    samples = read_samples(path)
    done = sum(sample.repeat == 0 for sample in samples)
    later = f" and {len(samples) - done} in later passes" if len(samples) > done else ""
    state = _UNFINISHED[record.status]
    total = record.data["evaluation"]["examples"]
    return (
        f"{state}, {done} of {total} prompts done{later}, and is left out; its command resumes it"
    )


def _run(path: Path, record: RunRecord, examples: Examples | None) -> LoggedRun:
    plan, generation = record.plan, record.identity["generation"]
    run = LoggedRun(
        path=path,
        dataset=record.identity["dataset"],
        method=plan["method"],
        param=plan["approach"].partition(" ")[2],
        strategy=generation["generation_strategy"],
        exit_layer=record.exit_layer["original"],
        drafter=_drafter(record),
        drafting=drafting_name(record.identity.get("drafting", {})),
        num_speculations=generation["num_speculations"],
        metrics=record.metrics,
        model=record.model["name"],
        num_samples=record.metrics["counts"]["prompts"],
        kept_layers=tuple(plan["kept_layers"]),
        original_layers=plan["original_layers"],
        prune_seed=plan["prune_seed"],
        record=record,
        examples=examples,
    )
    _check(run)
    return run


def _drafter(record: RunRecord) -> Drafter | None:
    """Return the plan of a pruned drafter; None for other drafters."""
    if record.draft_plan is None:
        return None
    plan = PrunePlan.from_dict(record.draft_plan)
    if plan.method not in METHODS:
        raise ValueError(f"drafts with a plan by {plan.method}, which is no known criterion")
    return Drafter(plan.approach, plan.kept_layers, plan.patch_texts)


def _check(run: LoggedRun) -> None:
    """Raise an error for a value of a kind that tables and plots cannot show."""
    check_kinds(run)
    check_metrics(run.metrics)
    for name in ("parameters", "weight_bytes"):
        if not isinstance(run.record.model.get(name), int | float | None):
            raise ValueError(f"has a model whose {name} are no number")
    if run.method not in METHODS:
        raise ValueError(f"has a plan by {run.method}, which is no known criterion")
    check_scores(run.record.plan)
    if run.record.draft_plan:
        check_scores(run.record.draft_plan)
    if not set(run.kept_layers) <= set(range(run.original_layers)):
        raise ValueError(f"keeps layers {list(run.kept_layers)} of {run.original_layers}")
    assert run.condition_key  # raises KeyError for a record that lacks a condition


def _counted_once(runs: list[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """Drop copies of a file, and consoles of runs that have a JSON file; warn of each."""
    with_json = [run for run in runs if run.is_older and not is_console(run.path)]
    kept: list[FinishedRun] = []
    warnings = []
    first_of: dict[str, FinishedRun] = {}
    # A copy that came with its samples goes before others.
    for run in sorted(runs, key=lambda run: not (isinstance(run, LoggedRun) and run.examples)):
        first = run if run.is_older else first_of.setdefault(run.path.name, run)
        twins = (other for other in with_json if _is_same_run(run, other))
        twin = next(twins, None) if is_console(run.path) else None
        if first is not run:
            warnings.append(f"{run.path} is a copy of {first.path}, counted once")
        elif twin:
            warnings.append(f"{run.path} is the console of {twin.path.name}, counted once")
        else:
            kept.append(run)
    return sorted(kept, key=lambda run: (run.path.name, run.path)), warnings


def _is_same_run(console: FinishedRun, logged: FinishedRun) -> bool:
    drafted = console.metrics | {"acceptance_rate": logged.metrics["acceptance_rate"]}
    return console.dataset == logged.dataset and drafted == logged.metrics
