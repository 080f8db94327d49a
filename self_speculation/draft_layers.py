"""The parts of a model that draft: layers, shared with the model or not, and a smaller head.

Shapes: T tokens, D hidden, N tokens of the draft vocabulary, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def count_shared(layers: Sequence[nn.Module], draft_layers: Sequence[nn.Module]) -> int:
    """Return how many leading layers are the same modules in the model and in its drafter."""
    pairs = zip(layers, draft_layers, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one is not other), len(draft_layers))


def rows_are_readable(head: nn.Module) -> bool:
    """Return whether the rows of a head are numbers at hand: it is not quantised or offloaded."""
    return type(head) is nn.Linear and not head.weight.is_meta and not hasattr(head, "_hf_hook")


class DraftHead:
    """The rows of a head for the only tokens that may be drafted (FR-Spec, arXiv 2502.14856).

    `linear` computes their logits, (..., N). Raises ValueError for a head whose rows are not
    readable.
    """

    def __init__(self, head: nn.Module, vocabulary: Sequence[int]) -> None:
        if not (isinstance(head, nn.Linear) and rows_are_readable(head)):
            raise ValueError(f"the rows of a head of class {type(head).__name__} cannot be read")
        weight_VD, bias_V = head.weight, head.bias
        self._size = head.out_features
        self._ids_N = torch.tensor(vocabulary, device=weight_VD.device)
        if weight_VD.is_contiguous():
            rows_ND = weight_VD.index_select(0, self._ids_N)
        else:  # stored column by column, for speed
            rows_ND = weight_VD.t().index_select(1, self._ids_N).t()
        self.linear = nn.Linear(head.in_features, len(vocabulary), bias_V is not None, "meta")
        self.linear.weight = nn.Parameter(rows_ND, requires_grad=False)
        if bias_V is not None:
            bias_N = bias_V.index_select(0, self._ids_N)
            self.linear.bias = nn.Parameter(bias_N, requires_grad=False)

    def over_all(self, logits_TN: Tensor) -> Tensor:
        """Return logits of all tokens, (T, V): no other token can be drafted."""
        logits_TV = logits_TN.new_full((len(logits_TN), self._size), -torch.inf)
        return logits_TV.index_copy_(1, self._ids_N.to(logits_TN.device), logits_TN)


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
