"""How weights lie in memory, where that decides how fast a CPU reads them for a single token."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def favour_single_rows(model: nn.Module) -> None:
    """Stores the weights of widening linear layers column by column; every value stays.

    MKL multiplies one float32 row by them 1.4 to 1.9 times as fast so, in the shapes of a Llama's
    gate, up and head, and prompts about as fast as before. For layers that do not widen, and other
    dtypes or libraries, it is slower: those stay as they are.
    """
    for module in model.modules():
        if type(module) is nn.Linear and _gains(module.weight):
            module.weight.data = module.weight.data.t().contiguous().t()


@contextmanager
def stored_by_rows(model: nn.Module) -> Iterator[None]:
    """Lets every weight lie row by row inside, as what writes checkpoints demands."""
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
