"""From texts to the batches that are learned from, in an order that a seed settles.

Shapes: B sequences of a batch, T tokens of its longest.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from command_line.errors import UsageError, reject
from command_line.messages import warn
from models.tokens import continuation_ids, text_ids
from prompts.examples import drawn_order
from runs.prompt_encoding import TemplateError, chat_ids
from training.arguments import LearnerArguments
from training.texts import Answer, Chat, Plain, TrainingText

UNLEARNED = -100  # what torch's losses leave out
_WINDOW = 8192  # documents among which those of like length find together
_ENCODED_AT_ONCE = 10_000


@dataclass(frozen=True)
class Document:
    """Tokens, and for each whether it is learned: predicted from those before it."""

    ids: list[int]
    learned: list[bool]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """Tokens that are predicted; there is nothing to predict the first one from."""
        return sum(self.learned[1:])


Sequences = list[tuple[int, ...]]  # for every sequence of a batch, its documents


def encode_texts(
    texts: Sequence[TrainingText], tokenizer: Any, chat: bool, max_length: int
) -> list[Document]:
    """Documents of at most `max_length` tokens.

    Answers and plain texts end with the tokenizer's end token, chats as its template ends them.
    `chat`: prompts become a user's messages, by that template. Plain texts are split; others are
    cut, prompts from their head on, which a warning counts. What leaves nothing to learn is left
    out with a warning.
    """
    documents, cut = [], 0
    for start in range(0, len(texts), _ENCODED_AT_ONCE):
        some = texts[start : start + _ENCODED_AT_ONCE]
        for document in _encode(some, tokenizer, chat):
            fitted = _fitted(document, max_length)
            cut += sum(map(len, fitted)) < len(document)
            documents += fitted
    if cut:
        warn(f"--max_length {max_length}: {cut} documents are longer, and cut")
    learned = [document for document in documents if document.targets]
    if len(learned) < len(documents):
        lost = len(documents) - len(learned)
        warn(f"{lost} documents hold nothing to learn, and are left out")
    return learned


def _encode(texts: Sequence[TrainingText], tokenizer: Any, chat: bool) -> list[Document]:
    kind = type(texts[0])
    if kind is Plain:
        encoded = tokenizer([text.text for text in texts])["input_ids"]
        return [_plain(ids, tokenizer) for ids in encoded]
    if kind is Chat:
        return [_chat(text, tokenizer) for text in texts]
    if chat:
        turns = [(("user", text.prompt), ("assistant", text.reference)) for text in texts]
        return [_chat(Chat("--apply_chat_template true", turn), tokenizer) for turn in turns]
    return _answers(texts, tokenizer)


def _plain(ids: list[int], tokenizer: Any) -> Document:
    ids = _ended(ids, tokenizer)
    return Document(ids, [True] * len(ids))


def _answers(texts: Sequence[Answer], tokenizer: Any) -> list[Document]:
    documents = []
    for text in texts:
        prompt = text_ids(tokenizer, text.prompt)
        answer = continuation_ids(tokenizer, text.prompt, prompt, text.reference)
        answer = _ended(answer, tokenizer)
        learned = [False] * len(prompt) + [True] * len(answer)
        documents.append(Document(prompt + answer, learned))
    return documents


def _ended(ids: list[int], tokenizer: Any) -> list[int]:
    """The tokens with the end token after them, where there is one that is not there yet."""
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _chat(chat: Chat, tokenizer: Any) -> Document:
    """The chat in its template, of which the assistant's turns are learned."""
    turns = [{"role": role, "content": content} for role, content in chat.turns]
    ids, learned = _templated(chat.place, turns, tokenizer, False), []
    for count, turn in enumerate(turns, start=1):
        if turn["role"] != "assistant":
            continue
        asked = _templated(chat.place, turns[: count - 1], tokenizer, True)
        answered = _templated(chat.place, turns[:count], tokenizer, False)
        if ids[: len(answered)] != answered or answered[: len(asked)] != asked:
            raise UsageError(
                f"{chat.place}: with the tokenizer's template, the tokens of a chat's first turns "
                "are no beginning of those of all turns"
            )
        learned += [False] * (len(asked) - len(learned))
        learned += [True] * (len(answered) - len(learned))
    return Document(ids, learned + [False] * (len(ids) - len(learned)))


def _templated(place: str, turns: list[dict[str, str]], tokenizer: Any, asked: bool) -> list[int]:
    if tokenizer.chat_template is None:
        raise UsageError(f"{place}: messages need a tokenizer with a chat template")
    if not turns:  # what comes before an answer
        raise UsageError(f"{place}: the chat begins with the assistant, who answers nobody")
    try:
        return chat_ids(tokenizer, turns, asked)
    except TemplateError as error:
        begins = turns[0]["role"] == "assistant"
        order = "the chat begins with the assistant, and " if begins else ""
        raise UsageError(f"{place}: {order}the tokenizer's template {error}") from error


