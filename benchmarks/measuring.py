"""Prompts, seconds, quartiles and the law of speculation, for all benchmarks."""

import statistics
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from arguments.prompts import DataArguments
from benchmarks.order import in_turn
from data import get_data
from runs.speed_metrics import predicted_speedup
from self_speculation.timing import now

SEED = 42
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


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


def seconds_in_turn(
    device: torch.device, actions: dict[Key, Callable[[], Any]], turns: int
) -> dict[Key, list[float]]:
    """Return the seconds of each action, turn by turn."""
    seconds: dict[Key, list[float]] = {key: [] for key in actions}
    for turn in range(turns):
        for key in in_turn(list(actions), turn, turns):
            seconds[key].append(timed(device, actions[key])[0])
    return seconds


def quartiles(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles around it."""
    if len(values) < 2:
        return dict.fromkeys(("lower_quartile", "median", "upper_quartile"), values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"lower_quartile": low, "median": middle, "upper_quartile": high}


def law(plain: list[dict[str, Any]], drafting: list[dict[str, Any]]) -> dict[str, float]:
    """Return k, r, c and v of `predicted_speedup`, and the speed-up that they predict.

    Outputs hold the facts of a `Decoded`: those of plain decoding, and those of speculation, which
    must have drafted something.
    """
    drafted, accepted, rounds = (
        sum(made[key] or 0 for made in drafting) for key in ("drafted", "accepted", "rounds")
    )
    full = _mean_step(plain, "full")
    c, v = (_mean_step(drafting, name) / full for name in ("draft", "verify"))
    k, r = drafted / rounds, accepted / drafted
    return {"k": k, "r": r, "c": c, "v": v, "predicted": predicted_speedup(k, r, c, v)}


def _mean_step(outputs: list[dict[str, Any]], name: str) -> float:
    steps = [made["steps"][name] for made in outputs if name in made["steps"]]
    return sum(step["seconds"] for step in steps) / sum(step["calls"] for step in steps)
