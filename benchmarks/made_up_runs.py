"""Logs of made-up runs, as long as real logs and written by the same writer."""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from files.hashes import content_hash
from pruning.plan import PrunePlan
from runs.metrics import summarize
from runs.record import RunRecord, SampleRecord, is_done
from runs.writer import LogWriter

LAYERS = 32
_SCORES = ("rouge-l", "rouge-1", "rouge-2", "rouge-3", "bleu_score", "exact_match", "edit_distance")


def base_plan() -> PrunePlan:
    return PrunePlan("base", LAYERS, tuple(range(LAYERS)))


def angular_plan(count: int, first: int = 20) -> PrunePlan:
    """Return a plan that removes `count` layers, with distances that rise with n."""
    distances = [
        [n / LAYERS if layer + n <= LAYERS else None for n in range(LAYERS + 1)]
        for layer in range(LAYERS + 1)
    ]
    scores = {"first_removed_layer": first, "distance": count / LAYERS, "distances": distances}
    kept = tuple(layer for layer in range(LAYERS) if not first <= layer < first + count)
    return PrunePlan("angular", LAYERS, kept, prune_n=count, scores=scores)


def random_plan(threshold: float, seed: int) -> PrunePlan:
    draws = random.Random(seed)
    kept = tuple(layer for layer in range(LAYERS) if draws.random() >= threshold)
    return PrunePlan("random", LAYERS, kept, dropout_threshold=threshold, prune_seed=seed)


