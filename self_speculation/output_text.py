"""The text that an output's tokens add to the text of its prompt.

Tokenizers of the SentencePiece family (Llama 2, Code Llama, Mistral) drop the space at the
beginning of whatever they decode. Decoded alone, an output would lose a leading space, and
indented code a part of its indentation.
"""

import re
from os.path import commonprefix
from typing import Any

_FIRST_CONTEXT = 8
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # of SentencePiece, for what has no other token
_REPLACEMENT = "\ufffd"


class OutputText:
    """Decodes outputs that follow one prompt.

    The text of an output is what prompt and output decode to together, less the prompt's text.
    Only the prompt's end is decoded again with every output: as many tokens as it takes to have
    visible text before the output. `special`: special tokens are part of the text.

    Tokens that stand for a byte are decoded in runs, and a run that is no UTF-8 becomes all
    replacement characters. An output that ends inside a character keeps the characters before it,
    and one that is no UTF-8 behind the prompt's bytes is decoded apart from them.
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
        """Return the last place up to `start` before which tokens do not matter for those after."""
        while start and self._in_run(output_ids[start]):
            start -= 1
        return start

    def settled(self, output_ids: list[int]) -> list[int]:
        """Return the output's first tokens, whose text no further token can change."""
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
        # The output completes a character of the prompt.
        return text[len(commonprefix([text, self._context])) :]

    def _begun_character(self, ids: list[int]) -> int:
        """Return how many tokens at the end are the first bytes of a character."""
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
        """Whether the token is a byte, or left out, so that bytes around it are one run."""
        return token_id in self._skipped or self._byte(token_id) is not None

    def _byte(self, token_id: int) -> int | None:
        # A model may know more tokens than its tokenizer, which calls them None.
        match = _BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(token_id) or "")
        return int(match[1], 16) if match else None

    def _end_of(self, prompt_ids: list[int]) -> tuple[list[int], str]:
        """Return the last tokens of the prompt and their text."""
        count = _FIRST_CONTEXT
        while True:
            ids = prompt_ids[-count:]
            text = self._decode(ids) if ids else ""
            # A first character without its first bytes, or a stripped space, is no visible text.
            if count >= len(prompt_ids) or text.strip(f"{_REPLACEMENT} "):
                return ids, text
            count *= 2

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=not self._special, clean_up_tokenization_spaces=False
        )
