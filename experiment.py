"""One cell: plan, prompts and decoder in, samples and a log out."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from arguments import GenerationArguments
from cell import Cell
from code_execution import passes
from command_line import UsageError
from data import EvaluationExample
from metrics import summarize, text_scores
from model_loading import LoadedModel, load_model
from prepared_model import (
    decide_plan,
    exit_layer_facts,
    make_generator,
    model_facts,
    prune,
    save_as_asked,
)
from prompt_encoding import encode, fitted, longest_prompt
from pruned_model import PruneModel, PrunePlan, is_saved
from run_log import RunRecord, SampleRecord, current_commit
from run_writer import RunWriter, claimed, find_run, resume
from self_speculation.generator_base import Generation
from self_speculation.llama_model_utils import position_limit
from self_speculation.text_generator import TextGenerator

WARM_UP_STEPS = 8


Prepare = Callable[[Cell, RunRecord | None], tuple[LoadedModel, PruneModel]]


def run_cell(cell: Cell, command: str, prepare: Prepare | None = None) -> tuple[RunRecord, Path]:
    """Loads, prunes, decodes, measures and logs; returns the run and its file.

    A run that an earlier start broke off goes on where it stopped, and one that is complete is
    returned as it is. `prepare` yields the model where it is not to be loaded for this cell alone.
    """
    output_dir, folder = cell.arguments.log.output_dir, cell.arguments.prune.save_pruned
    with claimed(output_dir, cell.run_id) as left:
        if left and left.status == "complete" and (folder is None or _has_saved(cell, left)):
            print(f"run {left.run_id} is complete; another --output_dir runs it again")
            return left, find_run(output_dir, cell.run_id)
        loaded, pruned = (prepare or load_and_prune)(cell, left)
        encoded = encode_examples(cell, loaded)
        longest = max(len(item.prompt_ids) for item in encoded if item.prompt_ids)
        flags, words = cell.arguments.generation, cell.arguments.stop_words
        generator = make_generator(flags, loaded, pruned.plan, words, longest)
        save_as_asked(cell.arguments.prune, loaded, pruned)
        record = make_record(cell, loaded, pruned.plan, command)
        record.runtime["compile_seconds"] = generator.engine.compile_seconds
        writer = measure(cell, generator, encoded, resume(left, record) if left else record)
        return writer.record, writer.path


@dataclass
class EncodedExample:
    """An example with its prompt as the model reads it; None where it exceeds the positions."""

    example: EvaluationExample
    full_length: int
    prompt_ids: list[int] | None


def load_and_prune(cell: Cell, left: RunRecord | None = None) -> tuple[LoadedModel, PruneModel]:
    """The cell's model with its layers removed. A run that was broken off keeps its plan."""
    arguments = cell.arguments
    loaded = load_model(arguments.model, cell.runtime, cell.checkpoint)
    if left:
        plan = PrunePlan.from_dict(left.plan)
    else:
        plan = decide_plan(arguments.prune, arguments.data, loaded, cell.calibration)
    pruned = prune(arguments.prune, arguments.generation, loaded, plan)
    print(pruned.report())
    return loaded, pruned


def _has_saved(cell: Cell, left: RunRecord) -> bool:
    plan = PrunePlan.from_dict(left.plan)
    return is_saved(cell.arguments.prune.save_pruned, plan, cell.checkpoint.fingerprint)


def encode_examples(cell: Cell, loaded: LoadedModel) -> list[EncodedExample]:
    """Tokenizes prompts; one that exceeds the model's positions is marked.

    With `--truncate_prompt` it is cut to its tail instead, as is one that leaves less room than
    `--max_steps` asks for.
    """
    data, steps = cell.arguments.data, cell.arguments.generation.max_steps
    limit = position_limit(loaded.model.config)
    longest = longest_prompt(data, steps, limit)
    encoded = []
    for example in cell.evaluated.examples:
        ids = encode(data, loaded, example.prompt)
        encoded.append(EncodedExample(example, len(ids), fitted(data, ids, longest)))
    if all(item.prompt_ids is None for item in encoded):
        raise UsageError(
            f"--dataset {data.dataset}: every prompt exceeds the model's {limit} positions; "
            "--truncate_prompt true keeps their tails"
        )
    return encoded


def make_record(cell: Cell, loaded: LoadedModel, plan: PrunePlan, command: str) -> RunRecord:
    """What the log says before the first token: all that defines the run, and where it is."""
    return RunRecord(
        identity=cell.identity,
        command=command,
        arguments=dataclasses.asdict(cell.arguments),
        model=model_facts(loaded, plan),
        data=cell.data_facts,
        plan=plan.to_dict(),
        exit_layer=exit_layer_facts(cell.arguments.generation, plan),
        runtime=cell.runtime.facts(),
        commit=current_commit(),
    )


def measure(
    cell: Cell, generator: TextGenerator, encoded: list[EncodedExample], record: RunRecord
) -> RunWriter:
    """Warms up, decodes every example that the log lacks; an interruption leaves what was done."""
    cell.runtime.reset_peak_memory()
    warm_up = next(item.prompt_ids for item in encoded if item.prompt_ids)
    made = generator.generate(warm_up, max_steps=WARM_UP_STEPS)
    _time_full_step(generator, warm_up, made)

    writer = RunWriter(cell.arguments.log.output_dir, record)
    done = {sample.index for sample in writer.samples}
    if done:
        print(f"{writer.path.name} goes on: {len(done)} of {len(encoded)} prompts are done")
    status = "failed"
    try:
        for index, item in enumerate(tqdm(encoded, unit="prompt")):
            if index not in done:
                sample = measure_example(cell.arguments.generation, generator, index, item)
                sample.peak_memory_bytes = cell.runtime.peak_memory_bytes()
                writer.add(sample)
        status = "complete"
    except KeyboardInterrupt:
        status = "interrupted"
    finally:
        writer.finish(status, summarize(writer.samples))
    return writer


def measure_example(
    arguments: GenerationArguments, generator: TextGenerator, index: int, item: EncodedExample
) -> SampleRecord:
    """Decodes one example and scores its text."""
    example = item.example
    sample = SampleRecord(
        index,
        example.example_id,
        item.full_length,
        example.reference,
        threads=torch.get_num_threads(),
    )
    if item.prompt_ids is None:
        sample.status = "prompt_too_long"
        return sample
    made = generator.generate(item.prompt_ids, arguments.seed, example.example_id)
    sample.full_step = _time_full_step(generator, item.prompt_ids, made)
    sample.prompt_tokens = made.prompt_tokens
    sample.prediction = made.text
    sample.output_ids = made.output_ids
    sample.stop_reason = made.stop_reason
    sample.prefill_seconds = made.prefill_seconds
    sample.decode_seconds = made.decode_seconds
    sample.steps = {name: dataclasses.asdict(step) for name, step in made.steps.items()}
    sample.rounds = made.rounds
    sample.scores = text_scores(made.text, example.reference)
    if example.tests is not None:
        program = f"{example.content}{made.text}\n{example.tests}"
        sample.scores["pass@1"] = float(passes(program))
    return sample


def _time_full_step(
    generator: TextGenerator, prompt_ids: list[int], made: Generation
) -> dict[str, float] | None:
    """A yardstick for speculative rounds; None for other outputs, which are made of steps.

    After early exit, the last layers hold nothing that a full step could attend to.
    """
    if not made.rounds:
        return None
    return dataclasses.asdict(generator.time_full_step(prompt_ids[-1]))
