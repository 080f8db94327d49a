"""One cell: plan, prompts and decoder in, samples and a log out."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from arguments.run import GenerationArguments
from command_line.script import FailedError, InterruptedRunError, UsageError, warn
from data import EvaluationExample
from models.loading import LoadedModel, load_model
from processes.progress import progress
from pruned_model import PruneModel, PrunePlan, is_saved
from runs.code_execution import passes
from runs.definition import Cell
from runs.fitting import made_to_fit, within_memory
from runs.metrics import summarize, text_scores, throughput
from runs.preparation import (
    decide_plan,
    exit_layer_facts,
    make_generator,
    model_facts,
    prune,
    save_as_asked,
)
from runs.prompt_encoding import fitted, longest_prompt
from runs.record import RunRecord, SampleRecord, current_commit
from runs.writer import RunWriter, claimed, find_run, resume
from self_speculation.generator_base import Generation
from self_speculation.llama_model_utils import position_limit
from self_speculation.text_generator import TextGenerator

_Made = TypeVar("_Made")


Prepare = Callable[[Cell, RunRecord | None], tuple[LoadedModel, PruneModel]]


@dataclass
class EncodedExample:
    """An example with its prompt as the model reads it; None where it exceeds the positions."""

    example: EvaluationExample
    full_length: int
    prompt_ids: list[int] | None


def run_cell(cell: Cell, command: str, prepare: Prepare | None = None) -> tuple[RunRecord, Path]:
    """Loads, prunes, decodes, measures and logs; returns the run and its file.

    A run that an earlier start broke off goes on where it stopped, and one that is complete is
    returned as it is. `prepare` yields the model where it is not to be loaded for this cell alone.
    Of several processes, each does its share of the examples, and what goes wrong in one is raised
    in all.
    """
    ranks = cell.runtime.ranks
    with ranks.together():
        check_alike(cell)
        output_dir = cell.arguments.log.output_dir
        with claimed(output_dir, cell.run_id, ranks) as left:
            if ranks.first(ranks.leads and _is_over(cell, left)):
                print(f"run {left.run_id} is complete; another --output_dir runs it again")
                found = ranks.first(ranks.leads and str(find_run(output_dir, cell.run_id)))
                return left, Path(found)
            loaded, pruned = (prepare or load_and_prune)(cell, left)
            writer = _measured(cell, loaded, pruned, left, command)
            return writer.record, writer.path


def generator_for(
    cell: Cell, loaded: LoadedModel, plan: PrunePlan, encoded: list[EncodedExample]
) -> TextGenerator:
    """A warm decoder with room for all prompts, or for the longest for which memory suffices.

    Raises `FailedError` where it suffices for none.
    """
    flags, words = cell.arguments.generation, cell.arguments.stop_words

    def make(longest: int, prompt: list[int]) -> TextGenerator:
        generator = make_generator(flags, loaded, plan, words, longest)
        made = generator.warm_up(prompt)  # allocates the cache
        _time_full_step(generator, prompt, made)
        return generator

    return fitted_to_memory(cell, encoded, flags, make)


def fitted_to_memory(
    cell: Cell,
    encoded: list[EncodedExample],
    flags: GenerationArguments,
    make: Callable[[int, list[int]], _Made],
) -> _Made:
    """What is made for the longest prompt for which memory suffices, given a prompt to warm up.

    Raises `FailedError` where it suffices for none.
    """
    prompts = [item.prompt_ids for item in encoded if item.prompt_ids]
    longest = {positions_for(cell, flags, ids): len(ids) for ids in sorted(prompts, key=len)}

    def make_for(positions: int) -> _Made:
        fitting = (ids for ids in prompts if positions_for(cell, flags, ids) <= positions)
        return make(longest[positions], next(fitting))

    made = made_to_fit(sorted(longest), make_for)
    if made is None:
        raise FailedError(f"--model {cell.arguments.model.model}: out of memory with any prompt")
    return made


def positions_for(cell: Cell, flags: GenerationArguments, prompt_ids: list[int]) -> int:
    """The tokens for which a cache must have room to decode the prompt."""
    return min(len(prompt_ids) + flags.max_steps, position_limit(cell.checkpoint.config))


def check_alike(cell: Cell) -> None:
    """Raises `FailedError` where processes are about to run different things."""
    first, *others = cell.runtime.ranks.exchange(cell.identity)
    for rank, other in enumerate(others, start=1):
        names = [name for name in first | other if first.get(name) != other.get(name)]
        if names:
            differ = f"processes 0 and {rank} differ in {', '.join(names)}"
            raise FailedError(f"torchrun: {differ}; all machines need the same files and devices")


def _is_over(cell: Cell, left: RunRecord | None) -> bool:
    """Whether an earlier start has done all that is asked for."""
    if left is None or left.status != "complete":
        return False
    folder = cell.arguments.prune.save_pruned
    plan = PrunePlan.from_dict(left.plan)
    return folder is None or is_saved(folder, plan, cell.checkpoint.fingerprint)


def _measured(
    cell: Cell, loaded: LoadedModel, pruned: PruneModel, left: RunRecord | None, command: str
) -> RunWriter:
    encoded = encode_examples(cell)
    generator = generator_for(cell, loaded, pruned.plan, encoded)
    if cell.runtime.ranks.leads:
        save_as_asked(cell.arguments.prune, loaded, pruned)
    record = make_record(cell, loaded, pruned.plan, command)
    record.runtime["compile_seconds"] = generator.engine.compile_seconds
    return measure(cell, generator, encoded, resume(left, record) if left else record)


def load_and_prune(cell: Cell, left: RunRecord | None = None) -> tuple[LoadedModel, PruneModel]:
    """The cell's model with its layers removed. A run that was broken off keeps its plan."""
    arguments = cell.arguments
    loaded = load_model(arguments.model, cell.runtime, cell.checkpoint)
    if left:
        plan = PrunePlan.from_dict(left.plan)
    else:
        ranks = cell.runtime.ranks
        plan = decide_plan(arguments.prune, loaded, cell.calibration_ids, ranks)
    pruned = prune(arguments.prune, arguments.generation, loaded, plan)
    print(pruned.report())
    return loaded, pruned


