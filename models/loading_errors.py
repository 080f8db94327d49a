"""Turn whatever keeps a model or its tokenizer from loading into one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import EntryNotFoundError
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from command_line.errors import UsageError
from files.error_lines import causes, error_line
from files.hub_reasons import Wanted, hub_reason
from models.embedded import EMBEDDED_MODEL

_NEITHER_FILE = "Couldn't instantiate the backend tokenizer"


@contextmanager
def one_line_errors(
    name: str, revision: str | None = None, of_tokenizer: bool = False
) -> Iterator[None]:
    """Raise a `UsageError` whose one line says why a model or its tokenizer cannot be loaded."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        # A checkpoint is foreign input: transformers raises errors of every type.
        reason = _reason(error, revision, of_tokenizer)
        raise UsageError(f"--model {name}: {reason}") from error


def tokenizer_reason(error: BaseException) -> str | None:
    """Return what a tokenizer lacks; None if the message of transformers explains it."""
    said = str(error)
    if _NEITHER_FILE in said:
        return "lacks a tokenizer.json or tokenizer.model"
    # Without the packages that read SentencePiece, transformers 5 takes the file for tiktoken's.
    if not re.search(r"`tiktoken`|tokenizer\.model", said):
        return None
    if is_sentencepiece_available() and is_protobuf_available():
        return "its tokenizer.model is no SentencePiece model that can be read"
    needed = "needs the packages sentencepiece and protobuf, of requirements.txt"
    return f"its tokenizer.model {needed}"


def _reason(error: BaseException, revision: str | None, of_tokenizer: bool) -> str:
    hint = f"; name a checkpoint folder, or {EMBEDDED_MODEL}"
    reason = hub_reason(error, Wanted("model", revision=revision, otherwise=hint))
    if reason is None and any(isinstance(cause, EntryNotFoundError) for cause in causes(error)):
        reason = "lacks a file that a safetensors checkpoint has"
    if reason is None and of_tokenizer:
        reason = tokenizer_reason(error)
    what = "its tokenizer " if of_tokenizer else ""
    return reason or f"{what}cannot be loaded ({error_line(error)})"
