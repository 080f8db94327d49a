"""One cell of a study: model, plan, prompts and decoder in, samples and a log out."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from arguments import (
    DataArguments,
    GenerationArguments,
    LogArguments,
    ModelArguments,
    PruneArguments,
)
from command_line import UsageError, reject
from data import EvaluationExample, Selection
from dataset_table import DATASETS
from metrics import summarize, text_scores
from pruned_model import PruneModel, PrunePlan, count_parameters, make_plan, weight_bytes
from run_log import RunRecord, RunWriter, SampleRecord, content_hash, current_commit
from runtime import Checkpoint, LoadedModel, Runtime
from self_speculation.generator_base import ENGINE_VERSION, Generation, GenerationConfig
from self_speculation.llama_model_utils import position_limit
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator

WARM_UP_STEPS = 8


@dataclass
class CellArguments:
    """All flags of one cell."""

    model: ModelArguments
    data: DataArguments
    prune: PruneArguments
    generation: GenerationArguments
    log: LogArguments

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Those of `--stop_words`, or else what ends an answer in the data set."""
        chosen = self.generation.chosen_stop_words()
        return DATASETS[self.data.dataset].stop_words if chosen is None else chosen


@dataclass(frozen=True)
class Provenance:
    """What a log says of where its numbers come from."""

    runtime: Runtime
    loaded: LoadedModel
    evaluated: Selection
    calibration: Selection | None
    command: str


@dataclass
class EncodedExample:
    """An example with its prompt as the model reads it; None where it exceeds the positions."""

    example: EvaluationExample
    full_length: int
    prompt_ids: list[int] | None


def prune(arguments: CellArguments, loaded: LoadedModel, selection: Selection | None) -> PruneModel:
    """Decides the plan, checks that the exit layer fits it, and removes the layers.

    `selection` holds the examples to calibrate on, where the method does so. Long prompts keep
    their tail.
    """

    def calibration() -> list[torch.Tensor]:
        limit = position_limit(loaded.model.config)
        return [
            torch.tensor([_encode(arguments.data, loaded, e.prompt)[-limit:]])
            for e in selection.examples
        ]

    plan = make_plan(arguments.prune, loaded.model, calibration)
    kept_exit_layer(arguments.generation, plan)  # refuses one that leaves no layers on a side
    pruned = PruneModel(loaded.model, plan)
    pruned.prune()
    print(pruned.report())
    return pruned


def kept_exit_layer(arguments: GenerationArguments, plan: PrunePlan) -> int | None:
    """Kept layers that draft: None without `--exit_layer`, which counts original ones."""
    return None if arguments.exit_layer == -1 else plan.kept_exit_layer(arguments.exit_layer)


def encode_examples(
    arguments: CellArguments, selection: Selection, loaded: LoadedModel
) -> list[EncodedExample]:
    """Tokenizes prompts; one that exceeds the model's positions is marked.

    With `--truncate_prompt` it is cut to its tail instead, as is one that leaves less room than
    `--max_steps` asks for.
    """
    data, steps = arguments.data, arguments.generation.max_steps
    limit = position_limit(loaded.model.config)
    if data.truncate_prompt and steps > limit:
        reject("max_steps", steps, f"exceeds the model's {limit} positions; no prompt is left")
    longest = limit - steps + 1 if data.truncate_prompt else limit
    encoded = []
    for example in selection.examples:
        ids = _encode(data, loaded, example.prompt)
        fits = len(ids) <= longest or data.truncate_prompt
        encoded.append(EncodedExample(example, len(ids), ids[-longest:] if fits else None))
    if all(item.prompt_ids is None for item in encoded):
        raise UsageError(
            f"--dataset {data.dataset}: every prompt exceeds the model's {limit} positions; "
            "--truncate_prompt true keeps their tails"
        )
    return encoded


def make_generator(
    arguments: CellArguments, loaded: LoadedModel, plan: PrunePlan, encoded: list[EncodedExample]
) -> TextGenerator:
    """The decoder of this cell, its cache sized for the longest prompt and output."""
    flags, vocabulary = arguments.generation, loaded.model.config.vocab_size
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
        stop_words=arguments.stop_words,
        stop_token_ids=tuple(flags.stop_token_ids),
    )
    longest = max(len(item.prompt_ids) for item in encoded if item.prompt_ids)
    capacity = min(longest + flags.max_steps, position_limit(loaded.model.config))
    return TextGenerator(
        loaded.model, loaded.tokenizer, flags.generation_strategy, config, capacity
    )


