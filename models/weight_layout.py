"""The memory layout of weights, which decides how fast a CPU reads them for a single token."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def favour_single_rows(model: nn.Module) -> None:
    """Store the weights of widening linear layers column by column, without changing values.

    MKL then multiplies a single float32 row 1.4 to 1.9 times as fast in the shapes of a Llama's
    gate, up and head, and prompts about as fast as before. Other layers, dtypes and libraries
    would become slower and stay as they are.
    """
    for module in model.modules():
        if type(module) is nn.Linear and _gains(module.weight):
            module.weight.data = module.weight.data.t().contiguous().t()


@contextmanager
def stored_by_rows(model: nn.Module) -> Iterator[None]:
    """Store every weight row by row inside the block, as code that writes checkpoints demands."""
    turned = [
        module.weight
        for module in model.modules()
        if type(module) is nn.Linear and not module.weight.is_contiguous()
    ]
    for weight in turned:
        weight.data = weight.data.contiguous()
    try:
        yield
    finally:
        for weight in turned:
            weight.data = weight.data.t().contiguous().t()


def _gains(weight_NK: torch.Tensor) -> bool:
    return (
        weight_NK.shape[0] > weight_NK.shape[1]
        and weight_NK.dtype == torch.float32
        and weight_NK.device.type == "cpu"
        and torch.backends.mkl.is_available()
    )
