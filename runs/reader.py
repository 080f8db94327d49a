"""Reads a log's two files back."""

import dataclasses
from pathlib import Path
from typing import Any

from files.reading import LOG_BYTES, bounded_lines, opened, parse_log, read_bounded
from files.values import kind_of, made_of
from runs.record import (
    RUN,
    SCHEMA_VERSION,
    STATUSES,
    Key,
    Line,
    LogKind,
    RunRecord,
    SampleRecord,
    part_paths,
    samples_path,
)

# Metrics that are several numbers, each under its name.
_NAMED_NUMBERS = (
    *("predicted_text", "acceptance_rate", "acceptance_length", "total_time", "copied_share"),
    *("time_to_first_token", "time_per_token", "tokens_per_second", "batched"),
    *("step_seconds", "speedup_over_full_steps", "counts", "timed", "teacher_forced"),
    "plain_rounds",
)
_NAMED_GROUPS = ("drafts_by",)  # metrics that are several numbers of each of several names
_NAMED_WORDS = ("first_token",)  # words among these numbers


def read_record(path: Path) -> RunRecord:
    """Read a log's JSON file. Raises ValueError for a file of another schema."""
    return record_of(parse_log(read_bounded(path, LOG_BYTES)))


def record_of(values: Any) -> RunRecord:
    """Return the record that a file's JSON holds. Raises ValueError for another schema."""
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
    """Raise ValueError for a metric that is not a number, or several where it should be one."""
    for name, value in metrics.items():
        if name in (*_NAMED_NUMBERS, *_NAMED_GROUPS) and not isinstance(value, dict | None):
            raise ValueError(f"has {kind_of(value)} for {name}")
        if name in _NAMED_GROUPS:
            _check_groups(name, value or {})
            continue
        held = value.items() if isinstance(value, dict) else [(name, value)]
        for key, one in held:
            if not (key in _NAMED_WORDS and isinstance(one, str)):
                _check_number(name, one)


def _check_groups(name: str, groups: dict[str, Any]) -> None:
    for group in groups.values():
        if not isinstance(group, dict):
            raise ValueError(f"has {kind_of(group)} in {name}")
        for key, one in group.items():
            _check_number(key, one)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, list) and name == "acceptance_rate":  # by position in the draft
        for share in value:
            _check_number("", share)
    elif not isinstance(value, int | float | None):
        raise ValueError(f"has the metric {value!r}, which is no number")


def read_samples(path: Path) -> list[SampleRecord]:
    """Return `read_lines` of the run with this JSON file."""
    return read_lines(path, RUN)


def read_lines(path: Path, kind: LogKind[Line]) -> list[Line]:
    """Return the lines that the log with this JSON file has so far, pass by pass, in order.

    They include the lines that several processes hold in parts. Raises ValueError for damage that
    `whole_lines` refuses.
    """
    lines: dict[Key, Line] = {}
    for file_path in (samples_path(path), *part_paths(path)):
        for line in whole_lines(file_path, kind)[0]:
            lines.setdefault(line.key, line)
    return [lines[key] for key in sorted(lines)]


def whole_lines(file_path: Path, kind: LogKind[Line]) -> tuple[list[Line], int]:
    """Return the lines of a file, and the number of bytes that hold them.

    Leaves out an incomplete last line, which a killed process may leave. Raises ValueError for any
    other damage.
    """
    records: list[Line] = []
    size = 0
    try:
        with opened(file_path) as file:
            for line in (lines := bounded_lines(file)):
                try:
                    records.append(made_of(kind.line, parse_log(line)))
                except ValueError as error:
                    if next(lines, None) is None:
                        break
                    raise ValueError(f"is damaged ({error})") from error
                size += len(line)
    except FileNotFoundError:
        return [], 0
    except ValueError as error:
        raise ValueError(f"line {len(records) + 1} of {file_path.name} {error}") from error
    return records, size


def find_runs(folder: Path) -> list[Path]:
    """Return the JSON files of runs at and below a folder, oldest first."""
    return sorted(folder.rglob(f"{RUN.name}_*.json"), key=lambda path: (path.name, path))
