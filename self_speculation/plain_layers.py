"""PlainLayer: a Llama layer of ordinary parts, computed without calling each part as a module.

In small models the calls of modules take as long as their arithmetic. Any other layer runs as
transformers has it. Parts are read once: what is put in or hooked later has no effect.

Shapes: T new tokens, S cached tokens, D hidden, H heads, G query heads that share a key/value head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_WIDENING = ("gate_proj", "up_proj", "down_proj")


def plain(layer: Any) -> Any:
    """Return the layer as a `PlainLayer`, or itself if one of its parts is not ordinary."""
    return PlainLayer(layer) if _is_plain(layer) else layer


def _is_plain(layer: Any) -> bool:
    if type(layer) is not LlamaDecoderLayer:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    linears = [getattr(attention, name, None) for name in _PROJECTIONS]
    linears += [getattr(mlp, name, None) for name in _WIDENING]
    norms = [getattr(layer, name) for name in _NORMS]
    # A hook, of accelerate or of a patch, must run; so must a part that another library put in.
    return (
        type(attention) is LlamaAttention
        and type(mlp) is LlamaMLP
        and type(mlp.act_fn) is type(ACT2FN["silu"])
        and attention.config._attn_implementation == "sdpa"
        and all(type(linear) is nn.Linear for linear in linears)
        and all(type(norm) is LlamaRMSNorm for norm in norms)
        and not any(
            part.training or "forward" in vars(part) or any(getattr(part, name) for name in _HOOKS)
            for part in layer.modules()
        )
    )


class PlainLayer:
    """Calls as a `DecoderLayer` does; shares the weights of the layer that it was made of."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._place = attention
        self._size, self._scaling = attention.head_dim, attention.scaling
        self._shared = attention.num_key_value_groups
        self._norms = [(norm.weight, norm.variance_epsilon) for norm in _parts(layer, _NORMS)]
        linears = [*_parts(attention, _PROJECTIONS), *_parts(mlp, _WIDENING)]
        self._linears = [(linear.weight, linear.bias) for linear in linears]

    def __call__(
        self,
        states_1TD: Tensor,
        /,
        *,
        attention_mask: Tensor | None,
        past_key_values: Any,
        use_cache: bool,
        position_embeddings: tuple[Tensor, Tensor],
    ) -> Tensor:
        query, key, value, out, gate, up, down = self._linears
        before, after = self._norms
        inputs_1TD = _normed(states_1TD, *before)
        heads = (*states_1TD.shape[:2], -1, self._size)
        query_1HTD, key_1HTD, value_1HTD = (
            F.linear(inputs_1TD, *linear).view(heads).transpose(1, 2)
            for linear in (query, key, value)
        )
        cosine, sine = (one[:, None] for one in position_embeddings)
        query_1HTD = _rotated(query_1HTD, cosine, sine)
        key_1HTD = _rotated(key_1HTD, cosine, sine)
        keys, values = past_key_values.update(key_1HTD, value_1HTD, self._place.layer_idx)
        mixed_1TD = self._attend(query_1HTD, keys, values, attention_mask)
        states_1TD = states_1TD + F.linear(mixed_1TD, *out)
        inputs_1TD = _normed(states_1TD, *after)
        wide_1TI = F.silu(F.linear(inputs_1TD, *gate)) * F.linear(inputs_1TD, *up)
        return states_1TD + F.linear(wide_1TI, *down)

    def _attend(
        self, query_1HTD: Tensor, keys_1HSD: Tensor, values_1HSD: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Return the attention, (1, T, H D). Query heads that share keys become further rows."""
        _, _, tokens, size = query_1HTD.shape
        causal = mask is None and tokens > 1
        if causal:
            keys_1HSD, values_1HSD = (
                one.repeat_interleave(self._shared, 1) for one in (keys_1HSD, values_1HSD)
            )
            rows_1HRD = query_1HTD
        else:
            rows_1HRD = query_1HTD.reshape(1, -1, self._shared * tokens, size)
            mask = mask if mask is None else mask.repeat(1, 1, self._shared, 1)
        out_1HRD = F.scaled_dot_product_attention(
            rows_1HRD, keys_1HSD, values_1HSD, mask, is_causal=causal, scale=self._scaling
        )
        out_1HTD = out_1HRD.reshape(1, -1, tokens, size)
        return out_1HTD.transpose(1, 2).reshape(1, tokens, -1)


def _parts(module: Any, names: tuple[str, ...]) -> list[Any]:
    return [getattr(module, name) for name in names]


def _normed(states_1TD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """Return transformers' norm: computed in float32, rounded, then multiplied."""
    if states_1TD.dtype == torch.float32:
        return F.rms_norm(states_1TD, weight_D.shape, weight_D, epsilon)
    normed_1TD = F.rms_norm(states_1TD.float(), weight_D.shape, None, epsilon)
    return weight_D * normed_1TD.to(states_1TD.dtype)


def _rotated(heads_1HTD: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads_1HTD.chunk(2, -1)
    return heads_1HTD * cosine + torch.cat((-second, first), -1) * sine
