"""Runs as their logs tell of them, from this tool and from the older one, in one shape."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from analysis.logged_examples import UNREADABLE, Examples, read_examples, reason
from analysis.older_logs import OlderLog, UnknownLogError, is_console, read_console, read_objects
from files.reading import LOG_BYTES, parse_log, read_bounded, text_of
from files.values import check_kinds
from runs.reader import check_metrics, read_samples, record_of
from runs.record import RunRecord

# The fingerprint of every model of the hub in logs of a time: a hash of no files.
_NO_FILES = "files e3b0c44298fc1c14"
_UNFINISHED = {
    "running": "is in progress or was killed",
    "interrupted": "was interrupted",
    "failed": "failed",
}


class Decoder(NamedTuple):
    """How a run decoded; numbers are None where they do not apply or are not known."""

    strategy: str | None
    exit_layer: int | None
    num_speculations: int | None


@dataclass(frozen=True)
class LoggedRun:
    """One finished run. `record` and `examples` are None for what the older tool logged.

    Layers are counted; `metrics` has the keys that `metrics.summarize` documents, as far as they
    are known.
    """

    path: Path
    dataset: str
    method: str
    param: str
    strategy: str | None
    exit_layer: int | None
    num_speculations: int | None
    metrics: dict[str, Any]
    model: str | None = None
    num_samples: int | None = None
    kept_layers: tuple[int, ...] | None = None
    original_layers: int | None = None
    prune_seed: int | None = None
    record: RunRecord | None = field(default=None, repr=False)
    examples: Examples | None = field(default=None, repr=False)

    @property
    def is_older(self) -> bool:
        return self.record is None

    @property
    def removed_layers(self) -> int | None:
        return self.original_layers and self.original_layers - len(self.kept_layers)

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.strategy, self.exit_layer, self.num_speculations)

    @property
    def plan_name(self) -> tuple[str, str, tuple[int, ...] | None]:
        """The plan as it was asked for, and what came of it, which calibration may decide."""
        return self.method, self.param, self.kept_layers

    @property
    def decodes_whole_model(self) -> bool:
        """False for early-exit inference, which is another model."""
        return self.strategy == "self_speculative" or self.exit_layer is None

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """What two runs must share to be compared: all but the plan and the decoder."""
        record = self.record
        identity, timed = record.identity, record.metrics.get("timed") or {}
        fingerprint = identity["model_fingerprint"]
        decoding = {
            name: value
            for name, value in identity["generation"].items()
            if name not in ("generation_strategy", "exit_layer", "num_speculations")
        }
        return decoding | {
            "model": record.model["name"] if fingerprint == _NO_FILES else fingerprint,
            "model_args": identity.get("model_args", {}),
            "dataset": identity["dataset"],
            "num_samples": record.data["evaluation"]["examples"],
            "n_shot": len(record.data["evaluation"]["shots"]),
            "prompts": identity["data_fingerprint"],
            "prompt tokens": identity.get("prompt_tokens_fingerprint"),
            "apply_chat_template": identity["apply_chat_template"],
            "truncate_prompt": identity["truncate_prompt"],
            "dtype": identity["dtype"],
            "device": identity["device"],
            "attention": identity["attention"],
            "compile": identity.get("compile", False),
            "text scores": record.scoring,
            "threads": timed.get("threads") or record.runtime["threads"],
            "ranks": timed.get("ranks") or record.runtime["ranks"],
            "torch": _versions(record, "torch"),
            "transformers": _versions(record, "transformers"),
            "engine version": identity["engine_version"],
        }

    @cached_property
    def condition_key(self) -> str:
        return json.dumps(self.conditions, sort_keys=True)

    def metric(self, *keys: str) -> float | None:
        """A metric by its nested keys; None where it was not measured."""
        value: Any = self.metrics
        for key in keys:
            value = (value or {}).get(key)
        return value


def _versions(record: RunRecord, package: str) -> str:
    """The package's version, or all those that a run was taken up with."""
    starts = [record.runtime, *(start["runtime"] for start in record.resumed)]
    return ", then ".join(dict.fromkeys(str(one["versions"].get(package)) for one in starts))


@dataclass
class Found:
    """What was found below some folders: runs, and a line for everything else."""

    runs: list[LoggedRun] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unreadable: int = 0
    unfinished: int = 0


def find_logged_runs(folders: list[Path]) -> Found:
    """All finished runs below the folders, oldest first."""
    return read_logged_runs(_log_files(folders))


def read_logged_runs(paths: Iterable[Path]) -> Found:
    """The finished runs in these files, oldest first; what cannot be read stops nothing."""
    found, unknown = Found(), []
    for path in paths:
        try:
            run, warnings = _read(path)
        except UnknownLogError as error:
            unknown.append((path, error))
            continue
        except UNREADABLE as error:
            found.unreadable += 1
            found.warnings.append(f"{path} cannot be read: {reason(error)}")
            continue
        found.warnings += [f"{path} {line}" for line in warnings]
        if run is None:
            found.unfinished += 1
        else:
            found.runs.append(run)
    found.unreadable += len(unknown)
    found.warnings += _of_unknown(unknown)
    _count_once(found)
    return found


