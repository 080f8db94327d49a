"""Encode prompts, and the texts that are to follow them."""

import itertools

from transformers import PreTrainedTokenizerBase

from self_speculation.output_text import OutputText


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return a text's tokens without end tokens that the tokenizer appends."""
    return without_added_ends(tokenizer, text, tokenizer(text)["input_ids"])


def without_added_ends(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    """Return a text's `ids` without end tokens that the tokenizer appended.

    After an end token a model has nothing left to say.
    """
    end = tokenizer.eos_token_id
    if ids[-1:] != [end]:
        return ids
    spelled = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids[: len(ids) - max(_count_at_end(ids, end) - _count_at_end(spelled, end), 0)]


def continuation_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, prompt_ids: list[int], text: str
) -> list[int]:
    """Return the tokens with which a model continues its prompt by the text.

    Tokenizers of the SentencePiece family put a space before each text that they encode. Hence
    three encodings are tried until one decodes to the text behind the prompt: the text alone, the
    end of both texts together, the text behind a line break. The default is the text alone.
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
    """Return the number of end tokens at the end."""
    return sum(1 for _ in itertools.takewhile(end.__eq__, reversed(ids)))
