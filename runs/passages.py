"""Passages for teacher-forced passes: a reference behind its prompt, or windows of a text."""

from dataclasses import dataclass
from typing import Any

from arguments.measuring import MeasureArguments
from arguments.run import RunArguments
from command_line.errors import UsageError, reject
from data import Selection
from models.checkpoint import Checkpoint
from models.tokens import continuation_ids
from runs.prompt_encoding import check_embedded
from self_speculation.llama_model_utils import position_limit
from self_speculation.output_text import OutputText


@dataclass(frozen=True)
class Passage:
    """Tokens of which those from index `first` on are predicted, each from all tokens before it.

    `first` is at least 1. The last token is predicted and not read.
    """

    ids: list[int]
    first: int

    @property
    def read(self) -> int:
        return len(self.ids) - 1

    @property
    def predicted(self) -> int:
        return len(self.ids) - self.first


@dataclass(frozen=True)
class ForcedText:
    """The passages that predict each token of a text once, and the UTF-8 bytes of these tokens.

    `is_cut`: the text exceeds the model's positions, and its end is not predicted.
    """

    passages: list[Passage]
    text_bytes: int
    is_cut: bool = False


def reference_text(
    checkpoint: Checkpoint, prompt: str, prompt_ids: list[int], reference: str, read_ids: list[int]
) -> ForcedText | None:
    """Return the reference behind `read_ids`, the part of the prompt that the model reads.

    The tokens are those with which a model would continue the prompt. A reference that exceeds the
    model's positions loses its end. Returns None if there is nothing to predict.
    """
    tokenizer = checkpoint.tokenizer
    ids = continuation_ids(tokenizer, prompt, prompt_ids, reference)
    check_embedded(checkpoint, ids)
    room = position_limit(checkpoint.config, len(read_ids)) - len(read_ids) + 1
    if not ids or room < 1:
        return None
    is_cut = len(ids) > room
    kept = OutputText(tokenizer, read_ids)(ids[:room]) if is_cut else reference
    passage = Passage(read_ids + ids[:room], len(read_ids))
    return ForcedText([passage], len(kept.encode()), is_cut)


def windows(ids: list[int], window: int, stride: int) -> list[Passage]:
    """Return passages of at most `window` read tokens that predict all tokens but the first once.

    The first passage predicts each token after its first. Every later passage begins `stride`
    tokens after the one before, and predicts the tokens that are new: `stride` of them, the last
    passage perhaps fewer. So each of these is predicted from `window - stride + 1` tokens or more.
    """
    passages, predicted, start = [], 1, 0
    while predicted < len(ids):
        end = min(start + window + 1, len(ids))
        passages.append(Passage(ids[start:end], predicted - start))
        predicted, start = end, start + stride
    return passages


def plain_text(
    measure: MeasureArguments, tokenizer: Any, text: str, ids: list[int]
) -> ForcedText | None:
    """Return the windows of a text with these tokens; None if there is nothing to predict.

    `--first_token skip` does not count the bytes of the first token, unless it ends inside a
    character.
    """
    text_bytes, flags = len(text.encode()), measure.windows()
    if flags["first_token"] == "bos":
        ids = [tokenizer.bos_token_id, *ids]
    else:
        first = OutputText(tokenizer)(ids[:1])
        text_bytes -= len(first.encode()) if text.startswith(first) else 0
    passages = windows(ids, flags["window"], flags["stride"])
    return ForcedText(passages, text_bytes) if passages else None


def encode_texts(checkpoint: Checkpoint, selection: Selection) -> list[list[int]]:
    """Return the tokens of plain texts, without any that the tokenizer adds.

    Raises `UsageError` for a text without tokens.
    """
    encoded = []
    for example in selection.examples:
        ids = checkpoint.tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
        if not ids:
            place = f"the text {example.example_id} has no token"
            raise UsageError(f"--dataset text: {place}; every text needs one")
        check_embedded(checkpoint, ids)
        encoded.append(ids)
    return encoded


def check_windows(arguments: RunArguments, checkpoint: Checkpoint) -> None:
    """Refuse windows of plain text that the model cannot read."""
    if not arguments.is_plain_text:
        return
    measure, limit = arguments.measure, position_limit(checkpoint.config)
    windows = measure.windows()
    if windows["window"] > limit:
        reject("window", windows["window"], f"the model has {limit} positions")
    if windows["first_token"] != "bos":
        return
    first = checkpoint.tokenizer.bos_token_id
    if first is None:
        allowed = f"the tokenizer of {checkpoint.name} has no first token; use --first_token skip"
        reject("first_token", "bos", allowed)
    check_embedded(checkpoint, [first])
