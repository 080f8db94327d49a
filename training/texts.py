"""Training texts: prompts with answers, plain texts, or chats."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command_line.errors import reject
from data import get_split
from prompts.examples import check_characters, content_key, shuffled
from prompts.row_formats import Row, RowsError, field_names
from prompts.sources import PathSource, named_split
from training.arguments import TrainingDataArguments


@dataclass(frozen=True)
class Answer:
    """A prompt, and the answer that is learned; `content` is the text without a template."""

    prompt: str
    reference: str
    content: str = field(default="", compare=False)

    @property
    def asked(self) -> str:
        """Return the text that no learned and held-out row may share."""
        return self.content or self.prompt

    @property
    def strings(self) -> tuple[str, ...]:
        return self.prompt, self.reference


@dataclass(frozen=True)
class Plain:
    """A text that is learned as a whole."""

    text: str

    @property
    def asked(self) -> str:
        return self.text

    @property
    def strings(self) -> tuple[str, ...]:
        return (self.text,)


@dataclass(frozen=True)
class Chat:
    """Turns of role and content; the assistant's are learned.

    `place` names flag, file and line of the row.
    """

    place: str
    turns: tuple[tuple[str, str], ...]

    @property
    def asked(self) -> str:
        """Return the text before the first answer, which all turns of a conversation follow.

        If nothing is before it, return the answer.
        """
        roles = [role for role, _ in self.turns]
        return "\n".join(self.strings[: roles.index("assistant") or 1])

    @property
    def strings(self) -> tuple[str, ...]:
        return tuple(content for _, content in self.turns)


TrainingText = Answer | Plain | Chat


def get_training_texts(
    arguments: TrainingDataArguments, seed: int
) -> tuple[list[TrainingText], list[TrainingText]]:
    """Return the texts to learn, and those held out.

    `seed` draws the held-out rows. A held-out text is not learned, however often it occurs. Raise
    `UsageError` for rows that cannot be read or hold no text.
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
        renamed = arguments.renamed_fields()
        return [
            Answer(arguments.filled_template(one.prompt), one.reference, one.content)
            for one in get_split(arguments.dataset, path, renamed, path_flag, split)
        ]
    source = PathSource(Path(path))
    try:
        rows = source.rows(named_split(source, split))
        if rows is None:
            raise RowsError(f"has no {split} split; a file of rows would be any")
        texts: list[TrainingText] = [
            _text(row, f"--{path_flag} {path}: {row.place}") for row in rows
        ]
        if len(set(map(type, texts))) > 1:
            raise RowsError("holds rows with a text and rows with messages")
        return texts
    except RowsError as error:
        reject(path_flag, path, str(error))


def _text(row: Row, place: str) -> Plain | Chat:
    """Return the text or the chat of a row."""
    try:
        made = Chat(place, _turns(row)) if "messages" in row.values else _plain(row)
        check_characters(*made.strings)
    except RowsError as error:
        raise RowsError(f"{row.place} {error}") from error
    return made


def _plain(row: Row) -> Plain:
    text = row.values.get("text")
    if not isinstance(text, str) or not text.strip():
        found = field_names(row.values)
        raise RowsError(f"has no text in a field text or messages; it has: {found}")
    return Plain(text)


def _turns(row: Row) -> tuple[tuple[str, str], ...]:
    turns = row.values["messages"]
    whole = isinstance(turns, list) and all(map(_is_turn, turns))
    if not whole or not any(turn["role"] == "assistant" for turn in turns):
        raise RowsError(
            "must have in messages a list of turns with texts role and content, one of them an "
            "assistant's"
        )
    return tuple((turn["role"], turn["content"]) for turn in turns)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(k), str) for k in ("role", "content"))


def _drawn(texts: list[TrainingText], count: int, seed: int) -> list[TrainingText]:
    """Return `count` texts of different content, in an order drawn by the seed."""
    different: dict[str, TrainingText] = {}
    for index in shuffled(len(texts), seed, "held out"):
        different.setdefault(_content(texts[index]), texts[index])
    return list(different.values())[:count]


def _content(text: TrainingText) -> str:
    """Return a key shared by texts that must not be split between learned and held-out rows."""
    return content_key(text.asked)
