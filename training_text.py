"""What is trained on, as texts: questions with answers, plain texts, or chats."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import reject
from data import get_pairs
from rows import PathSource, Row, RowsError, field_names
from training_arguments import TrainingDataArguments


@dataclass(frozen=True)
class Answer:
    """A prompt, and the answer that is learned."""

    prompt: str
    reference: str


@dataclass(frozen=True)
class Plain:
    """A text, all of which is learned."""

    text: str


@dataclass(frozen=True)
class Chat:
    """Turns of role and content, of which the assistant's are learned."""

    place: str
    turns: tuple[tuple[str, str], ...]


TrainingText = Answer | Plain | Chat


def get_training_texts(
    arguments: TrainingDataArguments, seed: int
) -> tuple[list[TrainingText], list[TrainingText]]:
    """What is learned, and what is held out.

    Held-out rows are drawn by `seed`. A text that is held out is not learned, however often it
    occurs. Raises `UsageError` for rows that cannot be read or hold no text.
    """
    texts = _read(arguments, "data_path", "train")
    if arguments.eval_path is not None:
        held_out = _drawn(_read(arguments, "eval_path", "test"), arguments.eval_samples, seed)
    else:
        held_out = _drawn(texts, arguments.eval_samples, seed)
    keys = set(map(_content, held_out))
    learned = [text for text in texts if _content(text) not in keys][: arguments.num_samples]
    if not learned:
        reject("eval_samples", arguments.eval_samples, "leaves no row to train on")
    return learned, held_out


def _read(arguments: TrainingDataArguments, path_flag: str, split: str) -> list[TrainingText]:
    path = getattr(arguments, path_flag)
    if arguments.dataset is not None:
        pairs = get_pairs(arguments.dataset, path, arguments.renamed_fields(), path_flag, split)
        return [Answer(arguments.filled_template(prompt), answer) for prompt, answer in pairs]
    source = PathSource(Path(path))
    try:
        rows = source.rows(split)
        texts = [_text(row) for row in (source.rows("test") if rows is None else rows)]
        if len(set(map(type, texts))) > 1:
            raise RowsError("holds rows with a text and rows with messages")
        return texts
    except RowsError as error:
        reject(path_flag, path, str(error))


def _text(row: Row) -> Plain | Chat:
    """What a row of text or messages says."""
    if "messages" in row.values:
        return Chat(row.place, _turns(row))
    text = row.values.get("text")
    if not isinstance(text, str) or not text.strip():
        found = field_names(row.values)
        raise RowsError(f"{row.place} has no text in a field text or messages; it has: {found}")
    return Plain(_checked(row, text))


def _turns(row: Row) -> tuple[tuple[str, str], ...]:
    turns = row.values["messages"]
    whole = isinstance(turns, list) and all(map(_is_turn, turns))
    if not whole or not any(turn["role"] == "assistant" for turn in turns):
        raise RowsError(
            f"{row.place} must have in messages a list of turns with texts role and content, one "
            "of them an assistant's"
        )
    return tuple((turn["role"], _checked(row, turn["content"])) for turn in turns)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(k), str) for k in ("role", "content"))


def _checked(row: Row, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowsError(f"{row.place} holds half a character") from error
    return text


def _drawn(texts: list[TrainingText], count: int, seed: int) -> list[TrainingText]:
    """`count` texts of different content, by draws whose sequence Python promises to keep."""
    draws = random.Random(f"{seed} held out")
    order = sorted(range(len(texts)), key=[draws.random() for _ in texts].__getitem__)
    different: dict[object, TrainingText] = {}
    for index in order:
        different.setdefault(_content(texts[index]), texts[index])
    return list(different.values())[:count]


def _content(text: TrainingText) -> object:
    """What texts share that are the same to a reader of held-out scores: prompt, text or turns."""
    return _CONTENT[type(text)](text)


_CONTENT: dict[type, Callable[[Any], object]] = {
    Answer: lambda text: " ".join(text.prompt.split()),
    Plain: lambda text: " ".join(text.text.split()),
    Chat: lambda text: text.turns,
}


def spoken(texts: Iterable[TrainingText]) -> Iterable[str]:
    """All strings of some texts, in order."""
    for text in texts:
        if isinstance(text, Plain):
            yield text.text
        elif isinstance(text, Answer):
            yield from (text.prompt, text.reference)
        else:
            yield from (content for _, content in text.turns)
