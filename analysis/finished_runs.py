"""A finished run of this tool or of the older one, and the conditions under which it ran.

`metrics` holds what `runs.metrics.summarize` computes: a metric that is added there is read here by
its key, as in `run.metric("tokens_per_second", "mean")`.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from analysis.logged_examples import Examples
from pruning.plan import PlanKey
from runs.record import RunRecord

# The fingerprint of every hub model in logs of an earlier release: the hash of no files.
_NO_FILES = "files e3b0c44298fc1c14"


class Drafter(NamedTuple):
    """The plan whose kept layers drafted.

    Under one name, calibration may decide other layers, and fit a patch to other texts.
    """

    name: str
    kept_layers: tuple[int, ...]
    patch_texts: str | None = None

    def __str__(self) -> str:
        return self.name


class Decoder(NamedTuple):
    """How a run decoded; None where it does not apply. `drafter` is a pruned drafter.

    `drafting` names a drafter that runs no layer, and the options of any drafter; it is empty for
    others.
    """

    strategy: str
    exit_layer: int | None
    num_speculations: int | None
    drafter: Drafter | None = None
    drafting: str = ""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run with the facts that the logs of both tools hold; None is unknown."""

    path: Path
    dataset: str
    method: str
    param: str
    metrics: dict[str, Any]
    strategy: str | None = None
    exit_layer: int | None = None
    num_speculations: int | None = None
    drafter: Drafter | None = None
    drafting: str = ""
    model: str | None = None
    num_samples: float | None = None

    @property
    def is_older(self) -> bool:
        return not isinstance(self, LoggedRun)

    def metric(self, *keys: str) -> float | None:
        """Return a metric by its nested keys; None where it was not measured."""
        value: Any = self.metrics
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def quality(self, name: str) -> float | None:
        """Return the mean of a score over prompts, one of `analysis.comparison.QUALITIES`."""
        return self.metric("predicted_text", name)

    @property
    def speed(self) -> float | None:
        """Tokens per second of all outputs together, decoding alone."""
        return self.metric("tokens_per_second", "token_weighted")


@dataclass(frozen=True, kw_only=True)
class LoggedRun(FinishedRun):
    """A run of this tool. `examples` is None where the file of samples does not hold them all."""

    strategy: str
    kept_layers: tuple[int, ...]
    original_layers: int
    prune_seed: int | None
    record: RunRecord = field(repr=False)
    examples: Examples | None = field(repr=False)

    def quality(self, name: str) -> float | None:
        """Return the mean of a score over prompts.

        Scores that no text decides come from the examples: metrics hold their means over tokens.
        """
        found = super().quality(name)
        scores = self.examples.scores if self.examples else {}
        return float(scores[name].mean()) if found is None and name in scores else found

    @property
    def removed_layers(self) -> int:
        return self.original_layers - len(self.kept_layers)

    @property
    def decoder(self) -> Decoder:
        return Decoder(
            self.strategy, self.exit_layer, self.num_speculations, self.drafter, self.drafting
        )

    @cached_property
    def model_key(self) -> PlanKey:
        """What decides the pruned model."""
        return self.record.prune_plan().key

    @property
    def plan_name(self) -> tuple[str, str, PlanKey]:
        """The plan that was asked for, and the model that it made, which calibration may decide."""
        return self.method, self.param, self.model_key

    @property
    def decodes_whole_model(self) -> bool:
        """False for early-exit inference, which is another model."""
        return self.strategy == "self_speculative" or self.exit_layer is None

    @property
    def is_batched(self) -> bool:
        """Whether prompts were decoded together, which yields throughput and no speed."""
        return self.conditions["batch_size"] != 1

    @property
    def is_forced(self) -> bool:
        """Whether teacher-forced passes measured the references too."""
        return bool(self.record.identity.get("teacher_forced"))

    @property
    def speed(self) -> float | None:
        """Tokens per second of all outputs together; None for prompts decoded together."""
        return None if self.is_batched else super().speed

    @property
    def acceptance_by_position(self) -> list[float]:
        """Acceptance of the first, second, ... draft of a round; empty without drafts."""
        return (self.metrics.get("acceptance_rate") or {}).get("by_position") or []

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """The facts that two comparable runs share: everything except plan and decoder."""
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
            "batch_size": identity.get("batch_size", 1),
            "text scores": record.scoring,
            "threads": timed.get("threads") or record.runtime["threads"],
            "ranks": timed.get("ranks") or record.runtime["ranks"],
            "torch": _versions(record, "torch"),
            "transformers": _versions(record, "transformers"),
            "engine version": identity["engine_version"],
            # How plain texts are divided into passes, which decides their perplexity.
            **{name: identity.get(name) for name in ("window", "stride", "first_token")},
        }

    @cached_property
    def condition_key(self) -> str:
        return json.dumps(self.conditions, sort_keys=True)


def _versions(record: RunRecord, package: str) -> str:
    """Return the package's versions, in the order of the run's starts."""
    starts = [record.runtime, *(start["runtime"] for start in record.resumed)]
    return ", then ".join(dict.fromkeys(str(one["versions"].get(package)) for one in starts))
