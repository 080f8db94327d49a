"""The teacher-forced part of a run: references before decoding, or plain texts alone."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

from command_line.errors import reject
from command_line.messages import warn
from models.loading import LoadedModel
from processes.progress import progress
from pruned_model import PruneModel
from pruning.plan import PrunePlan
from runs.definition import RunDefinition
from runs.encoding import EncodedExample
from runs.likelihood import Sums, check_finite, likelihood, total
from runs.loop import Job
from runs.measuring import make_record
from runs.metrics import summarize
from runs.passages import ForcedText, plain_text, reference_text
from runs.plan_group import PlanGroup, Values
from runs.record import Key, SampleRecord
from runs.teacher_forcing import TeacherForcing


def measure_references(
    definition: RunDefinition,
    loaded: LoadedModel,
    pruned: PruneModel,
    encoded: list[EncodedExample],
    done: Collection[int],
    group: PlanGroup | None = None,
) -> dict[int, Values]:
    """Return the sums over the reference of every example that is not done, by its index.

    The processes share the passes, and each gets all values. Examples without a reference, without
    a prompt that fits, and without memory for their pass are left out. With a group, what an
    earlier run of the group has measured for this plan is not measured again.
    """
    group = group or PlanGroup([pruned.plan])
    plans = group.begin(pruned.plan)
    if len(done) == len(encoded):
        return {}
    texts = _references(definition, encoded)
    left = [index for index in texts if index not in done]
    known = group.known(pruned.plan, left)
    missing = {index: texts[index] for index in left if index not in known}
    if missing:
        forcing = TeacherForcing(definition.arguments, loaded, pruned)
        for plan, values in zip(plans, _measured(definition, forcing, plans, missing), strict=True):
            group.add(plan, values)
        known = group.known(pruned.plan, left)
    fitting = {index: values for index, values in known.items() if values}
    check_finite(loaded.name, fitting.values())
    if len(fitting) < len(left):
        lacking = len(left) - len(fitting)
        warn(f"--teacher_forced true: out of memory with {lacking} references, not measured")
    return fitting


class PlainTextJob:
    """Measures the plain texts of a run, and decodes nothing.

    Texts that follow one another are read together while their windows fill a batch.
    """

    def __init__(
        self,
        definition: RunDefinition,
        command: str,
        loaded: LoadedModel,
        pruned: PruneModel,
        encoded: list[EncodedExample],
    ) -> None:
        self._definition, self._encoded = definition, encoded
        self._texts = _plain_texts(definition, encoded)
        self._forcing = TeacherForcing(definition.arguments, loaded, pruned)
        self._record = make_record(definition, loaded, pruned, command)

    def job(self) -> Job[SampleRecord]:
        return Job(self._record, self._measure, self._summarize, self._groups)

    def _summarize(
        self, lines: list[SampleRecord], new: Collection[Key], seconds: float
    ) -> dict[str, Any]:
        return summarize(lines) | {
            "teacher_forced": likelihood(line.teacher_forced for line in lines)
            | self._definition.arguments.measure.windows()
        }

    def _groups(self, keys: Sequence[Key]) -> Iterator[list[Key]]:
        """Yield keys that follow one another, as far as their windows go into a batch."""
        group: list[Key] = []
        room = most = self._definition.arguments.measure.at_once
        for key in keys:
            if group and self._windows(key) > room:
                yield group
                group, room = [], most
            group.append(key)
            room -= self._windows(key)
        if group:
            yield group

    def _windows(self, key: Key) -> int:
        text = self._texts[key.example]
        return len(text.passages) if text else 0

    def _measure(self, keys: list[Key]) -> list[SampleRecord]:
        texts = [self._texts[key.example] for key in keys]
        found = iter(
            self._forcing.measure([one for text in texts if text for one in text.passages])
        )
        parts = [[next(found) for _ in text.passages] if text else [] for text in texts]
        triples = zip(keys, texts, parts, strict=True)
        return [self._line(key.example, text, sums) for key, text, sums in triples]

    def _line(self, index: int, text: ForcedText | None, parts: list[Sums | None]) -> SampleRecord:
        item, known = self._encoded[index], [part for part in parts if part]
        line = SampleRecord(
            index,
            item.example.example_id,
            item.full_length,
            item.example.reference,
            status="measured" if len(known) == len(parts) else "out_of_memory",
            category=item.example.category,
            ranks=self._definition.runtime.ranks.count,
            threads=torch.get_num_threads(),
            peak_memory_bytes=self._definition.runtime.peak_memory_bytes(),
        )
        if not text or len(known) < len(parts):
            return line
        return dataclasses.replace(line, teacher_forced=total(known).to_dict(text.text_bytes))


def _measured(
    definition: RunDefinition,
    forcing: TeacherForcing,
    plans: Sequence[PrunePlan],
    texts: dict[int, ForcedText],
) -> list[dict[int, Values | None]]:
    """Return the sums of these texts under each plan; the processes share the texts."""
    ranks = definition.runtime.ranks
    own = ranks.share(list(texts))
    with progress(ranks, len(texts)) as advance:

        def count(passages: int) -> None:
            ranks.check()
            advance(passages)

        found = forcing.measure_plans(plans, [texts[index].passages[0] for index in own], count)
    lines = [
        [
            sums and sums.to_dict(texts[index].text_bytes)
            for index, sums in zip(own, one, strict=True)
        ]
        for one in found
    ]
    shares = ranks.exchange(lines)
    return [
        dict(zip(texts, ranks.in_order([share[place] for share in shares]), strict=True))
        for place in range(len(plans))
    ]


def _references(definition: RunDefinition, encoded: list[EncodedExample]) -> dict[int, ForcedText]:
    """Return the references that can be predicted, by the index of their example."""
    checkpoint, texts = definition.checkpoint, {}
    for index, (item, ids) in enumerate(zip(encoded, definition.prompt_ids, strict=True)):
        prompt, reference = item.example.prompt, item.example.reference
        if item.prompt_ids and reference:
            text = reference_text(checkpoint, prompt, ids, reference, item.prompt_ids)
            if text:
                texts[index] = text
    if not texts:
        name = definition.arguments.data.dataset
        warn(f"--teacher_forced true: no prompt of --dataset {name} has a reference")
    cut = sum(text.is_cut for text in texts.values())
    if cut:
        exceed = "references exceed the model's positions and lose their end"
        warn(f"--teacher_forced true: {cut} {exceed}")
    return texts


def _plain_texts(
    definition: RunDefinition, encoded: list[EncodedExample]
) -> list[ForcedText | None]:
    """Return the windows of every text; None for a text without a token to predict."""
    measure, tokenizer = definition.arguments.measure, definition.checkpoint.tokenizer
    texts = [
        plain_text(measure, tokenizer, item.example.prompt, item.prompt_ids or [])
        for item in encoded
    ]
    if not any(texts):
        reject(
            "first_token",
            measure.windows()["first_token"],
            "every text is a single token, which it skips",
        )
    return texts
