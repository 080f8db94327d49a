"""AdamW for all weights, or Muon for the layers' matrices and AdamW for the others."""

import math
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import AdamW, Optimizer

from training.arguments import OptimizationArguments
from training.muon import BatchedMuon

_BETAS = (0.9, 0.98)


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name; a tied one occurs once."""
    return {name: item for name, item in model.named_parameters() if item.requires_grad}


def make_adamw(model: nn.Module, flags: OptimizationArguments) -> list[Optimizer]:
    """Return AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) for all that learns."""
    return [_adamw(learning(model).values(), flags)]


def make_muon(model: nn.Module, flags: OptimizationArguments) -> list[Optimizer]:
    """Return Muon (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982) and an AdamW.

    Muon's update of a matrix has singular values near 1, whatever the gradient's size.
    """
    items = learning(model)
    matrices = {name: p for name, p in items.items() if p.ndim == 2 and ".layers." in name}
    others = [item for name, item in items.items() if name not in matrices]
    rate, decay = flags.muon_learning_rate, flags.weight_decay
    muon = BatchedMuon(matrices.values(), lr=rate, weight_decay=decay)
    return [muon, *([_adamw(others, flags)] if others else [])]


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimizationArguments], list[Optimizer]]] = {
    "adamw": make_adamw,
    "muon": make_muon,
}


def _adamw(parameters: Iterable[nn.Parameter], flags: OptimizationArguments) -> Optimizer:
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": flags.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, lr=flags.learning_rate, betas=_BETAS, fused=True)


def set_learning_rates(optimizers: list[Optimizer], factor: float) -> None:
    """Set every rate to its peak times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * factor


def warm_up_and_cosine(step: int, total_steps: int, warmup_steps: int) -> float:
    """Return a step's learning rate as a share of its peak: a rise, then half a cosine to 0."""
    warm = min(1.0, (step + 1) / (warmup_steps + 1))
    return warm * 0.5 * (1 + math.cos(math.pi * step / total_steps))
