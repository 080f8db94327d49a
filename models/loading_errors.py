"""One line for whatever keeps a model or its tokenizer from loading."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import EntryNotFoundError
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from command_line.errors import UsageError
from files.error_lines import error_line
from files.hub_reasons import Wanted, causes, hub_reason
from models.embedded import EMBEDDED_MODEL

_TOKENIZER = "its tokenizer "
_NEITHER_FILE = "Couldn't instantiate the backend tokenizer"


@contextmanager
def one_line_errors(name: str, revision: str | None = None) -> Iterator[None]:
    """Raises a `UsageError` that says in one line why the model cannot be loaded."""
    with _one_line(name, "", revision):
        yield


@contextmanager
def one_line_tokenizer_errors(name: str) -> Iterator[None]:
    """Raises a `UsageError` that says in one line why the model's tokenizer cannot be loaded."""
    with _one_line(name, _TOKENIZER, None):
        yield


def tokenizer_reason(error: BaseException) -> str | None:
    """Says what a tokenizer lacks; None for an error that transformers itself explains."""
    said = str(error)
    if _NEITHER_FILE in said:
        return "lacks a tokenizer.json or tokenizer.model"
    # Where it cannot read SentencePiece, transformers 5 takes the file for one of tiktoken.
    if not re.search(r"`tiktoken`|tokenizer\.model", said):
        return None
    if is_sentencepiece_available() and is_protobuf_available():
        return "its tokenizer.model is no SentencePiece model that can be read"
    needed = "needs the packages sentencepiece and protobuf, of requirements.txt"
    return f"its tokenizer.model {needed}"


@contextmanager
def _one_line(name: str, what: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        # A checkpoint is foreign input, and transformers answers it with errors of every type.
        raise UsageError(f"--model {name}: {_reason(error, what, revision)}") from error


def _reason(error: BaseException, what: str, revision: str | None) -> str:
    hint = f"; name a checkpoint folder, or {EMBEDDED_MODEL}"
    reason = hub_reason(error, Wanted("model", revision=revision, otherwise=hint))
    if reason is None and any(isinstance(cause, EntryNotFoundError) for cause in causes(error)):
        reason = "lacks a file that a safetensors checkpoint has"
    if reason is None and what == _TOKENIZER:
        reason = tokenizer_reason(error)
    return reason or f"{what}cannot be loaded ({error_line(error)})"
