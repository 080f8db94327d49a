"""The tokens of texts that a model reads, and of those that it is to say after them."""

import itertools
from typing import Any

from self_speculation.output_text import OutputText


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Return a text's tokens, without end tokens that the tokenizer adds by itself."""
    return without_added_ends(tokenizer, text, tokenizer(text)["input_ids"])


def without_added_ends(tokenizer: Any, text: str, ids: list[int]) -> list[int]:
    """Return the tokens of a text without the end tokens behind them that it does not spell.

    A model that reads the end token after its prompt has nothing left to say.
    """
    end = tokenizer.eos_token_id
    if ids[-1:] != [end]:
        return ids
    spelled = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids[: len(ids) - max(_count_at_end(ids, end) - _count_at_end(spelled, end), 0)]


def continuation_ids(tokenizer: Any, prompt: str, prompt_ids: list[int], text: str) -> list[int]:
    """Return the tokens of a text that follows a prompt, as a model that has read it says them.

    Tokenizers of the SentencePiece family put a space before whatever they encode. The tokens are
    therefore the first of three encodings that decode to the text behind the prompt: the text's
    own, the end of both texts together, the text's behind a line break. Where a tokenizer changes
    texts, so that none does, they are the text's own.
    """
    output_text = OutputText(tokenizer, prompt_ids)
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    if output_text(own) == text:
        return own
    both = text_ids(tokenizer, prompt + text)
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"]
    behind = tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
    for start, ids in ((prompt_ids, both), (line_break, behind)):
        rest = ids[len(start) :]
        if ids[: len(start)] == start and output_text(rest) == text:
            return rest
    return own


def _count_at_end(ids: list[int], end: int) -> int:
    """Return how often the end token stands at the end."""
    return sum(1 for _ in itertools.takewhile(end.__eq__, reversed(ids)))
