"""Decodes the examples of a run, times and scores them."""

import dataclasses
import time
from functools import partial
from typing import TypeVar

import torch

from command_line.errors import InterruptedRunError
from files.commit import current_commit
from models.loading import LoadedModel
from processes.progress import progress
from pruned_model import PrunePlan
from runs.code_execution import passes
from runs.definition import RunDefinition
from runs.encoding import EncodedExample
from runs.fitting import fitted_to_memory, positions_for, within_memory
from runs.metrics import summarize, text_scores, throughput
from runs.preparation import (
    exit_layer_facts,
    make_generator,
    model_facts,
)
from runs.record import RunRecord, SampleRecord
from runs.writer import RunWriter
from self_speculation.generator_base import Generation
from self_speculation.text_generator import TextGenerator

_Made = TypeVar("_Made")


def generator_for(
    definition: RunDefinition, loaded: LoadedModel, plan: PrunePlan, encoded: list[EncodedExample]
) -> TextGenerator:
    """A warm decoder with room for all prompts, or for the longest for which memory suffices.

    Raises `FailedError` where it suffices for none.
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
    """What the log says before the first token: all that defines the run, and where it is."""
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


def measure(
    definition: RunDefinition,
    generator: TextGenerator,
    encoded: list[EncodedExample],
    record: RunRecord,
) -> RunWriter:
    """Decodes every example that the log lacks; an interruption leaves what was done."""
    ranks = definition.runtime.ranks
    definition.runtime.reset_peak_memory()
    writer = RunWriter(definition.arguments.log.output_dir, record, ranks)
    missing = [index for index in range(len(encoded)) if index not in writer.done]
    if writer.done:
        print(f"{writer.path.name} goes on: {len(writer.done)} of {len(encoded)} prompts are done")
    status, started = "failed", time.perf_counter()
    try:
        with progress(ranks, len(encoded), len(writer.done)) as bar:
            for index in ranks.share(missing):
                ranks.check()
                sample = measure_example(definition, generator, index, encoded[index])
                writer.add(sample)
                bar.advance()
            writer.merge(bar.refresh)
        status = "complete"
    except (KeyboardInterrupt, InterruptedRunError):
        status = "interrupted"
        if ranks.count > 1:
            raise
    finally:
        seconds = time.perf_counter() - started
        samples = writer.samples if status == "complete" else writer.finished()
        together = throughput(samples, missing, seconds, ranks.count)
        summary = summarize(samples, definition.scoring["bleu_tokenizer"])
        writer.finish(status, summary | {"throughput": together})
    return writer


def measure_example(
    definition: RunDefinition, generator: TextGenerator, index: int, item: EncodedExample
) -> SampleRecord:
    """Decodes one example and scores its text."""
    example, flags = item.example, definition.arguments.generation
    sample = SampleRecord(
        index,
        example.example_id,
        item.full_length,
        example.reference,
        ranks=definition.runtime.ranks.count,
        threads=torch.get_num_threads(),
    )
    if item.prompt_ids is None:
        sample.status = "prompt_too_long"
        return sample
    fits = positions_for(definition, flags, item.prompt_ids) <= generator.engine.capacity
    decode = partial(_decode, definition, generator, item, sample)
    fits = fits and within_memory(decode)
    sample.status = "done" if fits else "out_of_memory"
    sample.peak_memory_bytes = definition.runtime.peak_memory_bytes()
    return sample


def _decode(
    definition: RunDefinition, generator: TextGenerator, item: EncodedExample, sample: SampleRecord
) -> bool:
    """Fills in what decoding the example yields."""
    example, seed = item.example, definition.arguments.generation.seed
    made = generator.generate(item.prompt_ids, seed, example.example_id)
    sample.full_step = _time_full_step(generator, item.prompt_ids, made)
    sample.prompt_tokens = made.prompt_tokens
    sample.prediction = made.text
    sample.output_ids = made.output_ids
    sample.stop_reason = made.stop_reason
    sample.prefill_seconds = made.prefill_seconds
    sample.decode_seconds = made.decode_seconds
    sample.steps = {name: dataclasses.asdict(step) for name, step in made.steps.items()}
    sample.rounds = made.rounds
    tokenize = definition.scoring["bleu_tokenizer"]
    sample.scores = text_scores(made.text, example.reference, tokenize)
    if example.tests is not None:
        program = f"{example.content}{made.text}\n{example.tests}"
        sample.scores["pass@1"] = float(passes(program))
    return True


def _time_full_step(
    generator: TextGenerator, prompt_ids: list[int], made: Generation
) -> dict[str, float] | None:
    """A yardstick for speculative rounds; None for other outputs, which are made of steps.

    After early exit, the last layers hold nothing that a full step could attend to.
    """
    if not made.rounds:
        return None
    return dataclasses.asdict(generator.time_full_step(prompt_ids[-1]))
