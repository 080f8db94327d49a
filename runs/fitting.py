"""Uses memory for as much as it suffices for."""

import bisect
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from arguments.generation import GenerationArguments
from command_line.errors import FailedError, is_out_of_memory
from runs.definition import RunDefinition
from runs.encoding import EncodedExample
from runs.preparation import positions_for

_Made = TypeVar("_Made")


def within_memory(work: Callable[[], _Made]) -> _Made | None:
    """Return the work's result; None if memory runs out, after freeing what the work held."""
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Free the cache after the except block: until then the traceback keeps the tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def made_to_fit(sizes: list[int], make: Callable[[int], _Made]) -> _Made | None:
    """Make the largest of these ascending sizes for which memory suffices; None if no size fits.

    Usually the largest size fits at the first attempt. If not, bisect for the largest size that
    fits, and make it once more at the end.
    """

    def fits(size: int) -> bool:
        # Returns no object: two of them would not fit together.
        return within_memory(lambda: make(size) is not None) or False

    if not sizes:
        return None
    made = within_memory(lambda: make(sizes[-1]))
    if made is not None:
        return made
    # As a sorted list, "does not fit" is False for all sizes that fit, then True.
    fitting = bisect.bisect(sizes, False, hi=len(sizes) - 1, key=lambda size: not fits(size))
    return within_memory(lambda: make(sizes[fitting - 1])) if fitting else None


def fitted_to_memory(
    definition: RunDefinition,
    encoded: list[EncodedExample],
    flags: GenerationArguments,
    make: Callable[[int, list[int]], _Made],
    needed: Callable[[EncodedExample], int] | None = None,
) -> _Made:
    """Call `make` with the tokens of the longest prompt that fits, and a prompt to warm up with.

    `needed` returns the tokens of an example's longest prompt; by default its only one. Raises
    `FailedError` if memory suffices for no prompt.
    """
    prompts = [item.prompt_ids for item in encoded if item.prompt_ids]
    lengths = map(needed or _prompt_tokens, (item for item in encoded if item.prompt_ids))
    needs = partial(positions_for, definition.checkpoint.config, flags)
    longest = {needs(length): length for length in sorted(lengths)}

    def make_for(positions: int) -> _Made:
        fitting = (ids for ids in prompts if needs(len(ids)) <= positions)
        return make(longest[positions], next(fitting))

    made = made_to_fit(sorted(longest), make_for)
    if made is None:
        raise FailedError(
            f"--model {definition.arguments.model.model}: out of memory with any prompt"
        )
    return made


def _prompt_tokens(item: EncodedExample) -> int:
    return len(item.prompt_ids or [])
