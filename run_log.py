"""One run, two files: a JSON object that is always valid, and a JSONL line for every example."""

import dataclasses
import hashlib
import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command_line import reject

SCHEMA_VERSION = 1


@dataclass
class SampleRecord:
    """One example's line. Times are seconds; a number that was not measured is None.

    `decode_seconds` and `steps` exclude the first token, which belongs to the prefill. `steps`
    holds calls and seconds of draft, verify, full and early_exit passes; `full_step` the full
    steps timed as a yardstick after a speculative output. `rounds` lists (drafted, accepted)
    tokens.
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
    interrupted or failed. `metrics` are spread over the file's top level, under the keys that
    `metrics.summarize` documents.
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
    metrics: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def run_id(self) -> str:
        canonical = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        metrics = values.pop("metrics")
        return {"run_id": self.run_id} | values | metrics


class RunWriter:
    """Writes `OUTPUT_DIR/benchmark_<time>_<run id>.json` and `.samples.jsonl`.

    The first is replaced as a whole whenever it changes; of the second, a line is on its way to
    the disk as soon as its example is done. Raises `UsageError` where the folder cannot be
    written.
    """

    def __init__(self, output_dir: str, record: RunRecord) -> None:
        self.record = record
        record.started = _timestamp()
        stem = f"benchmark_{time.strftime('%Y%m%d_%H%M%S')}_{record.run_id}"
        self.path = Path(output_dir) / f"{stem}.json"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._samples = samples_path(self.path).open("x", encoding="utf-8")
        except FileExistsError:
            reject("output_dir", output_dir, f"another run has just begun {stem}; start again")
        except OSError as error:
            reject("output_dir", output_dir, f"cannot be written ({error.strerror})")
        try:
            self._replace()
        except BaseException as error:
            self.close()
            samples_path(self.path).unlink()
            if isinstance(error, OSError):
                reject("output_dir", output_dir, f"cannot be written ({error.strerror})")
            raise

    def add(self, sample: SampleRecord) -> None:
        """Appends an example's line."""
        self._samples.write(_dump(dataclasses.asdict(sample)) + "\n")
        self._samples.flush()

    def finish(self, status: str, metrics: dict[str, Any]) -> None:
        """Closes the run with its final status and metrics."""
        self.close()
        self.record.status = status
        self.record.ended = _timestamp()
        self.record.metrics = metrics
        self._replace()

    def close(self) -> None:
        """Closes the file of samples; the run keeps the status that it has."""
        self._samples.close()

    def _replace(self) -> None:
        text = _dump(self.record.to_dict(), indent=2) + "\n"
        scratch = self.path.with_suffix(".json.partial")
        try:
            with scratch.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self.path)
        finally:
            scratch.unlink(missing_ok=True)


def samples_path(run_path: Path) -> Path:
    """The file of samples that belongs to a run's file."""
    return run_path.with_suffix(".samples.jsonl")


def read_record(path: Path) -> RunRecord:
    """Reads a run's file back. Raises ValueError for one that is no run of this schema."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{path}: no run log of schema version {SCHEMA_VERSION}")
    values.pop("run_id")
    names = {item.name for item in dataclasses.fields(RunRecord)}
    record = RunRecord(**{key: value for key, value in values.items() if key in names})
    record.metrics = {key: value for key, value in values.items() if key not in names}
    return record


def read_samples(path: Path) -> list[SampleRecord]:
    """The samples that the run with this file has so far."""
    with samples_path(path).open(encoding="utf-8") as file:
        return [SampleRecord(**json.loads(line)) for line in file]


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


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", "-C", folder, *command], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _dump(value: Any, indent: int | None = None) -> str:
    # NaN is no JSON: a value that is missing is null.
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
