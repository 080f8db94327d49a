"""One run, two files: a JSON object that is always valid, and a JSONL line for every example.

Here are their contents and their reader; `run_writer` writes them.
"""

import dataclasses
import functools
import glob
import hashlib
import json
import subprocess
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from files.reading import LOG_BYTES, bounded_lines, opened, parse_log, read_bounded

SCHEMA_VERSION = 1
# Metrics that are several numbers, each under its name.
_NAMED_NUMBERS = (
    *("predicted_text", "acceptance_rate", "total_time", "time_per_token", "tokens_per_second"),
    *("step_seconds", "speedup_over_full_steps", "counts", "timed"),
)
STATUSES = ("running", "complete", "interrupted", "failed")


@dataclass
class SampleRecord:
    """One example's line. Times are seconds; a number that was not measured is None.

    `decode_seconds` and `steps` exclude the first token, which belongs to the prefill. `steps`
    holds calls and seconds of draft, verify, full and early_exit passes; `full_step` the full
    steps timed as a yardstick after a speculative output. `rounds` lists (drafted, accepted)
    tokens. `peak_memory_bytes` is the process's peak so far. `status` is done, prompt_too_long, or
    out_of_memory where the device had too little for the example; `ranks` and `threads` count
    the processes of the run and the threads of the one that was at it.
    """

    index: int
    example_id: str
    prompt_tokens: int
    reference: str
    status: str = "done"
    prediction: str | None = None
    output_ids: list[int] = field(default_factory=list)
    stop_reason: str | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    full_step: dict[str, float] | None = None
    rounds: list[tuple[int, int]] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    ranks: int = 1
    threads: int = 1

    @property
    def drafted_tokens(self) -> int:
        return sum(drafted for drafted, _ in self.rounds)

    @property
    def accepted_tokens(self) -> int:
        return sum(accepted for _, accepted in self.rounds)


@dataclass
class RunRecord:
    """One run's file.

    `identity` is all that defines the run, and `run_id` its hash. `status` is running, complete,
    interrupted or failed. `resumed` tells of every later start that took the run up. `metrics`
    are spread over the file's top level, under the keys that `metrics.summarize` documents.
    """

    identity: dict[str, Any]
    command: str
    arguments: dict[str, Any]
    model: dict[str, Any]
    plan: dict[str, Any]
    exit_layer: dict[str, int | None]
    runtime: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    status: str = "running"
    started: str = ""
    ended: str | None = None
    resumed: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def run_id(self) -> str:
        return identity_hash(self.identity)

    @property
    def failed_prompts(self) -> int:
        """Prompts of a run that is over, for which memory did not suffice."""
        return self.metrics.get("counts", {}).get("failed_prompts", 0)

    @property
    def scoring(self) -> str | None:
        """The tokenizers of ROUGE and BLEU; None where they matter to no reference's words.

        Earlier releases knew ASCII letters only, and named no tokenizer.
        """
        facts = self.data.get("scoring") or {"ascii_words": True}
        if facts["ascii_words"]:
            return None
        return f"{facts['rouge_tokenizer']}, {facts['bleu_tokenizer']}"

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        metrics = values.pop("metrics")
        return {"run_id": self.run_id} | values | metrics


def samples_path(run_path: Path) -> Path:
    """The file of samples that belongs to a run's file."""
    return run_path.with_suffix(".samples.jsonl")


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
    record = _made(RunRecord, {key: values[key] for key in names & set(values)}, metrics=metrics)
    if record.status not in STATUSES:
        raise ValueError(f"has the status {record.status!r}, not one of {', '.join(STATUSES)}")
    return record


def _made(record: type, values: Any, **others: Any) -> Any:
    """The record that has these values. Raises ValueError where they are not those of one."""
    if not isinstance(values, dict):
        raise ValueError("holds no object")
    known = {item.name: item for item in dataclasses.fields(record)}
    for name in values:
        if name not in known:
            raise ValueError(f"holds {name}, which no {record.__name__} has")
    for name, item in known.items():
        has_none = item.default is item.default_factory is dataclasses.MISSING
        if has_none and name not in values:
            raise ValueError(f"lacks {name}, a part of every {record.__name__}")
    made = record(**values, **others)
    check_kinds(made)
    return made


def check_kinds(record: Any) -> None:
    """Raises ValueError for a field of a log that holds another kind of value than it may."""
    for name, kinds in _kinds(type(record)).items():
        if not isinstance(getattr(record, name), kinds):
            raise ValueError(f"has {_kind(getattr(record, name))} for {name}")


def check_metrics(metrics: dict[str, Any]) -> None:
    """Raises ValueError for a metric that is no number, or several where it has but one."""
    for name, value in metrics.items():
        if name in _NAMED_NUMBERS and not isinstance(value, dict | None):
            raise ValueError(f"has {_kind(value)} for {name}")
        for held in value.values() if isinstance(value, dict) else [value]:
            _check_number(name, held)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, list) and name == "acceptance_rate":  # by position in the draft
        for share in value:
            _check_number("", share)
    elif not isinstance(value, int | float | None):
        raise ValueError(f"has the metric {value!r}, which is no number")


def _kind(value: Any) -> str:
    """What JSON calls a value's kind."""
    names = {list: "a list", dict: "an object", str: "a text", type(None): "null"}
    return names.get(type(value), repr(value))


@functools.cache
def _kinds(record: type) -> dict[str, tuple[type, ...]]:
    """What a JSON file may hold in each field of a dataclass, in Python's types."""
    found = {}
    for name, hint in typing.get_type_hints(record).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds = tuple(typing.get_origin(option) or option for option in options)
        found[name] = (*kinds, int) if float in kinds else kinds
    return found


def part_path(run_path: Path, rank: int, start: str) -> Path:
    """Where one of several processes keeps its samples until the leading one has them.

    `start` names the start of the run, so that a process of an earlier one that is still at work
    writes elsewhere.
    """
    return run_path.with_suffix(f".rank{rank}-{start}.samples.jsonl")


def part_paths(run_path: Path) -> list[Path]:
    """The parts of a run's samples that lie beside its file of samples."""
    return sorted(run_path.parent.glob(f"{glob.escape(run_path.stem)}.rank*.samples.jsonl"))


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
        return _made(SampleRecord, parse_log(line)), None
    except ValueError as error:
        return None, error


def find_runs(folder: Path) -> list[Path]:
    """The runs' files at and below a folder, oldest first."""
    return sorted(folder.rglob("benchmark_*.json"), key=lambda path: (path.name, path))


def current_commit() -> str | None:
    """The commit of this code, `+changes` where files differ; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def content_hash(*texts: str) -> str:
    """A short hash of texts in order, for what a log must be able to tell apart but not hold."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()[:16]


def tokens_hash(sequences: Iterable[list[int]]) -> str:
    """Return a short hash of sequences of token ids, in order."""
    return content_hash(*(" ".join(map(str, ids)) for ids in sequences))


def identity_hash(identity: dict[str, Any]) -> str:
    """The run id that an identity has."""
    canonical = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", "-C", folder, *command], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
