"""Reads a run's two files back."""

import dataclasses
from pathlib import Path
from typing import Any

from files.reading import LOG_BYTES, bounded_lines, opened, parse_log, read_bounded
from files.values import kind_of, made_of
from runs.record import SCHEMA_VERSION, STATUSES, RunRecord, SampleRecord, part_paths, samples_path

# Metrics that are several numbers, each under its name.
_NAMED_NUMBERS = (
    *("predicted_text", "acceptance_rate", "total_time", "time_per_token", "tokens_per_second"),
    *("step_seconds", "speedup_over_full_steps", "counts", "timed"),
)


def read_record(path: Path) -> RunRecord:
    """Reads a run's file back. Raises ValueError for one that is no run of this schema."""
    return record_of(parse_log(read_bounded(path, LOG_BYTES)))


def record_of(values: Any) -> RunRecord:
    """The run that a file's JSON holds. Raises ValueError for what is no run of this schema."""
    found = values.get("schema_version") if isinstance(values, dict) else None
    if found != SCHEMA_VERSION:
        newer = isinstance(found, int) and found > SCHEMA_VERSION
        hint = "; a newer release wrote it" if newer else ""
        raise ValueError(f"has schema version {found}, not {SCHEMA_VERSION}{hint}")
    names = {item.name for item in dataclasses.fields(RunRecord)}
    metrics = {key: value for key, value in values.items() if key not in names | {"run_id"}}
    record = made_of(RunRecord, {key: values[key] for key in names & set(values)}, metrics=metrics)
    if record.status not in STATUSES:
        raise ValueError(f"has the status {record.status!r}, not one of {', '.join(STATUSES)}")
    return record


def check_metrics(metrics: dict[str, Any]) -> None:
    """Raises ValueError for a metric that is no number, or several where it has but one."""
    for name, value in metrics.items():
        if name in _NAMED_NUMBERS and not isinstance(value, dict | None):
            raise ValueError(f"has {kind_of(value)} for {name}")
        for held in value.values() if isinstance(value, dict) else [value]:
            _check_number(name, held)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, list) and name == "acceptance_rate":  # by position in the draft
        for share in value:
            _check_number("", share)
    elif not isinstance(value, int | float | None):
        raise ValueError(f"has the metric {value!r}, which is no number")


def read_samples(path: Path) -> list[SampleRecord]:
    """The samples that the run with this file has so far, in the order of its examples.

    Those that several processes hold in parts are among them. What `whole_samples` says of damage
    holds for every file.
    """
    samples: dict[int, SampleRecord] = {}
    for file_path in (samples_path(path), *part_paths(path)):
        for sample in whole_samples(file_path)[0]:
            samples.setdefault(sample.index, sample)
    return [samples[index] for index in sorted(samples)]


def whole_samples(file_path: Path) -> tuple[list[SampleRecord], int]:
    """The samples in a file, and the number of bytes that hold them.

    A last line that is not whole, as a killed process leaves it, is not among them. Raises
    ValueError for any other damage.
    """
    samples: list[SampleRecord] = []
    size = 0
    try:
        with opened(file_path) as file:
            for line in (lines := bounded_lines(file)):
                sample, damage = _sample(line)
                if sample is None:
                    if next(lines, None) is None:
                        break
                    raise ValueError(f"is damaged ({damage})")
                samples.append(sample)
                size += len(line)
    except FileNotFoundError:
        return [], 0
    except ValueError as error:
        raise ValueError(f"line {len(samples) + 1} of {file_path.name} {error}") from error
    return samples, size


def _sample(line: bytes) -> tuple[SampleRecord | None, Exception | None]:
    """The sample in a line, or what is wrong with it."""
    try:
        return made_of(SampleRecord, parse_log(line)), None
    except ValueError as error:
        return None, error


def find_runs(folder: Path) -> list[Path]:
    """The runs' files at and below a folder, oldest first."""
    return sorted(folder.rglob("benchmark_*.json"), key=lambda path: (path.name, path))
