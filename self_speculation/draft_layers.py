"""A drafter's layers: those that it shares with the model, and the model's states of the others.

Shapes: T tokens, D hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def count_shared(layers: Sequence[nn.Module], draft_layers: Sequence[nn.Module]) -> int:
    """Return how many leading layers are the same modules in the model and in its drafter."""
    pairs = zip(layers, draft_layers, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one is not other), len(draft_layers))


class Backlog:
    """States of tokens that the drafter's own layers have not seen yet, after the shared layers.

    `seen` counts the tokens of the sequence that they have seen; the states are those of the tokens
    that follow.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._states: list[Tensor] = []

    @property
    def length(self) -> int:
        """Number of tokens that were seen or wait."""
        return self.seen + sum(states.shape[1] for states in self._states)

    def add(self, states_1TD: Tensor, start: int) -> None:
        """Add the states of a sequence's tokens from position `start` on, without known tokens."""
        assert start <= self.length, f"tokens {self.length} to {start} are missing"
        self._states.append(states_1TD[:, self.length - start :])

    def take(self) -> Tensor:
        """Return all states, (1, T, D), whose tokens then count as seen."""
        states_1TD = torch.cat(self._states, dim=1)
        self.seen, self._states = self.length, []
        return states_1TD

    def cut(self, length: int) -> None:
        """Forget all tokens after the first `length` of the sequence."""
        self.seen = min(self.seen, length)
        waiting = length - self.seen
        if self._states:
            self._states = [torch.cat(self._states, dim=1)[:, :waiting]] if waiting else []