def _fitted(document: Document, max_length: int) -> list[Document]:
    """Documents no longer than `max_length`, which hold what there is to learn."""
    ids, learned = document.ids, document.learned
    unlearned = learned.index(True) if True in learned else len(ids)
    if unlearned and len(ids) > max_length:
        # Room for the first answer is made out of the prompt's head, but half the length stays.
        answered = learned.index(False, unlearned) if False in learned[unlearned:] else len(ids)
        cut = max(0, min(answered - max_length, unlearned - max_length // 2))
        return [Document(ids[cut:][:max_length], learned[cut:][:max_length])]
    starts = range(0, len(ids), max_length)
    return [Document(ids[i : i + max_length], learned[i : i + max_length]) for i in starts]


@dataclass
class BatchPlan:
    """Which documents every step of every epoch learns from: a function of the seed alone.

    A batch holds at most `batch_tokens` tokens, padding included.
    """

    lengths: list[int]
    batch_tokens: int
    max_length: int
    batching: str
    seed: int
    _made: tuple[int, list[Sequences]] = field(default=(-1, []), init=False)

    def epoch(self, number: int) -> list[Sequences]:
        """The batches of one pass over the data."""
        if self._made[0] != number:
            draws = random.Random(f"{self.seed} batches of epoch {number}")
            batches = BATCHINGS[self.batching](self, drawn_order(len(self.lengths), draws))
            order = drawn_order(len(batches), draws)
            self._made = number, [batches[index] for index in order]
        return self._made[1]

    def steps(self, epochs: int) -> int:
        """The steps of so many passes."""
        return sum(len(self.epoch(number)) for number in range(epochs))

    def walk(self, first_step: int, total_steps: int) -> Iterator[Sequences]:
        """The batches of all steps from one on, epoch after epoch."""
        step, number = 0, 0
        while step < total_steps:
            for batch in self.epoch(number):
                if first_step <= step < total_steps:
                    yield batch
                step += 1
            number += 1


def length_grouped(plan: BatchPlan, order: list[int]) -> list[Sequences]:
    """A document a sequence, beside others of like length."""
    batches: list[Sequences] = []
    for start in range(0, len(order), _WINDOW):
        window = sorted(order[start : start + _WINDOW], key=plan.lengths.__getitem__)
        batch: Sequences = []
        for index in window:
            # The newest is the longest.
            if plan.lengths[index] * (len(batch) + 1) > plan.batch_tokens and batch:
                batches.append(batch)
                batch = []
            batch.append((index,))
        batches.append(batch)
    return batches


def packed(plan: BatchPlan, order: list[int]) -> list[Sequences]:
    """Documents one after another in sequences of up to `max_length` tokens."""
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

    `labels_BT` holds at every position the token that comes after it, `UNLEARNED` where that is
    not learned. `positions_BT` begins anew with every document.
    """

    ids_BT: Tensor
    labels_BT: Tensor
    positions_BT: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


def collate(documents: Sequence[Document], sequences: Sequences) -> Batch:
    """The sequences, padded on the right to the longest. Padding is at position 0."""
    width = max(sum(len(documents[index]) for index in row) for row in sequences)
    shape = len(sequences), width
    batch = Batch(
        torch.zeros(shape, dtype=torch.long),
        torch.full(shape, UNLEARNED),
        torch.zeros(shape, dtype=torch.long),
    )
    for row, sequence in enumerate(sequences):
        ends = [0]
        for index in sequence:
            ends.append(ends[-1] + len(documents[index]))
        for index, (start, end) in zip(sequence, pairwise(ends), strict=True):
            document = documents[index]
            ids = torch.tensor(document.ids)
            learned = torch.tensor(document.learned[1:], dtype=torch.bool)
            batch.ids_BT[row, start:end] = ids
            batch.labels_BT[row, start : end - 1] = ids[1:].where(learned, UNLEARNED)
            batch.positions_BT[row, start:end] = torch.arange(end - start)
    return batch


def check_vocabulary(
    documents: Sequence[Document], vocabulary: int, flags: LearnerArguments
) -> None:
    """Refuses tokens that the model has no embedding for."""
    largest = max(max(document.ids) for document in documents)
    if largest >= vocabulary:
        name = "model" if flags.tokenizer is None else "tokenizer"
        allowed = f"its tokenizer makes token {largest}, the model's vocab_size is {vocabulary}"
        reject(name, getattr(flags, name), allowed)
