"""What is done where memory may not suffice for all of it."""

from collections.abc import Callable
from typing import TypeVar

import torch

from arguments.generation import GenerationArguments
from command_line.errors import FailedError, is_out_of_memory
from runs.definition import RunDefinition
from runs.encoding import EncodedExample
from self_speculation.llama_model_utils import position_limit

_Made = TypeVar("_Made")


def within_memory(work: Callable[[], _Made]) -> _Made | None:
    """What the work yields; None where memory does not suffice, and what it held is free again."""
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Only here, where the error with its frames is gone, are their tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def made_to_fit(sizes: list[int], make: Callable[[int], _Made]) -> _Made | None:
    """What is made of the largest of these ascending sizes for which memory suffices.

    None where it suffices for none. Mostly the first attempt, at the largest, is the only one;
    else the largest that fits is found by halving, and made once more at the end.
    """
    if not sizes:
        return None
    made = within_memory(lambda: make(sizes[-1]))
    if made is not None:
        return made
    fitting, failing = 0, len(sizes) - 1
    while fitting < failing:
        middle = (fitting + failing) // 2
        # What was made goes at once: two would not fit together.
        if within_memory(lambda size=sizes[middle]: make(size) is not None):
            fitting = middle + 1
        else:
            failing = middle
    return within_memory(lambda: make(sizes[fitting - 1])) if fitting else None


def fitted_to_memory(
    definition: RunDefinition,
    encoded: list[EncodedExample],
    flags: GenerationArguments,
    make: Callable[[int, list[int]], _Made],
) -> _Made:
    """What is made for the longest prompt for which memory suffices, given a prompt to warm up.

    Raises `FailedError` where it suffices for none.
    """
    prompts = [item.prompt_ids for item in encoded if item.prompt_ids]
    longest = {positions_for(definition, flags, ids): len(ids) for ids in sorted(prompts, key=len)}

    def make_for(positions: int) -> _Made:
        fitting = (ids for ids in prompts if positions_for(definition, flags, ids) <= positions)
        return make(longest[positions], next(fitting))

    made = made_to_fit(sorted(longest), make_for)
    if made is None:
        raise FailedError(
            f"--model {definition.arguments.model.model}: out of memory with any prompt"
        )
    return made


def positions_for(
    definition: RunDefinition, flags: GenerationArguments, prompt_ids: list[int]
) -> int:
    """The tokens for which a cache must have room to decode the prompt."""
    return min(len(prompt_ids) + flags.max_steps, position_limit(definition.checkpoint.config))
