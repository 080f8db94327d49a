"""The text that an output adds to the text of its prompt.

SentencePiece tokenizers (Llama 2, Code Llama, Mistral) drop a space at the beginning of every text
that they decode. An output decoded alone would lose its leading space, and indented code a part of
its indentation.
"""

import re
from os.path import commonprefix
from typing import Any

_FIRST_CONTEXT = 8
# SentencePiece's token of a byte, for characters without a token.
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_REPLACEMENT = "\ufffd"


class OutputText:
    """Decodes outputs that follow one prompt.

    The text of an output is the text of prompt and output together, without the prompt's text.
    Only the end of the prompt is decoded again with every output: enough tokens for visible text
    before the output. `special`: special tokens are part of the text.

    Tokenizers decode byte tokens in runs, and a run that is not UTF-8 becomes all replacement
    characters. Therefore an output that ends inside a character keeps the characters before it, and
    an output that is not UTF-8 after the prompt's bytes is decoded apart from them.
    """

    def __init__(
        self, tokenizer: Any, prompt_ids: list[int] | None = None, special: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._special = special
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._skipped = set() if special else {one for one in added if added[one].special}
        self._context_ids, self._context = self._end_of(prompt_ids or [])

    def __call__(self, output_ids: list[int]) -> str:
        """Return the text of the output."""
        begun = min(self._begun_character(self._context_ids + output_ids), len(output_ids))
        ids = output_ids[: len(output_ids) - begun]
        return self._text(ids) + (_REPLACEMENT if begun else "")

    def whole_run(self, output_ids: list[int], start: int) -> int:
        """Return the last place up to `start` that does not divide a run of bytes."""
        while start and self._in_run(output_ids[start]):
            start -= 1
        return start

    def settled(self, output_ids: list[int]) -> list[int]:
        """Return the output's first tokens, whose text later tokens cannot change."""
        count = len(output_ids)
        while count and self._in_run(output_ids[count - 1]):
            count -= 1
        return output_ids[:count]

    def _text(self, ids: list[int]) -> str:
        text = self._decode(self._context_ids + ids)
        if text.startswith(self._context):
            return text[len(self._context) :]
        if not self._context.endswith(_REPLACEMENT):
            return self._decode(ids)
        # The output completes the prompt's last character.
        return text[len(commonprefix([text, self._context])) :]

    def _begun_character(self, ids: list[int]) -> int:
        """Return how many tokens at the end begin a character without completing it."""
        run = ids[len(self.settled(ids)) :]
        values = bytes(value for value in map(self._byte, run) if value is not None)
        try:
            values.decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                return 0
            lacking, count = len(values) - error.start, 0
            while lacking:
                count += 1
                lacking -= self._byte(run[-count]) is not None
            return count
        return 0

    def _in_run(self, token_id: int) -> bool:
        """Whether the token is a byte, or is left out, which makes the bytes around it one run."""
        return token_id in self._skipped or self._byte(token_id) is not None

    def _byte(self, token_id: int) -> int | None:
        # A model may have more tokens than its tokenizer, which returns None for them.
        match = _BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(token_id) or "")
        return int(match[1], 16) if match else None

    def _end_of(self, prompt_ids: list[int]) -> tuple[list[int], str]:
        """Return the last tokens of the prompt and their text."""
        count = _FIRST_CONTEXT
        while True:
            ids = prompt_ids[-count:]
            text = self._decode(ids) if ids else ""
            # A character without its first bytes and a stripped space are no visible text.
            if count >= len(prompt_ids) or text.strip(f"{_REPLACEMENT} "):
                return ids, text
            count *= 2

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=not self._special, clean_up_tokenization_spaces=False
        )
