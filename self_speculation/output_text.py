"""The text that an output's tokens add to the text of its prompt.

Tokenizers of the SentencePiece family (Llama 2, Code Llama, Mistral) drop the space at the
beginning of whatever they decode. Decoded alone, an output would lose a leading space, and
indented code a part of its indentation.
"""

import re
from os.path import commonprefix
from typing import Any

_FIRST_CONTEXT = 8
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class OutputText:
    """Decodes outputs that follow one prompt.

    The text of an output is what prompt and output decode to together, less the prompt's text.
    Only the prompt's end is decoded again with every output: as many tokens as it takes to have
    visible text before the output. `special`: special tokens are part of the text.
    """

    def __init__(
        self, tokenizer: Any, prompt_ids: list[int] | None = None, special: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._context_ids, self._context = self._end_of(prompt_ids or [])

    def __call__(self, output_ids: list[int]) -> str:
        """Return the text of the output."""
        text = self._decode(self._context_ids + output_ids)
        # The prompt may end with bytes of a character that the output completes.
        return text[len(commonprefix([text, self._context])) :]

    def settled(self, output_ids: list[int]) -> list[int]:
        """Return the output's first tokens, whose text no further token can change.

        Tokens that stand for a byte are decoded together: where a later one makes the bytes no
        UTF-8, characters of the earlier ones are lost too.
        """
        count = len(output_ids)
        while count and self._is_byte(output_ids[count - 1]):
            count -= 1
        return output_ids[:count]

    def _is_byte(self, token_id: int) -> bool:
        # A model may know more tokens than its tokenizer, which calls them None.
        return bool(_BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(token_id) or ""))

    def _end_of(self, prompt_ids: list[int]) -> tuple[list[int], str]:
        """Return the last tokens of the prompt and their text."""
        count = _FIRST_CONTEXT
        while True:
            ids = prompt_ids[-count:]
            text = self._decode(ids) if ids else ""
            # A first character without its first bytes, or a stripped space, is no visible text.
            if count >= len(prompt_ids) or text.strip("\ufffd "):
                return ids, text
            count *= 2

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=not self._special, clean_up_tokenization_spaces=False
        )
