"""One run, two files: a JSON object that is always valid, and a JSONL line for every example."""

import dataclasses
import glob
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from files.hashes import identity_hash

SCHEMA_VERSION = 1
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


def part_path(run_path: Path, rank: int, start: str) -> Path:
    """Where one of several processes keeps its samples until the leading one has them.

    `start` names the start of the run, so that a process of an earlier one that is still at work
    writes elsewhere.
    """
    return run_path.with_suffix(f".rank{rank}-{start}.samples.jsonl")


def part_paths(run_path: Path) -> list[Path]:
    """The parts of a run's samples that lie beside its file of samples."""
    return sorted(run_path.parent.glob(f"{glob.escape(run_path.stem)}.rank*.samples.jsonl"))
