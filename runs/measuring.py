"""Decodes the examples of a run, times and scores them."""

import dataclasses
from collections.abc import Collection
from functools import partial
from typing import Any

import torch

from command_line.messages import warn
from data import EvaluationExample
from files.commit import current_commit
from models.loading import LoadedModel
from pruned_model import PruneModel, PrunePlan
from runs.code_execution import passes
from runs.definition import RunDefinition
from runs.encoding import EncodedExample
from runs.fitting import fitted_to_memory, within_memory
from runs.likelihood import likelihood
from runs.loop import Job
from runs.metrics import differing_outputs, summarize, text_scores
from runs.preparation import exit_layer_facts, make_generator, model_facts, positions_for
from runs.record import Key, RunRecord, SampleRecord
from runs.speed_metrics import throughput
from self_speculation.generator_base import Generation
from self_speculation.text_generator import TextGenerator


def generator_for(
    definition: RunDefinition, loaded: LoadedModel, plan: PrunePlan, encoded: list[EncodedExample]
) -> TextGenerator:
    """Return a warm decoder with room for the longest prompt that memory allows.

    Raises `FailedError` if memory suffices for no prompt.
    """
    flags, words = definition.arguments.generation, definition.arguments.stop_words

    def make(longest: int, prompt: list[int]) -> TextGenerator:
        generator = make_generator(flags, loaded, plan, words, longest)
        made = generator.warm_up(prompt)  # allocates the cache
        _time_full_step(generator, prompt, made)
        return generator

    return fitted_to_memory(definition, encoded, flags, make)


def make_record(
    definition: RunDefinition, loaded: LoadedModel, plan: PrunePlan, command: str
) -> RunRecord:
    """Return what a log says before the first token: what defines the run, and where it runs."""
    return RunRecord(
        identity=definition.identity,
        command=command,
        arguments=dataclasses.asdict(definition.arguments),
        model=model_facts(loaded, plan),
        data=definition.data_facts | {"scoring": definition.scoring},
        plan=plan.to_dict(),
        exit_layer=exit_layer_facts(definition.arguments.generation, plan),
        runtime=definition.runtime.facts(),
        commit=current_commit(),
    )


def measurement(
    definition: RunDefinition,
    command: str,
    loaded: LoadedModel,
    pruned: PruneModel,
    encoded: list[EncodedExample],
    forced: dict[int, dict[str, float]] | None = None,
) -> Job[SampleRecord]:
    """Return the job that decodes, times and scores the examples with a warm decoder.

    `forced` holds what teacher-forced passes have measured, by index; None without such passes.
    """
    generator = generator_for(definition, loaded, pruned.plan, encoded)
    record = make_record(definition, loaded, pruned.plan, command)
    record.runtime["compile_seconds"] = generator.engine.compile_seconds

    def examine(keys: list[Key]) -> list[SampleRecord]:
        samples = [
            measure_example(definition, generator, key, encoded[key.example]) for key in keys
        ]
        return [with_likelihood(sample, forced) for sample in samples]

    def summarized(
        samples: list[SampleRecord], new: Collection[Key], seconds: float
    ) -> dict[str, Any]:
        ranks = definition.runtime.ranks
        together = throughput(samples, new, seconds, ranks.count)
        if ranks.leads:
            _warn_of_differing_outputs(samples)
        summary = summarize(samples, definition.scoring["bleu_tokenizer"])
        if forced is not None:
            summary["teacher_forced"] = likelihood(one.teacher_forced for one in samples)
        return summary | {"throughput": together}

    return Job(record, examine, summarized)


def with_likelihood(
    sample: SampleRecord, forced: dict[int, dict[str, float]] | None
) -> SampleRecord:
    values = None if sample.repeat else (forced or {}).get(sample.index)
    return dataclasses.replace(sample, teacher_forced=values)


def _warn_of_differing_outputs(samples: list[SampleRecord]) -> None:
    differing = differing_outputs(samples)
    if differing:
        which = "1 output of a later pass differs"
        if differing > 1:
            which = f"{differing} outputs of later passes differ"
        warn(f"--repeats: {which} from the first pass's: this device is not deterministic")


def measure_example(
    definition: RunDefinition, generator: TextGenerator, key: Key, item: EncodedExample
) -> SampleRecord:
    """Decode one example, and score its text in the first pass."""
    skipped = SampleRecord(
        key.example,
        item.example.example_id,
        item.full_length,
        "" if key.repeat else item.example.reference,
        status="prompt_too_long",
        ranks=definition.runtime.ranks.count,
        threads=torch.get_num_threads(),
        repeat=key.repeat,
    )
    ids, decoded = item.prompt_ids, None
    if ids is None:
        return skipped
    config, flags = definition.checkpoint.config, definition.arguments.generation
    if positions_for(config, flags, len(ids)) <= generator.engine.capacity:
        decoded = within_memory(partial(_decode, definition, generator, item.example, ids))
    values = decoded or {"status": "out_of_memory"}
    if decoded and key.repeat:
        values |= {"prediction": None}
    elif decoded:
        values |= {"scores": _scores(definition, item.example, decoded["prediction"])}
    peak = definition.runtime.peak_memory_bytes()
    return dataclasses.replace(skipped, **values, peak_memory_bytes=peak)


def _decode(
    definition: RunDefinition, generator: TextGenerator, example: EvaluationExample, ids: list[int]
) -> dict[str, Any]:
    """Return the fields of the example's record that decoding determines."""
    made = generator.generate(ids, definition.arguments.generation.seed, example.example_id)
    full_step = _time_full_step(generator, ids, made)
    return {
        "status": "done",
        "prompt_tokens": made.prompt_tokens,
        "prediction": made.text,
        "output_ids": made.output_ids,
        "stop_reason": made.stop_reason,
        "prefill_seconds": made.prefill_seconds,
        "decode_seconds": made.decode_seconds,
        "steps": {name: dataclasses.asdict(step) for name, step in made.steps.items()},
        "full_step": full_step,
        "rounds": made.rounds,
    }


def _scores(
    definition: RunDefinition, example: EvaluationExample, prediction: str
) -> dict[str, float]:
    scores = text_scores(prediction, example.reference, definition.scoring["bleu_tokenizer"])
    if example.tests is not None:
        scores["pass@1"] = float(passes(f"{example.content}{prediction}\n{example.tests}"))
    return scores


def _time_full_step(
    generator: TextGenerator, ids: list[int], made: Generation
) -> dict[str, float] | None:
    """Time full steps as a yardstick for speculative rounds; return None for other outputs.

    Plain outputs consist of steps. After early exit, the last layers have cached nothing that a
    full step could attend to.
    """
    return dataclasses.asdict(generator.time_full_step(ids[-1])) if made.rounds else None
