"""Compare two greedy outputs: equal, different by rounding, or wrong.

Kernels for one row and for several rows add in different orders, so two correct decoders of one
model may differ where the logits of two tokens are almost equal.
"""

import math
from dataclasses import dataclass

import torch

from self_speculation.model_protocol import Llama
from self_speculation.offloading import input_device

# Largest gap between two logits that rounding explains. Half precision rounds so coarsely that no
# gap tells rounding from a mistake.
TIE_GAPS = {torch.float32: 1e-3, torch.float64: 1e-9}


@dataclass(frozen=True)
class Difference:
    """The first position at which two outputs differ, and the gap of the two tokens' logits there.

    `logit_gap` is infinite if one output ends before the other.
    """

    position: int
    logit_gap: float


def verdict(difference: Difference | None, dtype: torch.dtype) -> str:
    """Return equal, tie or wrong; different in half precision, which proves nothing."""
    if difference is None:
        return "equal"
    if dtype not in TIE_GAPS:
        return "different"
    return "tie" if difference.logit_gap <= TIE_GAPS[dtype] else "wrong"


def ties_allowed(tokens: int) -> int:
    """Return how many ties are accepted among generated tokens: one per 10,000, at least one."""
    return max(1, tokens // 10_000)


@torch.inference_mode()
def first_difference(
    model: Llama, prompt_ids: list[int], one_ids: list[int], other_ids: list[int]
) -> Difference | None:
    """Return the first difference between two outputs of one prompt; None if they are equal.

    One uncached pass of transformers over the prompt and the common prefix measures the gap.
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
