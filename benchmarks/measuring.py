"""Prompts, turns, seconds and quartiles of the benchmarks."""

import statistics
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from arguments.prompts import DataArguments
from data import get_data
from self_speculation.timing import now

SEED = 42
Item = TypeVar("Item")


def human_eval(count: int) -> DataArguments:
    """Return the flags of the first examples of human_eval, in their order."""
    return DataArguments(num_samples=count, random_shuffle=False)


def human_eval_prompts(count: int, tokenizer: Any) -> list[list[int]]:
    """Return the token ids of the first prompts of human_eval."""
    examples = get_data(human_eval(count), SEED).examples
    return [tokenizer(example.prompt)["input_ids"] for example in examples]


def timed(device: torch.device, action: Callable[[], Item]) -> tuple[float, Item]:
    """Return seconds and result of the action."""
    begin = now(device)
    result = action()
    return now(device) - begin, result


def in_turn(sides: list[Item], turn: int, turns: int) -> list[Item]:
    """Return the sides in the order of this turn.

    Over all turns, each side is first, last and between others as evenly as their numbers allow.
    Every other turn runs backwards, so that no side always follows the same one.
    """
    start = turn * len(sides) // turns
    return (sides[start:] + sides[:start])[:: -1 if turn % 2 else 1]


def quartiles(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles around it."""
    if len(values) < 2:
        return dict.fromkeys(("lower_quartile", "median", "upper_quartile"), values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"lower_quartile": low, "median": middle, "upper_quartile": high}
