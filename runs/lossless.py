"""Compares self-speculative with plain decoding of the same model, prompt by prompt."""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch

from arguments.generation import GenerationArguments
from command_line.errors import reject
from models.loading import LoadedModel
from pruned_model import PruneModel
from runs.definition import RunDefinition
from runs.encoding import EncodedExample
from runs.experiment import Done, load_and_prune, work_once
from runs.fitting import fitted_to_memory, within_memory
from runs.loop import Job
from runs.measuring import make_record
from runs.preparation import make_generator, positions_for
from runs.record import CHECK, Key, RunRecord, VerdictRecord
from self_speculation.distribution import ALPHA, chi_square, needed_tokens, sample_sequences
from self_speculation.equality import TIE_GAPS, first_difference, ties_allowed, verdict
from self_speculation.output_text import OutputText
from self_speculation.sampling import seeded_generator
from self_speculation.text_generator import TextGenerator

Result = dict[str, Any]


def check_run(definition: RunDefinition, draws: int, command: str) -> tuple[RunRecord, Path]:
    """Check all prompts of a run; return the log's record and its file.

    The record's metrics are a summary and the examples' results. `draws` are taken of each prompt
    if the flags ask for sampling.
    """

    def begin(
        loaded: LoadedModel, pruned: PruneModel, encoded: list[EncodedExample], _: Done
    ) -> Job:
        pair = DecoderPair(definition, loaded, pruned, encoded, draws)
        record = make_record(definition, loaded, pruned, command)
        record.arguments["correctness"] = {"num_draws": draws}
        return Job(record, pair.compare, pair.summarize)

    def check_left(left: RunRecord) -> None:
        is_sampled = definition.arguments.generation.sample
        if "correctness" not in left.arguments:
            # An earlier release kept the results elsewhere, and did not say how many draws.
            if is_sampled or not left.is_complete:
                folder = definition.arguments.log.output_dir
                reject("output_dir", folder, f"holds check {left.run_id} of an earlier release")
            return
        began = left.arguments["correctness"]["num_draws"]
        if is_sampled and began != draws:
            allowed = f"check {left.run_id} was begun with {began}; use another --output_dir"
            reject("num_draws", draws, allowed)

    return work_once(definition, CHECK, load_and_prune, begin, check_left)


class DecoderPair:
    """Both decoders of one pruned model; compares them on the prompts of a run.

    Greedy outputs are compared token by token. Sampled outputs are tested against the verifier's
    probabilities.
    """

    def __init__(
        self,
        definition: RunDefinition,
        loaded: LoadedModel,
        pruned: PruneModel,
        encoded: list[EncodedExample],
        draws: int,
    ) -> None:
        self._definition, self._loaded, self._pruned = definition, loaded, pruned
        self._encoded, self._draws = encoded, draws
        flags = definition.arguments.generation
        if flags.sample:
            steps = max(flags.max_steps, needed_tokens(flags.num_speculations))
            flags = dataclasses.replace(flags, max_steps=steps)
        self._flags = flags
        self._plain, self._spoken = fitted_to_memory(definition, encoded, flags, self._make)

    def compare(self, keys: list[Key]) -> list[VerdictRecord]:
        """Compare both decoders on the prompts of these keys."""
        return [
            VerdictRecord(key.example, self._compared(self._encoded[key.example])) for key in keys
        ]

    def summarize(
        self, verdicts: list[VerdictRecord], new: Collection[Key], seconds: float
    ) -> dict[str, Any]:
        """Return the summary of all verdicts, and the results that it summarizes."""
        results, dtype = [one.result for one in verdicts], self._definition.runtime.dtype
        if self._flags.sample:
            return summarize_sampled(results, dtype)
        return summarize_greedy(results, dtype)

    def _make(self, longest: int, prompt: list[int]) -> tuple[TextGenerator, TextGenerator]:
        plain = dataclasses.replace(self._loaded, compiled=False)
        plain_flags = dataclasses.replace(
            self._flags, generation_strategy="autoregressive", exit_layer=-1, num_speculations=-1
        )
        both = (
            self._generator(plain_flags, plain, longest),
            self._generator(self._flags, self._loaded, longest),
        )
        for one in both:
            one.warm_up(prompt)  # allocates the cache
        return both

    def _generator(
        self, flags: GenerationArguments, loaded: LoadedModel, longest: int
    ) -> TextGenerator:
        arguments = self._definition.arguments
        draft, words = arguments.draft, arguments.stop_words
        return make_generator(flags, draft, loaded, self._pruned, words, longest)

    def _compared(self, item: EncodedExample) -> Result:
        facts = {"example_id": item.example.example_id, "prompt_tokens": item.full_length}
        ids, found = item.prompt_ids, None
        if ids is None:
            return facts | {"verdict": "prompt_too_long"}
        config = self._definition.checkpoint.config
        if positions_for(config, self._flags, len(ids)) <= self._plain.engine.capacity:
            if self._flags.sample:
                compare = partial(self._tested, ids, item.example.example_id)
            else:
                compare = partial(self._parted, ids)
            found = within_memory(compare)
        return facts | (found or {"verdict": "out_of_memory"})

    def _parted(self, ids: list[int]) -> Result:
        """Compare the tokens; where they differ, add the gap between their logits."""
        made = self._spoken.generate(ids)
        one, other = self._plain.generate(ids).output_ids, made.output_ids
        found = first_difference(self._loaded.model, ids, one, other)
        result: Result = {
            "verdict": verdict(found, self._definition.runtime.dtype),
            "tokens": len(one),
            "drafted": made.drafted_tokens,
            "difference": None,
        }
        if found:
            text_of = OutputText(self._loaded.tokenizer, ids + one[: found.position], special=True)
            result["difference"] = {
                "position": found.position,
                "logit_gap": found.logit_gap if found.logit_gap < float("inf") else None,
                "autoregressive": text_of(one[found.position :]),
                "self_speculative": text_of(other[found.position :]),
            }
        return result

    def _tested(self, ids: list[int], name: str) -> Result:
        """Test how speculation's draws are distributed; `summarize_sampled` gives the verdict."""
        strategy = self._spoken.strategy
        if needed_tokens(self._flags.num_speculations) >= strategy.engine.room_after(len(ids)):
            return {"verdict": "prompt_too_long"}
        generator = seeded_generator(strategy.engine.device, self._flags.seed, name, "law")
        judge = self._plain.strategy
        observed, expected = sample_sequences(strategy, ids, generator, self._draws, judge)
        result: Result = {
            "draws": observed.total(),
            "sequences": len(observed),
            "likely_sequences": len(expected),
        }
        if not observed:
            return result | {"verdict": "untested", "chi_square": None}
        found = chi_square(observed, expected)
        state = "untested" if found.p_value is None else "tested"
        return result | {"verdict": state, "chi_square": dataclasses.asdict(found)}


