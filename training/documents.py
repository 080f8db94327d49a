"""Encodes training texts: tokens, and for each token whether it is learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from command_line.errors import UsageError
from command_line.messages import warn
from models.tokens import continuation_ids, text_ids
from runs.prompt_encoding import TemplateError, chat_ids
from training.texts import Answer, Chat, Plain, TrainingText

_ENCODED_AT_ONCE = 10_000


@dataclass(frozen=True)
class Document:
    """Tokens, and for each token whether it is learned: predicted from those before it."""

    ids: list[int]
    learned: list[bool]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """Return the number of predicted tokens; nothing predicts the first."""
        return sum(self.learned[1:])


def encode_texts(
    texts: Sequence[TrainingText], tokenizer: Any, chat: bool, max_length: int
) -> list[Document]:
    """Return documents of at most `max_length` tokens.

    Answers and plain texts end with the tokenizer's end token, chats as its template ends them.
    `chat`: the template makes prompts a user's messages. Long plain texts are split. Other long
    texts are cut, prompts at their head; a warning counts them. A warning also counts documents
    that hold nothing to learn and are left out.
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
    plain = [text.text for text in texts if isinstance(text, Plain)]  # all texts, or none
    encoded = tokenizer(plain)["input_ids"] if plain else []
    others = [_answered(text, tokenizer, chat) for text in texts if not isinstance(text, Plain)]
    ended = [_ended(ids, tokenizer) for ids in encoded]
    return [Document(ids, [True] * len(ids)) for ids in ended] + others


def _answered(text: Answer | Chat, tokenizer: Any, chat: bool) -> Document:
    if isinstance(text, Chat):
        return _chat(text, tokenizer)
    if chat:
        turns = (("user", text.prompt), ("assistant", text.reference))
        return _chat(Chat("--apply_chat_template true", turns), tokenizer)
    prompt = text_ids(tokenizer, text.prompt)
    answer = _ended(continuation_ids(tokenizer, text.prompt, prompt, text.reference), tokenizer)
    return Document(prompt + answer, [False] * len(prompt) + [True] * len(answer))


def _ended(ids: list[int], tokenizer: Any) -> list[int]:
    """Return the tokens with the end token after them, if there is one and it is missing."""
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _chat(chat: Chat, tokenizer: Any) -> Document:
    """Return the chat in its template; the assistant's turns are learned."""
    turns = [{"role": role, "content": content} for role, content in chat.turns]
    ids = _templated(chat.place, turns, tokenizer, False)
    learned: list[bool] = []
    for count, turn in enumerate(turns, start=1):
        if turn["role"] != "assistant":
            continue
        asked = _templated(chat.place, turns[: count - 1], tokenizer, True)
        answered = _templated(chat.place, turns[:count], tokenizer, False)
        if ids[: len(answered)] != answered or answered[: len(asked)] != asked:
            raise UsageError(
                f"{chat.place}: in the tokenizer's template, later turns change the tokens of "
                "earlier turns"
            )
        learned += [False] * (len(asked) - len(learned))
        learned += [True] * (len(answered) - len(learned))
    return Document(ids, learned + [False] * (len(ids) - len(learned)))


def _templated(place: str, turns: list[dict[str, str]], tokenizer: Any, asked: bool) -> list[int]:
    if tokenizer.chat_template is None:
        raise UsageError(f"{place}: messages need a tokenizer with a chat template")
    if not turns:  # of those before an answer
        raise UsageError(f"{place}: the chat begins with the assistant, who answers nobody")
    try:
        return chat_ids(tokenizer, turns, asked)
    except TemplateError as error:
        begins = turns[0]["role"] == "assistant"
        order = "the chat begins with the assistant, and " if begins else ""
        raise UsageError(f"{place}: {order}the tokenizer's template {error}") from error


def _fitted(document: Document, max_length: int) -> list[Document]:
    """Return documents no longer than `max_length` that hold what the document has to learn."""
    ids, learned = document.ids, document.learned
    unlearned = learned.index(True) if True in learned else len(ids)
    if unlearned and len(ids) > max_length:
        # Cut the prompt's head to make room for the first answer; half the length stays prompt.
        answered = learned.index(False, unlearned) if False in learned[unlearned:] else len(ids)
        cut = max(0, min(answered - max_length, unlearned - max_length // 2))
        return [Document(ids[cut:][:max_length], learned[cut:][:max_length])]
    starts = range(0, len(ids), max_length)
    return [Document(ids[i : i + max_length], learned[i : i + max_length]) for i in starts]
