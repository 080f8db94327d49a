"""Decoder layers for one token or a few, written so that the compiler makes few, fast loops.

A matrix product with few rows is bound by reading the weights once, in order. Library kernels do
not reach a CPU's bandwidth; from one sum of products per weight row, with all input rows inside,
the compiler makes a loop that streams the weights in their order.

Shapes: B sequences, T new tokens of each, S cached positions attended to (a bucket), H heads,
G query heads that share one key/value head, D hidden or head size, N and K rows and columns of a
weight.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

_ATTENTION, _PROMPT_ATTENTION = "static_rows", "static_prompt"
# More sums in one loop do not fit a CPU's registers, and the loop takes long to compile.
_MOST_SUMS = 32
# For more sequences the compiler vectorises some of the sums across weight rows, which is slow.
_MOST_SEQUENCES = 8
_SUMS_IN_REGISTERS = 12
_MOST_WEIGHT_ROWS = 4


class FewRowsLinear(nn.Linear):
    """A linear layer that reads every weight once for all of its input rows, if these are few."""

    def forward(self, input: Tensor) -> Tensor:
        rows_TK = input.reshape(-1, self.in_features)
        if len(rows_TK) > (_MOST_SUMS if len(input) == 1 else _MOST_SEQUENCES):
            return super().forward(input)
        out_TN = _products(rows_TK, self.weight)
        if self.bias is not None:
            out_TN = out_TN + self.bias
        return out_TN.reshape(*input.shape[:-1], self.out_features)


def _products(rows_TK: Tensor, weight_NK: Tensor) -> Tensor:
    """Return `rows @ weight.T`, (T, N), summed in float32 or better."""
    wide = _sum_dtype(weight_NK.dtype)
    rows_TK = _materialised(rows_TK.to(wide))
    # Several weight rows at a time hide the latency of the sums.
    weights = weight_NK.chunk(_weight_rows(len(rows_TK), weight_NK))
    sums = [
        torch.cat([(part * row_K).sum(-1, dtype=wide) for part in weights]) for row_K in rows_TK
    ]
    return torch.stack(sums).to(weight_NK.dtype)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.itemsize >= 4 else torch.float32


def _weight_rows(rows: int, weight_NK: Tensor) -> int:
    """Return how many weight rows a loop reads at a time: a power of two that divides N."""
    widest = _MOST_WEIGHT_ROWS if weight_NK.element_size() < 4 else _MOST_WEIGHT_ROWS // 2
    together = min(widest, max(1, _SUMS_IN_REGISTERS // rows))
    while weight_NK.shape[0] % together or together & (together - 1):
        together -= 1
    return together


def _materialised(tensor: Tensor) -> Tensor:
    """Force the values into memory; fused, the compiler would recompute them for every sum."""
    tensor = tensor.contiguous()
    return torch.as_strided(tensor, tensor.shape, tensor.stride())


def attend(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    visible_BTS: Tensor,
    scaling: float,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Return the attention of new tokens to a bucket, (B, T, H, D), as transformers calls it.

    Query heads that share keys and values become further rows, R = G T, so nothing is repeated.
    Values that no token may see are multiplied by zero, so they must be finite.
    """
    sequences, heads, tokens, size = query_BHTD.shape
    shared = heads // key_BHSD.shape[1]
    query_BHRD = query_BHTD.reshape(sequences, -1, shared * tokens, size)
    visible_B1RS = visible_BTS.repeat(1, shared, 1)[:, None]
    if query_BHTD.device.type == "cpu" and shared * tokens <= _MOST_SUMS:
        out_BHRD = _attend_by_rows(query_BHRD, key_BHSD, value_BHSD, visible_B1RS, scaling)
    else:
        out_BHRD = F.scaled_dot_product_attention(
            query_BHRD, key_BHSD, value_BHSD, visible_B1RS, scale=scaling
        )
    return out_BHRD.reshape(sequences, heads, tokens, size).transpose(1, 2).contiguous(), None


