"""Batches of documents, in an order that follows from a seed.

Shapes: B sequences of a batch, T tokens of its longest.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prompts.examples import drawn_order
from training.documents import Document

UNLEARNED = -100  # the label that torch's losses leave out
_WINDOW = 8192  # documents that are sorted by length together

Sequences = list[tuple[int, ...]]  # for each sequence of a batch, the indices of its documents


@dataclass
class BatchPlan:
    """The documents of every step of every epoch; they follow from the seed alone.

    A batch holds at most `batch_tokens` tokens, padding included.
    """

    lengths: list[int]
    batch_tokens: int
    max_length: int
    batching: str
    seed: int
    _made: tuple[int, list[Sequences]] = field(default=(-1, []), init=False)

    def epoch(self, number: int) -> list[Sequences]:
        """Return the batches of one pass over the data."""
        if self._made[0] != number:
            draws = random.Random(f"{self.seed} batches of epoch {number}")
            batches = BATCHINGS[self.batching](self, drawn_order(len(self.lengths), draws))
            order = drawn_order(len(batches), draws)
            self._made = number, [batches[index] for index in order]
        return self._made[1]

    def steps(self, epochs: int) -> int:
        """Return the number of steps in so many passes."""
        return sum(len(self.epoch(number)) for number in range(epochs))

    def walk(self, first_step: int, total_steps: int) -> Iterator[Sequences]:
        """Yield the batches of all steps from `first_step` on, epoch after epoch."""
        step, number = 0, 0
        while step < total_steps:
            for batch in self.epoch(number):
                if first_step <= step < total_steps:
                    yield batch
                step += 1
            number += 1


def length_grouped(plan: BatchPlan, order: list[int]) -> list[Sequences]:
    """Put each document into a sequence of its own, beside others of similar length."""
    batches: list[Sequences] = []
    for start in range(0, len(order), _WINDOW):
        window = sorted(order[start : start + _WINDOW], key=plan.lengths.__getitem__)
        batch: Sequences = []
        for index in window:
            # The newest document is the longest.
            if plan.lengths[index] * (len(batch) + 1) > plan.batch_tokens and batch:
                batches.append(batch)
                batch = []
            batch.append((index,))
        batches.append(batch)
    return batches


def packed(plan: BatchPlan, order: list[int]) -> list[Sequences]:
    """Join documents to sequences of up to `max_length` tokens."""
    rows: Sequences = []
    row: list[int] = []
    room = plan.max_length
    for index in order:
        if plan.lengths[index] > room:
            rows.append(tuple(row))
            row, room = [], plan.max_length
        row.append(index)
        room -= plan.lengths[index]
    rows.append(tuple(row))
    size = max(plan.batch_tokens // plan.max_length, 1)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


BATCHINGS = {"length_grouped": length_grouped, "packed": packed}


@dataclass(frozen=True)
class Batch:
    """Sequences of documents, as the model reads them.

    `labels_BT` holds the next token of every position, `UNLEARNED` where that token is not learned.
    `positions_BT` begins anew with every document.
    """

    ids_BT: Tensor
    labels_BT: Tensor
    positions_BT: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


def collate(documents: Sequence[Document], sequences: Sequences) -> Batch:
    """Return the sequences, padded on the right to the longest. Padding is at position 0."""
    width = max(sum(len(documents[index]) for index in row) for row in sequences)
    shape = len(sequences), width
    batch = Batch(
        torch.zeros(shape, dtype=torch.long),
        torch.full(shape, UNLEARNED),
        torch.zeros(shape, dtype=torch.long),
    )
    for row, sequence in enumerate(sequences):
        start = 0
        for document in map(documents.__getitem__, sequence):
            end = start + len(document)
            ids = torch.tensor(document.ids)
            learned = torch.tensor(document.learned[1:], dtype=torch.bool)
            batch.ids_BT[row, start:end] = ids
            batch.labels_BT[row, start : end - 1] = ids[1:].where(learned, UNLEARNED)
            batch.positions_BT[row, start:end] = torch.arange(len(document))
            start = end
    return batch