def _of_unknown(unknown: list[tuple[Path, UnknownLogError]]) -> list[str]:
    """One line for all files that are logs of another tool, with the first one's reason."""
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
    # realpath, unlike resolve, has an answer for links that lead in a circle.
    files = {
        os.path.realpath(path): path
        for folder in folders
        for path in folder.rglob("*")
        if path.match("benchmark_*.json") or is_console(path)
    }
    for path in sorted(files.values(), key=lambda path: (path.name, path)):
        if path.is_file():
            yield path


def _read(path: Path) -> tuple[LoggedRun | None, list[str]]:
    """The run in a file, None where it is not over; and what its reader should know."""
    if is_console(path):
        return _older_run(path, read_console(path)), []
    content = read_bounded(path, LOG_BYTES)
    try:
        values = parse_log(content)
    except ValueError as error:
        if b'"schema_version"' in content:
            raise ValueError(f"is cut off, or no JSON ({error})") from error
        return _older_run(path, read_objects(text_of(content))), []
    if not isinstance(values, dict) or "schema_version" not in values:
        raise UnknownLogError("has no schema_version")
    record = record_of(values)
    if record.status != "complete":
        return None, [_unfinished(path, record)]
    examples, warnings = read_examples(path, record)
    run = _run(path, record, examples)
    if record.failed_prompts:
        of_all = f"{record.failed_prompts} of {run.num_samples} prompts"
        warnings.append(f"lacks {of_all} for want of memory, which its means leave out")
    return run, warnings


def _unfinished(path: Path, record: RunRecord) -> str:
    done = len(read_samples(path))
    state = _UNFINISHED[record.status]
    total = record.data["evaluation"]["examples"]
    return f"{state}, {done} of {total} prompts done, and is left out; its command goes on with it"


def _run(path: Path, record: RunRecord, examples: Examples | None) -> LoggedRun:
    plan, generation = record.plan, record.identity["generation"]
    approach = plan["approach"].partition(" ")
    run = LoggedRun(
        path=path,
        dataset=record.identity["dataset"],
        method=plan["method"],
        param=approach[2],
        strategy=generation["generation_strategy"],
        exit_layer=record.exit_layer["original"],
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


def _check(run: LoggedRun) -> None:
    """Raises an error for a run that cannot be told about: a value of another kind than it has."""
    check_kinds(run)
    check_metrics(run.metrics)
    for name in ("parameters", "weight_bytes"):
        if not isinstance(run.record.model.get(name), int | float | None):
            raise ValueError(f"has a model whose {name} are no number")
    if run.method == "angular":
        _check_distances(run.record.plan, run.original_layers)
    if not set(run.kept_layers) <= set(range(run.original_layers)):
        raise ValueError(f"keeps layers {list(run.kept_layers)} of {run.original_layers}")
    assert run.condition_key  # a record that lacks a condition cannot be compared with any


def _check_distances(plan: dict[str, Any], layers: int) -> None:
    scores = plan["scores"]
    shape = numpy.array(scores["distances"], dtype=float).shape
    counts = (scores["first_removed_layer"], plan["prune_n"])
    if len(shape) != 2 or shape[1] <= layers or not all(isinstance(n, int) for n in counts):
        raise ValueError("has other scores than a plan by angular distance")


def _older_run(path: Path, log: OlderLog) -> LoggedRun:
    params = {"angular": f"n={log.prune_n}", "random": f"p={log.dropout_threshold}"}
    return LoggedRun(
        path=path,
        dataset=log.dataset,
        method=log.method,
        param=params.get(log.method, ""),
        strategy=log.generation_strategy,
        exit_layer=log.exit_layer,
        num_speculations=log.num_speculations,
        metrics=log.metrics,
        model=log.model,
        num_samples=log.num_samples,
    )


def _count_once(found: Found) -> None:
    """Drops copies of a run's file, and consoles whose run is there as a JSON file too."""
    logged = [run for run in found.runs if run.is_older and run.model]
    kept: list[LoggedRun] = []
    names: dict[str, LoggedRun] = {}
    # Of copies, the one that came with its samples counts.
    for run in sorted(found.runs, key=lambda run: run.examples is None):
        first = names.setdefault(run.path.name, run)
        if first is not run and not run.is_older:
            found.warnings.append(f"{run.path} is a copy of {first.path}, counted once")
            continue
        is_from_console = run.is_older and not run.model
        twins = (other for other in logged if is_from_console and _is_same_run(run, other))
        twin = next(twins, None)
        if twin is None:
            kept.append(run)
        else:
            found.warnings.append(f"{run.path} is the console of {twin.path.name}, counted once")
    found.runs = sorted(kept, key=lambda run: (run.path.name, run.path))


def _is_same_run(console: LoggedRun, logged: LoggedRun) -> bool:
    drafted = console.metrics | {"acceptance_rate": logged.metrics["acceptance_rate"]}
    return console.dataset == logged.dataset and drafted == logged.metrics
