"""One cell: plan, prompts and decoder in, samples and a log out."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from arguments import GenerationArguments
from cell import Cell
from command_line import UsageError, reject
from data import EvaluationExample
from metrics import summarize, text_scores
from prompt_encoding import encode
from pruned_model import PruneModel, PrunePlan, count_parameters, is_saved, make_plan, weight_bytes
from run_log import RunRecord, SampleRecord, current_commit
from run_writer import RunWriter, claimed, find_run, resume
from runtime import LoadedModel, load_model
from self_speculation.generator_base import Generation, GenerationConfig
from self_speculation.llama_model_utils import position_limit
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator

WARM_UP_STEPS = 8


def run_cell(cell: Cell, command: str) -> tuple[RunRecord, Path]:
    """Loads, prunes, decodes, measures and logs; returns the run and its file.

    A run that an earlier start broke off goes on where it stopped, and one that is complete is
    returned as it is.
    """
    output_dir, folder = cell.arguments.log.output_dir, cell.arguments.prune.save_pruned
    with claimed(output_dir, cell.run_id) as left:
        if left and left.status == "complete" and (folder is None or _has_saved(cell, left)):
            print(f"run {left.run_id} is complete; another --output_dir runs it again")
            return left, find_run(output_dir, cell.run_id)
        loaded = load_model(cell.arguments.model, cell.runtime, cell.checkpoint)
        pruned = prune(cell, loaded, left)
        encoded = encode_examples(cell, loaded)
        generator = make_generator(cell, loaded, pruned.plan, encoded)
        save_pruned(cell, loaded, pruned)
        record = make_record(cell, loaded, pruned.plan, command)
        writer = measure(cell, generator, encoded, resume(left, record) if left else record)
        return writer.record, writer.path


@dataclass
class EncodedExample:
    """An example with its prompt as the model reads it; None where it exceeds the positions."""

    example: EvaluationExample
    full_length: int
    prompt_ids: list[int] | None


def prune(cell: Cell, loaded: LoadedModel, left: RunRecord | None = None) -> PruneModel:
    """Decides the plan, checks that the exit layer fits it, and removes the layers.

    A run that was broken off keeps its plan. Long prompts calibrate with their tail.
    """
    arguments = cell.arguments

    def calibration() -> list[torch.Tensor]:
        limit = position_limit(loaded.model.config)
        prompts = (example.prompt for example in cell.calibration.examples)
        return [torch.tensor([encode(arguments.data, loaded, p)[-limit:]]) for p in prompts]

    if left:
        plan = PrunePlan.from_dict(left.plan)
    else:
        plan = make_plan(arguments.prune, loaded.model, calibration)
    kept_exit_layer(arguments.generation, plan)  # refuses one that leaves no layers on a side
    if arguments.prune.save_pruned:
        is_saved(arguments.prune.save_pruned, plan, loaded.fingerprint)  # refuses another model's
    pruned = PruneModel(loaded.model, plan)
    pruned.prune()
    print(pruned.report())
    return pruned


def save_pruned(cell: Cell, loaded: LoadedModel, pruned: PruneModel) -> None:
    """Obeys `--save_pruned`, unless an earlier start has done so."""
    folder = cell.arguments.prune.save_pruned
    if folder and not is_saved(folder, pruned.plan, loaded.fingerprint):
        pruned.save(loaded.tokenizer, folder, loaded.fingerprint)


def _has_saved(cell: Cell, left: RunRecord) -> bool:
    plan = PrunePlan.from_dict(left.plan)
    return is_saved(cell.arguments.prune.save_pruned, plan, cell.checkpoint.fingerprint)


def kept_exit_layer(arguments: GenerationArguments, plan: PrunePlan) -> int | None:
    """Kept layers that draft: None without `--exit_layer`, which counts original ones."""
    return None if arguments.exit_layer == -1 else plan.kept_exit_layer(arguments.exit_layer)


def encode_examples(cell: Cell, loaded: LoadedModel) -> list[EncodedExample]:
    """Tokenizes prompts; one that exceeds the model's positions is marked.

    With `--truncate_prompt` it is cut to its tail instead, as is one that leaves less room than
    `--max_steps` asks for.
    """
    data, steps = cell.arguments.data, cell.arguments.generation.max_steps
    limit = position_limit(loaded.model.config)
    if data.truncate_prompt and steps > limit:
        reject("max_steps", steps, f"exceeds the model's {limit} positions; no prompt is left")
    longest = limit - steps + 1 if data.truncate_prompt else limit
    encoded = []
    for example in cell.evaluated.examples:
        ids = encode(data, loaded, example.prompt)
        fits = len(ids) <= longest or data.truncate_prompt
        encoded.append(EncodedExample(example, len(ids), ids[-longest:] if fits else None))
    if all(item.prompt_ids is None for item in encoded):
        raise UsageError(
            f"--dataset {data.dataset}: every prompt exceeds the model's {limit} positions; "
            "--truncate_prompt true keeps their tails"
        )
    return encoded


def make_generator(
    cell: Cell, loaded: LoadedModel, plan: PrunePlan, encoded: list[EncodedExample]
) -> TextGenerator:
    """The decoder of this cell, its cache sized for the longest prompt and output."""
    flags, vocabulary = cell.arguments.generation, loaded.model.config.vocab_size
    if max(flags.stop_token_ids, default=0) >= vocabulary:
        reject("stop_token_ids", max(flags.stop_token_ids), f"must be below {vocabulary}")
    config = GenerationConfig(
        max_steps=flags.max_steps,
        kept_exit_layer=kept_exit_layer(flags, plan),
        num_speculations=flags.num_speculations,
        sampling=SamplingRule(
            flags.sample,
            flags.temperature,
            flags.top_k,
            flags.top_p,
            flags.no_repeat_ngram_size,
        ),
        stop_words=cell.arguments.stop_words,
        stop_token_ids=tuple(flags.stop_token_ids),
    )
    longest = max(len(item.prompt_ids) for item in encoded if item.prompt_ids)
    capacity = min(longest + flags.max_steps, position_limit(loaded.model.config))
    return TextGenerator(
        loaded.model, loaded.tokenizer, flags.generation_strategy, config, capacity
    )


def make_record(cell: Cell, loaded: LoadedModel, plan: PrunePlan, command: str) -> RunRecord:
    """What the log says before the first token: all that defines the run, and where it is."""
    exit_layer = kept_exit_layer(cell.arguments.generation, plan)
    return RunRecord(
        identity=cell.identity,
        command=command,
        arguments=dataclasses.asdict(cell.arguments),
        model={
            "name": loaded.name,
            "fingerprint": loaded.fingerprint,
            "parameters": count_parameters(loaded.model),
            "weight_bytes": weight_bytes(loaded.model),
            "kept_layers": len(plan.kept_layers),
            "original_layers": plan.original_layers,
            "plan_of_origin": loaded.plan_of_origin,
        },
        data=cell.data_facts,
        plan=plan.to_dict(),
        exit_layer={
            "original": None if exit_layer is None else cell.arguments.generation.exit_layer,
            "kept": exit_layer,
        },
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
