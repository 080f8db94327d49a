"""Muon whose iteration takes matrices of one shape together.

A small matrix keeps few cores busy for a short time: one by one, the matrices of a small model take
a fifth of a training step. Processors that multiply bfloat16 in software only, which takes a
hundred times as long, iterate in float32.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon

_MOST_ELEMENTS = 2**24  # in one stack: larger matrices keep all cores busy one by one


class BatchedMuon(Muon):
    """torch's Muon, with the same settings and states.

    The learning rate is scaled by √max(1, rows / columns), torch's default. Raises `ValueError` for
    another `adjust_lr_fn`.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        scale = self.defaults["adjust_lr_fn"]
        if scale not in (None, "original"):
            raise ValueError(f"adjust_lr_fn {scale!r}: only 'original' is computed")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all matrices that have a gradient; return the closure's loss, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_kind: dict[tuple, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_kind[matrix.shape, matrix.device, matrix.dtype].append(matrix)
            for matrices in by_kind.values():
                at_once = max(1, _MOST_ELEMENTS // matrices[0].numel())
                for first in range(0, len(matrices), at_once):
                    self._update(matrices[first : first + at_once], group)
        return loss

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        wanted = torch.stack([self._direction(matrix, group) for matrix in matrices])
        is_fast = multiplies_bfloat16(wanted.device)
        found = orthogonalized(
            wanted.to(torch.bfloat16 if is_fast else torch.float32),
            *(group[name] for name in ("ns_coefficients", "ns_steps", "eps")),
        )
        rows, columns = matrices[0].shape
        rate = group["lr"] * max(1, rows / columns) ** 0.5
        for matrix, update in zip(matrices, found, strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(update, alpha=-rate)

    def _direction(self, matrix: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the gradient with its momentum, which is kept."""
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum


def orthogonalized(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Return U S V^T with S near 1 for each matrix U Z V^T, by Newton-Schulz iterations."""
    rows, columns = matrices.shape[-2:]
    wide = matrices.mT if rows > columns else matrices
    found = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=eps)
    a, b, c = coefficients
    for _ in range(steps):
        gram = found @ found.mT
        change = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.baddbmm(found, change, found, beta=a)
    return found.mT if rows > columns else found


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
