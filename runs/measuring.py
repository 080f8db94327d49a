"""Decodes the examples of a run, times and scores them."""

import dataclasses
from collections.abc import Collection
from typing import Any

import torch

from command_line.messages import warn
from files.commit import current_commit
from models.loading import LoadedModel
from pruned_model import PruneModel
from runs.conversations import TOO_LONG, Conversation
from runs.decoders import Decoder, make_decoder
from runs.definition import RunDefinition
from runs.encoding import EncodedExample
from runs.likelihood import likelihood
from runs.loop import Job
from runs.metrics import differing_outputs, summarize
from runs.preparation import exit_layer_facts, model_facts
from runs.record import Key, RunRecord, SampleRecord
from runs.scoring import scores_of
from runs.speed_metrics import throughput

Forced = dict[int, dict[str, float]]  # what teacher-forced passes have measured, by index


def make_record(
    definition: RunDefinition, loaded: LoadedModel, pruned: PruneModel, command: str
) -> RunRecord:
    """Return what a log says before the first token: what defines the run, and where it runs."""
    plan, draft_plan = pruned.plan, pruned.draft_plan
    return RunRecord(
        identity=definition.identity,
        command=command,
        arguments=dataclasses.asdict(definition.arguments),
        model=model_facts(loaded, pruned),
        data=definition.data_facts | {"scoring": definition.scoring},
        plan=plan.to_dict(),
        exit_layer=exit_layer_facts(definition.arguments.generation, plan),
        runtime=definition.runtime.facts(),
        commit=current_commit(),
        draft_plan=draft_plan.to_dict() if draft_plan else None,
    )


def measurement(
    definition: RunDefinition,
    command: str,
    loaded: LoadedModel,
    pruned: PruneModel,
    encoded: list[EncodedExample],
    forced: Forced | None = None,
) -> Job[SampleRecord]:
    """Return the job that decodes, times and scores the examples with a warm decoder.

    `forced` is None without teacher-forced passes.
    """
    decoder = make_decoder(definition, loaded, pruned, encoded)
    record = make_record(definition, loaded, pruned, command)
    record.runtime["compile_seconds"] = decoder.compile_seconds

    def examine(keys: list[Key]) -> list[SampleRecord]:
        samples = measure_examples(definition, decoder, keys, encoded)
        return [_with_likelihood(sample, forced) for sample in samples]

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

    return Job(record, examine, summarized, decoder.groups)


def measure_examples(
    definition: RunDefinition, decoder: Decoder, keys: list[Key], encoded: list[EncodedExample]
) -> list[SampleRecord]:
    """Decode examples, with all turns of their conversations, and score their texts.

    Turns of several conversations are decoded together.
    """
    talks = {
        key: Conversation(definition, encoded[key.example])
        for key in keys
        if encoded[key.example].prompt_ids is not None
    }
    before = decoder.joint_seconds
    while asking := [talk for talk in talks.values() if talk.request]:
        answers = decoder.answers([talk.request for talk in asking if talk.request])
        for talk, answer in zip(asking, answers, strict=True):
            talk.receive(answer)
    batch = None
    if decoder.batch_size is not None:
        seconds = decoder.joint_seconds - before
        batch = {"first": keys[0].example, "size": decoder.batch_size, "seconds": seconds}
    return [_recorded(definition, key, encoded[key.example], talks.get(key), batch) for key in keys]


def _recorded(
    definition: RunDefinition,
    key: Key,
    item: EncodedExample,
    talk: Conversation | None,
    batch: dict[str, float] | None,
) -> SampleRecord:
    """Return the line of an example; `talk` is None for a prompt that is too long.

    Later passes leave out what the first pass has said of the example.
    """
    sample = SampleRecord(
        key.example,
        item.example.example_id,
        item.full_length,
        "" if key.repeat else item.example.reference,
        status=TOO_LONG,
        ranks=definition.runtime.ranks.count,
        threads=torch.get_num_threads(),
        repeat=key.repeat,
        category=item.example.category,
    )
    if talk is None:
        return sample
    values: dict[str, Any] = {"status": "out_of_memory"}
    if talk.is_answered:
        values = talk.values(is_timed=batch is None) | {"status": "done", "batch": batch}
        if key.repeat:
            values["prediction"] = None
        else:
            values["scores"] = scores_of(definition, item.example, values["prediction"])
    peak = definition.runtime.peak_memory_bytes()
    return dataclasses.replace(sample, **values, peak_memory_bytes=peak)


def _with_likelihood(sample: SampleRecord, forced: Forced | None) -> SampleRecord:
    values = None if sample.repeat else (forced or {}).get(sample.index)
    return dataclasses.replace(sample, teacher_forced=values)


def _warn_of_differing_outputs(samples: list[SampleRecord]) -> None:
    differing = differing_outputs(samples)
    if differing:
        which = "1 output of a later pass differs"
        if differing > 1:
            which = f"{differing} outputs of later passes differ"
        warn(f"--repeats: {which} from the first pass's: this device is not deterministic")