def summarize_greedy(results: list[Result], dtype: torch.dtype) -> dict[str, Any]:
    """Count the verdicts, and the share of tokens before the first difference."""
    compared = [one for one in results if "tokens" in one]
    tokens = sum(one["tokens"] for one in compared)
    parted = [one for one in compared if one["difference"]]
    gaps = [gap for one in parted if (gap := one["difference"]["logit_gap"]) is not None]
    lost = sum(one["tokens"] - one["difference"]["position"] for one in parted)
    counts = Counter(one["verdict"] for one in results)
    tested = sum(one["drafted"] > 0 for one in compared)
    holds = not counts["wrong"] and counts["tie"] <= ties_allowed(tokens)
    summary = {
        "verdicts": dict(counts),
        "tested": tested,
        "tokens": tokens,
        "match_rate": counts["equal"] / len(compared) if compared else None,
        "tokens_before_difference": 1 - lost / tokens if tokens else None,
        "median_logit_gap": statistics.median(gaps) if gaps else None,
        "largest_logit_gap": max(gaps, default=None),
        "lossless": _proven(dtype, tested, holds),
    }
    return {"summary": summary, "examples": results}


def summarize_sampled(results: list[Result], dtype: torch.dtype) -> dict[str, Any]:
    """Give every tested prompt its verdict: wrong if its draws are too unlikely.

    The prompts share the level `ALPHA`; docs/correctness.md says how well chi-square keeps it. In
    half precision a verdict is "different" instead of "wrong", because the two passes round
    differently.
    """
    p_values = [one["chi_square"]["p_value"] for one in results if one["verdict"] == "tested"]
    level = ALPHA / max(len(p_values), 1)
    refused = "wrong" if dtype in TIE_GAPS else "different"

    def judged(one: Result) -> Result:
        if one["verdict"] != "tested":
            return one
        return one | {"verdict": "equal" if one["chi_square"]["p_value"] >= level else refused}

    examples = [judged(one) for one in results]
    counts = Counter(one["verdict"] for one in examples)
    summary = {
        "verdicts": dict(counts),
        "tested": len(p_values),
        "draws": sum(one.get("draws", 0) for one in results),
        "alpha": ALPHA,
        "level": level,
        "smallest_p_value": min(p_values, default=None),
        "lossless": _proven(dtype, len(p_values), not counts["wrong"]),
    }
    return {"summary": summary, "examples": examples}


def _proven(dtype: torch.dtype, tested: int, holds: bool) -> bool | None:
    """Return None if nothing is proven: in half precision, or without a tested prompt."""
    return holds if dtype in TIE_GAPS and (tested or not holds) else None
