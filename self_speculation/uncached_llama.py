"""UncachedLlama: whole sequences of a batch through any of a Llama's layers, without a cache.

Padding follows the tokens of a sequence. No token attends to what follows it, so that one causal
mask serves sequences of all lengths.

Shapes: B sequences, T tokens, N positions whose logits are read, D hidden, V vocabulary.
"""

from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from self_speculation.model_protocol import Llama, decoder_of
from self_speculation.offloading import input_device

_HEAD_ELEMENTS = 1 << 24  # logits of a model that are held at a time


class UncachedLlama:
    """The parts of a model, to be run over whole sequences; layers are named by the caller.

    The layers may be others than the model's own, such as layers that were pruned from it.
    """

    def __init__(self, model: Llama) -> None:
        self._decoder = decoder_of(model)
        self._head = model.lm_head
        self._attention = model.config._attn_implementation
        self.device = input_device(model)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Return the states before the first layer, (B, T, D)."""
        return self._decoder.embed_tokens(ids_BT)

    def run(self, states_BTD: Tensor, layers: Iterable[nn.Module]) -> Tensor:
        """Run sequences that begin at position 0 through the layers."""
        return reduce(lambda _, after: after, self.after_each(states_BTD, layers), states_BTD)

    def after_each(self, states_BTD: Tensor, layers: Iterable[nn.Module]) -> Iterator[Tensor]:
        """Yield the states after each layer, of sequences that begin at position 0."""
        positions_1T = torch.arange(states_BTD.shape[1], device=states_BTD.device)[None]
        rotary = self._decoder.rotary_emb(states_BTD, position_ids=positions_1T)
        # A decoder layer of transformers, as `DecoderLayer` describes it.
        how: dict[str, Any] = {"attention_mask": self._mask(states_BTD), "use_cache": False}
        for layer in layers:
            states_BTD = layer(states_BTD, past_key_values=None, position_embeddings=rotary, **how)
            yield states_BTD

    def log_probabilities(self, states_ND: Tensor) -> Tensor:
        """Return the next token's log-probabilities, (N, V), in float32 or better."""
        logits_NV = self._head(self._decoder.norm(states_ND)).to(self.device)
        precise = torch.promote_types(logits_NV.dtype, torch.float32)
        return logits_NV.to(precise).log_softmax(-1)

    def parts(self, count: int) -> Iterator[slice]:
        """Yield slices of `count` positions whose logits are held at a time."""
        size = max(1, _HEAD_ELEMENTS // self._head.out_features)
        for first in range(0, count, size):
            yield slice(first, first + size)

    def _mask(self, states_BTD: Tensor) -> Tensor | None:
        """Return the causal mask of eager attention; other kernels mask by themselves."""
        if self._attention != "eager":
            return None
        count = states_BTD.shape[1]
        visible_TT = torch.ones(count, count, dtype=torch.bool, device=states_BTD.device).tril()
        hidden_TT = torch.zeros_like(visible_TT, dtype=states_BTD.dtype)
        return hidden_TT.masked_fill(~visible_TT, -torch.inf)[None, None]
