"""From a prompt's text to the tokens that the model reads."""

import itertools
from collections.abc import Sequence
from typing import Any

import jinja2

from arguments.prompts import PromptArguments
from command_line.errors import UsageError, reject
from data import Selection
from models.checkpoint import Checkpoint
from models.loading import LoadedModel
from models.tokens import text_ids


def encode(
    arguments: PromptArguments,
    named: Checkpoint | LoadedModel,
    prompt: str,
    later: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """Return the prompt's tokens; with `--apply_chat_template`, those of a chat that asks it.

    `later` goes on with a conversation: each answer of the model, and the user's next message.
    Without a chat template, the answer directly follows the prompt, and a blank line parts it from
    the next message. With `--max_prompt_tokens`, return only the last tokens. Raises `UsageError`
    if there is no token, or the chat template fails.
    """
    if arguments.apply_chat_template:
        ids = _chat_prompt_ids(named, prompt, later)
    else:
        whole = prompt + "".join(f"{answer}\n\n{message}" for answer, message in later)
        ids = text_ids(named.tokenizer, whole)
    if not ids:
        raise UsageError(f"--model {named.name}: its tokenizer makes no token of {prompt[:40]!r}")
    check_embedded(named, ids)
    return ids[-(arguments.max_prompt_tokens or 0) :]


def encode_all(
    arguments: PromptArguments, named: Checkpoint | LoadedModel, selection: Selection
) -> list[list[int]]:
    """Return the tokens of every example's prompt."""
    return [encode(arguments, named, example.prompt) for example in selection.examples]


def check_embedded(named: Checkpoint | LoadedModel, ids: list[int]) -> None:
    """Refuse a token without an embedding, such as a token that was added to a tokenizer only."""
    missing = missing_embedding(named.tokenizer, named.config.vocab_size, ids)
    if missing:
        reject("model", named.name, missing)


def missing_embedding(tokenizer: Any, vocabulary: int, ids: list[int]) -> str | None:
    """Return which of a text's tokens lies outside a model's vocabulary; None if none does."""
    largest = max(ids, default=0)
    if largest < vocabulary:
        return None
    made = f"its tokenizer makes token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r})"
    return f"{made} of a prompt, and the model has embeddings for {vocabulary} tokens"


def longest_prompt(arguments: PromptArguments, max_steps: int, limit: int) -> int:
    """Return the tokens of the longest prompt that a model of `limit` positions can read.

    With `--truncate_prompt` it leaves room for all of `max_steps`; raises `UsageError` if that
    leaves no room for a prompt.
    """
    if not arguments.truncate_prompt:
        return limit
    if max_steps > limit:
        reject("max_steps", max_steps, f"exceeds the model's {limit} positions; no prompt is left")
    return limit - max_steps + 1


def fitted(arguments: PromptArguments, ids: list[int], longest: int) -> list[int] | None:
    """Return the prompt, or with `--truncate_prompt` its tail; None for a prompt too long."""
    return ids[-longest:] if len(ids) <= longest or arguments.truncate_prompt else None


def check_chat_template(
    arguments: PromptArguments, checkpoint: Checkpoint, converses: bool = False
) -> None:
    """Refuse `--apply_chat_template` if the tokenizer's template does not work.

    `converses`: it must also work for a further message after an answer.
    """
    if arguments.apply_chat_template:
        encode(arguments, checkpoint, "Hello", [("Hello", "Hello")] if converses else [])


class TemplateError(ValueError):
    """A chat template that does not work; the message says how."""


def chat_ids(tokenizer: Any, turns: list[dict[str, str]], asks: bool) -> list[int]:
    """Return the tokens of a chat in the tokenizer's template; `asks`: an answer is to follow.

    Raises `TemplateError`.
    """
    try:
        chat = tokenizer.apply_chat_template(turns, add_generation_prompt=asks, return_dict=True)
    except Exception as error:
        # A template is a program from the checkpoint, and may raise anything.
        refused = type(error) is jinja2.TemplateError  # raised by the template's raise_exception
        fails = "refuses the chat (" if refused else f"fails ({type(error).__name__}: "
        raise TemplateError(f"{fails}{' '.join(str(error).split())})") from error
    return chat["input_ids"]


def _chat_prompt_ids(
    named: Checkpoint | LoadedModel, prompt: str, later: Sequence[tuple[str, str]]
) -> list[int]:
    if named.tokenizer.chat_template is None:
        reject("apply_chat_template", "true", f"the tokenizer of {named.name} has no template")
    contents = itertools.chain([prompt], *later)
    roles = itertools.cycle(("user", "assistant"))
    chat = [{"role": role, "content": text} for text, role in zip(contents, roles, strict=False)]
    try:
        return chat_ids(named.tokenizer, chat, True)
    except TemplateError as error:
        reject("apply_chat_template", "true", f"the template of {named.name} {error}")