def make_record(arguments: CellArguments, provenance: Provenance, plan: PrunePlan) -> RunRecord:
    """What the log says before the first token: all that defines the run, and where it is."""
    loaded, facts = provenance.loaded, provenance.runtime.facts()
    data = {
        "evaluation": _selection_facts(provenance.evaluated),
        "calibration": _selection_facts(provenance.calibration),
        "stop_words": arguments.stop_words,
    }
    exit_layer = kept_exit_layer(arguments.generation, plan)
    identity = {
        "model_fingerprint": loaded.fingerprint,
        "dataset": arguments.data.dataset,
        "data_fingerprint": data["evaluation"]["fingerprint"],
        "apply_chat_template": arguments.data.apply_chat_template,
        "truncate_prompt": arguments.data.truncate_prompt,
        "plan": {"method": plan.method, "kept_layers": plan.kept_layers},
        "generation": decoding_identity(arguments),
        "dtype": facts["dtype"],
        "device": facts["device"],
        "attention": loaded.model.config._attn_implementation,
        "compile": False,
        "engine_version": ENGINE_VERSION,
    }
    return RunRecord(
        identity=identity,
        command=provenance.command,
        arguments=dataclasses.asdict(arguments),
        model={
            "name": loaded.name,
            "fingerprint": loaded.fingerprint,
            "parameters": count_parameters(loaded.model),
            "weight_bytes": weight_bytes(loaded.model),
            "kept_layers": len(plan.kept_layers),
            "original_layers": plan.original_layers,
            "plan_of_origin": loaded.plan_of_origin,
        },
        data=data,
        plan=plan.to_dict(),
        exit_layer={
            "original": None if exit_layer is None else arguments.generation.exit_layer,
            "kept": exit_layer,
        },
        runtime=facts,
        commit=current_commit(),
    )


def decoding_identity(arguments: CellArguments) -> dict[str, Any]:
    """The flags of decoding, those without effect on it set to None."""
    flags = arguments.generation
    idle = [] if flags.sample else ["temperature", "top_k", "top_p", "seed"]
    if flags.generation_strategy == "autoregressive":
        idle.append("num_speculations")
    words = {"stop_words": arguments.stop_words}
    return dataclasses.asdict(flags) | dict.fromkeys(idle) | words


def _selection_facts(selection: Selection | None) -> dict[str, Any] | None:
    """Where examples come from, and a fingerprint of their texts."""
    if selection is None:
        return None
    texts = ((e.example_id, e.prompt, e.reference) for e in selection.examples)
    return selection.facts() | {"fingerprint": content_hash(*itertools.chain(*texts))}


def measure(
    arguments: CellArguments,
    runtime: Runtime,
    generator: TextGenerator,
    encoded: list[EncodedExample],
    record: RunRecord,
) -> RunWriter:
    """Warms up, decodes every example and logs it; an interruption leaves what was done."""
    runtime.reset_peak_memory()
    warm_up = next(item.prompt_ids for item in encoded if item.prompt_ids)
    made = generator.generate(warm_up, max_steps=WARM_UP_STEPS)
    _time_full_step(generator, warm_up, made)

    writer = RunWriter(arguments.log.output_dir, record)
    samples: list[SampleRecord] = []
    status = "failed"
    try:
        for index, item in enumerate(tqdm(encoded, unit="prompt")):
            samples.append(measure_example(arguments.generation, generator, index, item))
            writer.add(samples[-1])
        status = "complete"
    except KeyboardInterrupt:
        status = "interrupted"
    finally:
        writer.finish(
            status, summarize(samples) | {"peak_memory_bytes": runtime.peak_memory_bytes()}
        )
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


def check_chat_template(arguments: DataArguments, checkpoint: Checkpoint) -> None:
    """Refuses `--apply_chat_template` where the tokenizer's template does not work."""
    if arguments.apply_chat_template:
        _encode(arguments, checkpoint, "Hello")


def _encode(arguments: DataArguments, named: Checkpoint | LoadedModel, prompt: str) -> list[int]:
    """The prompt's tokens; with `--apply_chat_template`, of a chat in which a user says it."""
    if arguments.apply_chat_template:
        ids = _chat_ids(named, prompt)
    else:
        ids = named.tokenizer(prompt)["input_ids"]
    if not ids:
        raise UsageError(f"--model {named.name}: its tokenizer makes no token of {prompt[:40]!r}")
    return ids


def _chat_ids(named: Checkpoint | LoadedModel, prompt: str) -> list[int]:
    if named.tokenizer.chat_template is None:
        reject("apply_chat_template", "true", f"the tokenizer of {named.name} has no template")
    turns = [{"role": "user", "content": prompt}]
    try:
        chat = named.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=True
        )
    except Exception as error:
        # A template is a program that came with the checkpoint, and fails in its own ways.
        reason = f"{type(error).__name__}: {error}"
        reject("apply_chat_template", "true", f"the template of {named.name} fails ({reason})")
    return chat["input_ids"]