def encode_examples(cell: Cell) -> list[EncodedExample]:
    """Examples with their prompts' tokens; a prompt that exceeds the model's positions is marked.

    With `--truncate_prompt` it is cut to its tail instead, as is one that leaves less room than
    `--max_steps` asks for.
    """
    data, steps = cell.arguments.data, cell.arguments.generation.max_steps
    limit = position_limit(cell.checkpoint.config)
    longest = longest_prompt(data, steps, limit)
    pairs = zip(cell.evaluated.examples, cell.prompt_ids, strict=True)
    encoded = [EncodedExample(one, len(ids), fitted(data, ids, longest)) for one, ids in pairs]
    _warn_of_changing_factors(cell, encoded, limit)
    if all(item.prompt_ids is None for item in encoded):
        raise UsageError(
            f"--dataset {data.dataset}: every prompt exceeds the model's {limit} positions; "
            "--truncate_prompt true keeps their tails"
        )
    return encoded


def _warn_of_changing_factors(cell: Cell, encoded: list[EncodedExample], limit: int) -> None:
    """Says how many answers end where LongRoPE changes its factors, instead of later."""
    config, steps = cell.checkpoint.config, cell.arguments.generation.max_steps
    lengths = [len(item.prompt_ids) for item in encoded if item.prompt_ids]
    ends = [(position_limit(config, length), length + steps - 1) for length in lengths]
    earlier = [end for end, wanted in ends if end < min(wanted, limit)]
    if earlier:
        changes = f"at {earlier[0]} tokens, where the factors of LongRoPE change"
        warn(f"--max_steps {steps}: {len(earlier)} of {len(encoded)} answers end {changes}")


def make_record(cell: Cell, loaded: LoadedModel, plan: PrunePlan, command: str) -> RunRecord:
    """What the log says before the first token: all that defines the run, and where it is."""
    return RunRecord(
        identity=cell.identity,
        command=command,
        arguments=dataclasses.asdict(cell.arguments),
        model=model_facts(loaded, plan),
        data=cell.data_facts | {"scoring": cell.scoring},
        plan=plan.to_dict(),
        exit_layer=exit_layer_facts(cell.arguments.generation, plan),
        runtime=cell.runtime.facts(),
        commit=current_commit(),
    )


def measure(
    cell: Cell, generator: TextGenerator, encoded: list[EncodedExample], record: RunRecord
) -> RunWriter:
    """Decodes every example that the log lacks; an interruption leaves what was done."""
    ranks = cell.runtime.ranks
    cell.runtime.reset_peak_memory()
    writer = RunWriter(cell.arguments.log.output_dir, record, ranks)
    missing = [index for index in range(len(encoded)) if index not in writer.done]
    if writer.done:
        print(f"{writer.path.name} goes on: {len(writer.done)} of {len(encoded)} prompts are done")
    status, started = "failed", time.perf_counter()
    try:
        with progress(ranks, len(encoded), len(writer.done)) as bar:
            for index in ranks.share(missing):
                ranks.check()
                sample = measure_example(cell, generator, index, encoded[index])
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
        summary = summarize(samples, cell.scoring["bleu_tokenizer"])
        writer.finish(status, summary | {"throughput": together})
    return writer


def measure_example(
    cell: Cell, generator: TextGenerator, index: int, item: EncodedExample
) -> SampleRecord:
    """Decodes one example and scores its text."""
    example, flags = item.example, cell.arguments.generation
    sample = SampleRecord(
        index,
        example.example_id,
        item.full_length,
        example.reference,
        ranks=cell.runtime.ranks.count,
        threads=torch.get_num_threads(),
    )
    if item.prompt_ids is None:
        sample.status = "prompt_too_long"
        return sample
    fits = positions_for(cell, flags, item.prompt_ids) <= generator.engine.capacity
    decode = partial(_decode, cell, generator, item, sample)
    fits = fits and within_memory(decode)
    sample.status = "done" if fits else "out_of_memory"
    sample.peak_memory_bytes = cell.runtime.peak_memory_bytes()
    return sample


def _decode(
    cell: Cell, generator: TextGenerator, item: EncodedExample, sample: SampleRecord
) -> bool:
    """Fills in what decoding the example yields."""
    example, seed = item.example, cell.arguments.generation.seed
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
    tokenize = cell.scoring["bleu_tokenizer"]
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
