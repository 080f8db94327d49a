"""The LayerSkip recipe as numbers: dropout rates of layers and weights of exits.

Elhoushi et al. 2024 (arXiv 2404.16710), section 4.1. Layers l are 0-based, L of them; exit layer
l + 1 reads the output of layer l. `progress` is t / (T - 1) at step t of T: from 0 to 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from command_line.errors import reject
from command_line.flags import check_least, flag

# S(t): the share of the dropout's final rate.
DROPOUT_CURRICULA: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "exponential": lambda progress: math.exp(progress * math.log(2)) - 1,
}


def paper_weight(layer: int, layers: int, scale: float) -> float:
    """Return e(l): 0 + 1 + ... + l, scaled; the last layer's weight, unscaled, stays above all."""
    if layer < layers - 1:
        return scale * layer * (layer + 1) / 2
    return layers - 1 + scale * (layers - 2) * (layers - 1) / 2


def uniform_weight(layer: int, layers: int, scale: float) -> float:
    """Return the same for every early exit, 1 for the last layer."""
    return scale if layer < layers - 1 else 1.0


EARLY_EXIT_WEIGHTS: dict[str, Callable[[int, int, float], float]] = {
    "paper": paper_weight,
    "uniform": uniform_weight,
}


@dataclass(frozen=True)
class Moment:
    """A step of training, counted from 0."""

    step: int
    total_steps: int

    @property
    def progress(self) -> float:
        return self.step / max(self.total_steps - 1, 1)


def all_exits(layers: int, moment: Moment, interval: int) -> list[int]:
    """Return every layer, at every step."""
    return list(range(layers))


def rotational(layers: int, moment: Moment, interval: int) -> list[int]:
    """Return C_rot: every `interval`-th layer, moving on by one with every step."""
    return [layer for layer in range(layers) if (layer - moment.step) % interval == 0]


def gradual(layers: int, moment: Moment, interval: int) -> list[int]:
    """Return C_grad: layers from the last down, one more with every T / 2L steps."""
    joined = moment.step * 2 * layers // moment.total_steps
    return list(range(max(layers - 1 - joined, 0), layers))


EARLY_EXIT_CURRICULA: dict[str, Callable[[int, Moment, int], list[int]]] = {
    "none": all_exits,
    "rotational": rotational,
    "gradual": gradual,
}


@dataclass(frozen=True)
class Recipe:
    """The LayerSkip recipe."""

    max_layer_dropout: float = flag(
        0.1, "share of sequences that skip the last layer; exponentially fewer skip earlier ones"
    )
    layer_dropout_curriculum: str = flag(
        "constant",
        "constant: for continual training; exponential: the rate grows from 0 as training goes, "
        "for training from scratch",
        tuple(DROPOUT_CURRICULA),
    )
    early_exit_scale: float = flag(0.2, "weight of the early exits' losses beside the last layer's")
    early_exit_weights: str = flag(
        "paper",
        "paper: later exits weigh more, by the square of their depth; uniform: equal weights",
        tuple(EARLY_EXIT_WEIGHTS),
    )
    early_exit_curriculum: str = flag(
        "rotational",
        "exits that learn at a step: rotational: every --rotation_interval-th, in turn; gradual: "
        "from the last down, all after half of the training; none: all",
        tuple(EARLY_EXIT_CURRICULA),
    )
    rotation_interval: int = flag(8, "rotational: layers from one learning exit to the next")

    def check(self) -> None:
        if not 0 <= self.max_layer_dropout < 1:
            reject("max_layer_dropout", self.max_layer_dropout, "must be in [0, 1)")
        check_least(self, early_exit_scale=0, rotation_interval=1)

    def dropout_rates(self, layers: int, progress: float) -> list[float]:
        """Return p(l, t) = S(t) D(l) p_max for every layer; D(l) = exp(l ln 2 / (L - 1)) - 1."""
        now = DROPOUT_CURRICULA[self.layer_dropout_curriculum](progress) * self.max_layer_dropout
        step = math.log(2) / max(layers - 1, 1)
        return [now * (math.exp(layer * step) - 1) for layer in range(layers)]

    def exit_weights(self, layers: int, moment: Moment) -> dict[int, float]:
        """Return the exit layers that learn at this step, 1 to L, with their shares of the loss.

        Shares are above 0 and sum to 1. The last layer always learns.
        """
        enabled = EARLY_EXIT_CURRICULA[self.early_exit_curriculum]
        weight = EARLY_EXIT_WEIGHTS[self.early_exit_weights]
        if layers == 1:
            return {1: 1.0}  # the paper's weight of a single layer would be 0
        learning = {*enabled(layers, moment, self.rotation_interval), layers - 1}
        weights = {
            layer + 1: weight(layer, layers, self.early_exit_scale) for layer in sorted(learning)
        }
        total = sum(weights.values())
        return {exit_layer: value / total for exit_layer, value in weights.items() if value > 0}
