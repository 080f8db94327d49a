"""The contents of a log's two files: a JSON object, and a JSONL line for every example."""

import dataclasses
import glob
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeGuard, TypeVar

from files.hashes import identity_hash
from pruning.plan import PrunePlan

SCHEMA_VERSION = 1
STATUSES = ("running", "complete", "interrupted", "failed")


class Key(NamedTuple):
    """Names a line in its file by the pass over the examples and the index of the example."""

    repeat: int
    example: int


@dataclass
class SampleRecord:
    """The line of one decoded example. Times are seconds; a number not measured is None.

    `status` is done, prompt_too_long, out_of_memory, or measured: a plain text, which is not
    decoded. `rounds` lists (drafted, accepted) tokens, and `drafters` the drafter of each round of
    a hybrid, "" where nothing was drafted. `switches` lists changes between drafting and plain
    steps (`Switch` in self_speculation/draft_length.py). `earlier_answers` counts the answers of
    this process that drafters could use besides the example's own; None where they use none.
    `steps` holds calls and seconds of draft, verify, full and early_exit passes. It and
    `decode_seconds` exclude the first token, which belongs to the prefill. `full_step` are the full
    steps timed as a yardstick after a speculative output. `peak_memory_bytes` is the process's peak
    so far. `ranks` and `threads` count the processes of the run and the threads of this one.

    `repeat` numbers the timed passes over the prompts, from 0. Later passes leave out `reference`,
    `prediction` and `scores`, which are those of the first. `batch` tells which prompts were
    decoded in one call (`first`, the index of one of them), how many at a time (`size`), and the
    `seconds` of the call; their own seconds and steps are then unknown. `turns` has an entry for
    each turn of a conversation, over which the other fields are sums; it is empty for a single
    prompt. `copied_tokens` counts output tokens in matches of 3 and more with the prompt.
    `teacher_forced` holds sums over the tokens of the reference, or of a plain text: `tokens`,
    `bytes` and `nats`, and beside an unpruned model `kl_nats` and `agreeing` (runs/likelihood.py).
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
    repeat: int = 0
    category: str | None = None
    batch: dict[str, float] | None = None
    turns: list[dict[str, Any]] = field(default_factory=list)
    copied_tokens: int | None = None
    teacher_forced: dict[str, float] | None = None
    drafters: list[str] = field(default_factory=list)
    switches: list[dict[str, Any]] = field(default_factory=list)
    earlier_answers: int | None = None

    @property
    def key(self) -> Key:
        return Key(self.repeat, self.index)

    @property
    def drafted_tokens(self) -> int:
        return sum(drafted for drafted, _ in self.rounds)

    @property
    def accepted_tokens(self) -> int:
        return sum(accepted for _, accepted in self.rounds)

    @property
    def decoded_tokens(self) -> int:
        """Tokens that decoding yielded: all but the first of each answer; 0 without an output."""
        answered = sum(turn["generated_tokens"] > 0 for turn in self.turns)
        return len(self.output_ids) - (answered or 1) if self.output_ids else 0


class DoneSample(SampleRecord):
    """A sample that is done, for type checkers: it has times, and in the first pass a text."""

    prediction: str
    prefill_seconds: float
    decode_seconds: float


def is_done(sample: SampleRecord) -> TypeGuard[DoneSample]:
    return sample.status == "done"


def is_finished(sample: SampleRecord) -> bool:
    """Return whether the sample is done, or is a plain text that was measured."""
    return sample.status in ("done", "measured")


@dataclass
class VerdictRecord:
    """The line of one example whose two decodings were compared; `result` is what was found."""

    index: int
    result: dict[str, Any]

    @property
    def key(self) -> Key:
        return Key(0, self.index)


Line = TypeVar("Line", SampleRecord, VerdictRecord)


@dataclass(frozen=True)
class LogKind(Generic[Line]):
    """A kind of log: the first word of its files' names, and the record of a line."""

    name: str
    line: type[Line]


RUN = LogKind("benchmark", SampleRecord)
CHECK = LogKind("correctness", VerdictRecord)


@dataclass
class RunRecord:
    """A log's JSON object.

    `identity` is all that defines the run; `run_id` is its hash. `status` is one of `STATUSES`.
    `draft_plan` is the plan of a pruned drafter; None for others, and absent in older logs.
    `resumed` has an entry for every later start that continued the run. `metrics` are spread over
    the file's top level; docs/logs.md explains their keys.
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
    draft_plan: dict[str, Any] | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def run_id(self) -> str:
        return identity_hash(self.identity)

    @property
    def is_complete(self) -> bool:
        return self.status == "complete"

    @property
    def failed_prompts(self) -> int:
        """Prompts of a finished run that ran out of memory."""
        return self.metrics.get("counts", {}).get("failed_prompts", 0)

    @property
    def passes(self) -> int:
        """Timed passes over all prompts of a finished run; earlier releases knew only one."""
        return self.metrics.get("counts", {}).get("passes", 1)

    @property
    def scoring(self) -> str | None:
        """The tokenizers of ROUGE and BLEU; None if every reference has ASCII words only.

        Earlier releases read only ASCII letters, and logged no tokenizer.
        """
        facts = self.data.get("scoring") or {"ascii_words": True}
        if facts["ascii_words"]:
            return None
        return f"{facts['rouge_tokenizer']}, {facts['bleu_tokenizer']}"

    def prune_plan(self) -> PrunePlan:
        """Return the plan that `plan` logs. Raises ValueError for values that are no plan's."""
        return PrunePlan.from_dict(self.plan)

    def drafter_plan(self) -> PrunePlan | None:
        """Return the drafter's plan, as `prune_plan` does; None for another drafter."""
        return None if self.draft_plan is None else PrunePlan.from_dict(self.draft_plan)

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        metrics = values.pop("metrics")
        return {"run_id": self.run_id} | values | metrics


def samples_path(log_path: Path) -> Path:
    """Return the file of lines that belongs to a log's JSON file."""
    return log_path.with_suffix(".samples.jsonl")


def part_path(log_path: Path, rank: int, start: str) -> Path:
    """Return the file in which one process keeps its lines until the leading process has them.

    `start` names the start of the run, so that a process that is still at work for an earlier start
    writes elsewhere.
    """
    return log_path.with_suffix(f".rank{rank}-{start}.samples.jsonl")


def part_paths(log_path: Path) -> list[Path]:
    """Return the parts of a log's lines that lie beside its file of lines."""
    return sorted(log_path.parent.glob(f"{glob.escape(log_path.stem)}.rank*.samples.jsonl"))