def _attend_by_rows(
    query_BHRD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, visible_B1RS: Tensor, scaling: float
) -> Tensor:
    wide = _sum_dtype(query_BHRD.dtype)
    query_BHRD = _materialised(query_BHRD.to(wide) * scaling)
    rows = range(query_BHRD.shape[2])
    scores = [(key_BHSD * query_BHRD[:, :, r, None]).sum(-1, dtype=wide) for r in rows]
    scores_BHRS = torch.stack(scores, 2).masked_fill(~visible_B1RS, -torch.inf)
    probs_BHRS = _materialised(scores_BHRS.softmax(-1))
    out = [(value_BHSD * probs_BHRS[:, :, r, :, None]).sum(2, dtype=wide) for r in rows]
    return torch.stack(out, 2).to(value_BHSD.dtype)


def attend_within(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1HTD: Tensor,
    value_1HTD: Tensor,
    _: None,
    scaling: float,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Return the causal attention of a prompt's tokens, (1, T, H, D), as transformers calls it."""
    shared = query_1HTD.shape[1] // key_1HTD.shape[1]
    keys, values = (one.repeat_interleave(shared, 1) for one in (key_1HTD, value_1HTD))
    out_1HTD = F.scaled_dot_product_attention(
        query_1HTD, keys, values, is_causal=True, scale=scaling
    )
    return out_1HTD.transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, attend)
AttentionInterface.register(_PROMPT_ATTENTION, attend_within)


class _Slot:
    """One layer's keys and values, (B, S, H, D), with the `update` of a cache."""

    def __init__(self, keys: Tensor, values: Tensor, positions_BT: Tensor) -> None:
        self._buffers = keys, values
        sequences_B = torch.arange(len(positions_BT), device=positions_BT.device)
        self._places = sequences_B[:, None], positions_BT

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        for buffer, new in zip(self._buffers, (key, value), strict=True):
            # Written through a transposed view, the compiler would copy the whole buffer.
            buffer[self._places] = new.transpose(1, 2)
        return tuple(buffer.transpose(1, 2) for buffer in self._buffers)


class LayerBlock(nn.Module):
    """One decoder layer over T tokens of B sequences; its cache and positions are inputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = static_view(layer)

    def forward(
        self,
        states_BTD: Tensor,
        visible_BTS: Tensor,
        cosine: Tensor,
        sine: Tensor,
        positions_BT: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        return self.layer(
            states_BTD,
            attention_mask=visible_BTS,
            past_key_values=_Slot(keys, values, positions_BT),
            use_cache=True,
            position_embeddings=(cosine, sine),
        )


class PromptBlock(nn.Module):
    """One decoder layer over the first T tokens of a sequence, for any T from 2 on.

    The tokens attend to each other alone; their keys and values go to the beginning of the cache.
    """

    @staticmethod
    def most_tokens(inputs: list[Tensor]) -> int:
        """Return how many tokens the cache has room for."""
        return inputs[-1].shape[1]

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = static_view(layer, _PROMPT_ATTENTION)

    def forward(
        self, states_1TD: Tensor, cosine: Tensor, sine: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        return self.layer(
            states_1TD,
            attention_mask=None,
            past_key_values=_Beginning(keys, values),
            use_cache=True,
            position_embeddings=(cosine, sine),
        )


class _Beginning:
    """The beginning of one layer's keys and values, (1, S, H, D), with the `update` of a cache."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._buffers = keys, values

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        for buffer, new in zip(self._buffers, (key, value), strict=True):
            buffer[:, : new.shape[2]] = new.transpose(1, 2)
        return key, value


class HeadBlock(nn.Module):
    """Norm and head: from states (1, T, D) to logits (T, V)."""

    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm = static_view(norm)
        self.head = static_view(head)

    def forward(self, states_1TD: Tensor) -> Tensor:
        return self.head(self.norm(states_1TD))[0]


def static_view(module: nn.Module, attention: str = _ATTENTION) -> Any:
    """Return a copy that shares the parameters and is the same for all layers of a kind.

    The module itself does not change, because all other uses need it.
    """
    view: Any = copy.copy(module)
    parts = module._modules.items()
    view._modules = {name: static_view(part, attention) for name, part in parts if part is not None}
    if hasattr(module, "layer_idx"):
        view.layer_idx = 0
    if hasattr(module, "config"):
        view.config = copy.copy(module.config)
        view.config._attn_implementation = attention
    few = attention == _ATTENTION
    if few and type(module) is nn.Linear and module.weight.device.type == "cpu":
        view.__class__ = FewRowsLinear
    return view
