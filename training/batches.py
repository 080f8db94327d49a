"""Batches of documents, in an order that follows from a seed.

Shapes: B documents of a batch, T tokens of the longest.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prompts.examples import drawn_order
from training.documents import Document

UNLEARNED = -100  # the label that torch's losses leave out
_WINDOW = 8192  # documents that are sorted by length together


@dataclass(frozen=True)
class BatchPlan:
    """The documents, by index, of every step of every epoch; they follow from the seed alone.

    A batch holds documents of similar lengths: at most `batch_tokens` tokens, padding included.
    """

    lengths: list[int]
    batch_tokens: int
    seed: int

    def epoch(self, number: int) -> list[list[int]]:
        """Return the batches of one pass over the data."""
        draws = random.Random(f"{self.seed} batches of epoch {number}")
        batches = self._batches(drawn_order(len(self.lengths), draws))
        return [batches[index] for index in drawn_order(len(batches), draws)]

    def steps(self, epochs: int) -> int:
        """Return the number of steps in so many passes."""
        return sum(len(self.epoch(number)) for number in range(epochs))

    def walk(self, first_step: int, total_steps: int) -> Iterator[list[int]]:
        """Yield the batches of all steps from `first_step` on, epoch after epoch."""
        batches = itertools.chain.from_iterable(map(self.epoch, itertools.count()))
        return itertools.islice(batches, first_step, total_steps)

    def _batches(self, order: list[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        for start in range(0, len(order), _WINDOW):
            batch: list[int] = []
            for index in sorted(order[start : start + _WINDOW], key=self.lengths.__getitem__):
                # The newest document is the longest.
                if self.lengths[index] * (len(batch) + 1) > self.batch_tokens and batch:
                    batches.append(batch)
                    batch = []
                batch.append(index)
            batches.append(batch)
        return batches


@dataclass(frozen=True)
class Batch:
    """Documents as the model reads them, padded on the right to the longest.

    `labels_BT` holds the next token of every position, `UNLEARNED` where that token is not learned.
    Padding is at position 0 each time, which transformers masks as documents of their own.
    """

    ids_BT: Tensor
    labels_BT: Tensor
    positions_BT: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


def collate(documents: Sequence[Document]) -> Batch:
    """Return the documents as one batch."""
    return Batch(
        _padded([document.ids for document in documents]),
        _padded(list(map(_labels, documents)), UNLEARNED),
        _padded([range(len(document)) for document in documents]),
    )


def _padded(rows: Sequence[Sequence[int]], padding: int = 0) -> Tensor:
    return pad_sequence(list(map(torch.tensor, rows)), batch_first=True, padding_value=padding)


def _labels(document: Document) -> list[int]:
    following = zip(document.ids[1:], document.learned[1:], strict=True)
    return [*(token if learned else UNLEARNED for token, learned in following), UNLEARNED]