@dataclass
class MadeUpRun:
    """One run; seconds and scores are averages, around which examples vary.

    An example's difficulty depends only on `data_seed`, so that runs can be paired. Examples take
    the categories in turn. `identity`, `generation` and `runtime` change these parts of the log; a
    `batch_size` among the identity decodes as many prompts together.
    """

    dataset: str = "human_eval"
    plan: PrunePlan = field(default_factory=base_plan)
    exit_layer: int | None = None
    num_speculations: int | None = None
    examples: int = 20
    repeats: int = 1
    tokens: int = 32
    seconds: float = 1.0
    full_step_seconds: float = 1 / 31
    score: float = 0.5
    data_seed: int = 0
    categories: tuple[str, ...] = ()
    nats: float | None = None  # per token of references
    draft_plan: PrunePlan | None = None  # of a pruned drafter
    acceptance: float | None = None  # of each draft; by default, rounds accept any number alike
    model: str = "made-up-7B"
    identity: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, status: str = "complete") -> Path:
        """Write the run's two files; return the path of the first."""
        writer: LogWriter[SampleRecord] = LogWriter(str(folder), self._record())
        drafter = f" {self.draft_plan.approach}" if self.draft_plan else ""
        draws = random.Random(
            f"{self.dataset} {self.plan.approach} {self.num_speculations}{drafter}"
        )
        for repeat in range(self.repeats):
            for sample in self._in_batches(list(self._samples(draws))):
                writer.add(_of_pass(sample, repeat))
        writer.finish(status, summarize(writer.samples))
        return writer.path

    def _record(self) -> RunRecord:
        facts = self._facts()
        share = len(self.plan.kept_layers) / LAYERS
        return RunRecord(
            identity=self._identity(facts),
            command="made up",
            arguments={},
            model={
                "name": self.model,
                "parameters": int(7e9 * share),
                "weight_bytes": int(14e9 * share),
                "kept_layers": len(self.plan.kept_layers),
                "original_layers": LAYERS,
            },
            plan=self.plan.to_dict(),
            exit_layer={"original": self.exit_layer, "kept": None},
            runtime=facts,
            data={"evaluation": {"examples": self.examples, "shots": []}, "calibration": None},
            draft_plan=self.draft_plan.to_dict() if self.draft_plan else None,
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "device": "made up",
            "dtype": "bfloat16",
            "threads": 1,
            "ranks": 1,
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        } | self.runtime

    def _identity(self, facts: dict[str, Any]) -> dict[str, Any]:
        strategy = "self_speculative" if self.num_speculations else "autoregressive"
        generation = {
            "generation_strategy": strategy,
            "exit_layer": self.exit_layer or -1,
            "num_speculations": self.num_speculations,
            "max_steps": 512,
            "sample": False,
        } | self.generation
        drafts = {"draft_plan": self.draft_plan.approach} if self.draft_plan else {}
        return (
            {
                "model_fingerprint": "files 0",
                "model_args": {},
                "dataset": self.dataset,
                "data_fingerprint": content_hash(self.dataset, f"{self.data_seed} {self.examples}"),
                "apply_chat_template": False,
                "truncate_prompt": False,
                "plan": {key: value for key, value in asdict(self.plan).items() if key != "scores"},
                "generation": generation,
                "dtype": facts["dtype"],
                "device": facts["device"],
                "attention": "sdpa",
                "compile": False,
                "engine_version": 1,
            }
            | drafts
            | self.identity
        )

    def _samples(self, draws: random.Random) -> Iterator[SampleRecord]:
        for index in range(self.examples):
            example = random.Random(f"{self.data_seed} {self.dataset} {index}")
            rounds = self._rounds(self.num_speculations, draws) if self.num_speculations else []
            seconds = self.seconds * example.uniform(0.8, 1.2) * draws.uniform(0.98, 1.02)
            step = {"calls": len(rounds) or self.tokens - 1, "seconds": seconds / 2}
            yield SampleRecord(
                index=index,
                example_id=f"line {index}",
                prompt_tokens=700,
                reference="a reference text of some words " * 10,
                prediction="a predicted text of some words " * (self.tokens // 7),
                output_ids=[example.randrange(32000) for _ in range(self.tokens)],
                stop_reason="length",
                prefill_seconds=0.1,
                decode_seconds=seconds,
                steps={"draft": step, "verify": step} if rounds else {"full": step},
                full_step={"calls": 2, "seconds": 2 * self.full_step_seconds} if rounds else None,
                rounds=rounds,
                scores={
                    name: self.score * example.uniform(0.5, 1.5) * draws.uniform(0.9, 1.1)
                    for name in _SCORES
                }
                | {"exact_match": float(example.random() < self.score)},
                peak_memory_bytes=15_000_000_000,
                threads=self.runtime.get("threads", 1),
                category=self.categories[index % len(self.categories)] if self.categories else None,
                copied_tokens=self.tokens // 4 if self.categories else None,
                teacher_forced=self._likelihood(index),
            )

    def _in_batches(self, samples: list[SampleRecord]) -> list[SampleRecord]:
        """Return the samples as batches log them: with the seconds of their batch alone."""
        size = self.identity.get("batch_size", 1)
        if size == 1:
            return samples
        found = []
        for start in range(0, len(samples), size):
            part = samples[start : start + size]
            # As long as the slowest prompt alone.
            seconds = max(one.prefill_seconds + one.decode_seconds for one in filter(is_done, part))
            batch = {"first": start, "size": len(part), "seconds": seconds}
            unknown: dict[str, Any] = {"prefill_seconds": None, "decode_seconds": None, "steps": {}}
            found += [replace(one, **unknown, full_step=None, batch=batch) for one in part]
        return found

    def _likelihood(self, index: int) -> dict[str, float] | None:
        if self.nats is None:
            return None
        example = random.Random(f"likelihood {self.data_seed} {self.dataset} {index}")
        tokens = example.randint(50, 100)
        nats = tokens * self.nats * example.uniform(0.8, 1.2)
        sums = {"kl_nats": nats / 10, "agreeing": tokens * 9 // 10}
        return {"tokens": tokens, "bytes": 4 * tokens, "nats": nats} | sums

    def _rounds(self, drafts: int, draws: random.Random) -> list[tuple[int, int]]:
        made, rounds = 1, []
        while made < self.tokens:
            rounds.append((drafts, self._accepted(drafts, draws)))
            made += rounds[-1][1] + 1
        return rounds

    def _accepted(self, drafts: int, draws: random.Random) -> int:
        if self.acceptance is None:
            return draws.randint(0, drafts)
        refused = (place for place in range(drafts) if draws.random() >= self.acceptance)
        return next(refused, drafts)


def _of_pass(sample: SampleRecord, repeat: int) -> SampleRecord:
    """Return the sample as a timed pass logs it: later passes leave the text out."""
    if repeat == 0:
        return sample
    return replace(sample, repeat=repeat, reference="", prediction=None, scores={})
