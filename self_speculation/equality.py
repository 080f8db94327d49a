"""Whether two greedy outputs are the same, or differ only where rounding decides.

Kernels for one row and for several add in another order, so two correct decoders of one model may
part where two tokens' logits all but coincide.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from self_speculation.offloading import input_device

# How far apart two logits may be for rounding to decide between them. Where a dtype has none, its
# rounding is so coarse that no gap tells it from a mistake.
TIE_GAPS = {torch.float32: 1e-3, torch.float64: 1e-9}


@dataclass(frozen=True)
class Difference:
    """Where two outputs part, and how far apart the model holds the two tokens' logits there.

    `logit_gap` is infinite where one output simply ends before the other.
    """

    position: int
    logit_gap: float


def verdict(difference: Difference | None, dtype: torch.dtype) -> str:
    """What a difference between two outputs means: equal, tie or wrong.

    In half precision a difference proves nothing, and is called different.
    """
    if difference is None:
        return "equal"
    if dtype not in TIE_GAPS:
        return "different"
    return "tie" if difference.logit_gap <= TIE_GAPS[dtype] else "wrong"


def ties_allowed(tokens: int) -> int:
    """How many ties so many generated tokens may hold: one in 10,000, and one in fewer."""
    return max(1, tokens // 10_000)


@torch.inference_mode()
def first_difference(
    model: nn.Module, prompt_ids: list[int], one_ids: list[int], other_ids: list[int]
) -> Difference | None:
    """The first position at which two outputs of one prompt differ; None where they are equal.

    The gap is that of one uncached pass of transformers' own over prompt and common prefix.
    """
    if one_ids == other_ids:
        return None
    pairs = enumerate(zip(one_ids, other_ids, strict=False))
    position = next((i for i, (one, other) in pairs if one != other), None)
    if position is None:
        return Difference(min(len(one_ids), len(other_ids)), math.inf)
    ids = torch.tensor([prompt_ids + one_ids[:position]], device=input_device(model))
    logits_V = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
    gap = (logits_V[one_ids[position]] - logits_V[other_ids[position]]).abs()
    return Difference(position, float(gap))
