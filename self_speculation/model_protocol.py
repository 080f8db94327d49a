"""The parts of a model that the engine uses: transformers' Llama, and families of the same shape.

Shapes: T new tokens, D hidden.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class HasParameters(Protocol):
    """A model, or one of its modules."""

    def parameters(self) -> Iterator[nn.Parameter]: ...


class ModelConfig(Protocol):
    """The settings that the engine reads; `rope_parameters` and `sliding_window` are optional."""

    num_hidden_layers: int
    max_position_embeddings: int
    _attn_implementation: str

    def to_dict(self) -> dict[str, Any]: ...


class DecoderLayer(Protocol):
    """One layer: new states in, new states out.

    `past_key_values.update` takes the layer's new keys and values and returns all to attend to.
    """

    def __call__(
        self,
        states_1TD: Tensor,
        /,
        *,
        attention_mask: Tensor | None,
        past_key_values: Any,
        use_cache: bool,
        position_embeddings: tuple[Tensor, Tensor],
    ) -> Tensor: ...


class Decoder(Protocol):
    """Embeddings, layers and the last norm. Every layer is a `DecoderLayer`.

    A layer's attention is its `self_attn`, whose `layer_idx` is the layer's place in the cache.
    """

    layers: nn.ModuleList

    @property
    def embed_tokens(self) -> nn.Module: ...
    @property
    def norm(self) -> nn.Module: ...
    @property
    def rotary_emb(self) -> nn.Module: ...
    def __call__(self, **inputs: Any) -> Any: ...


class Llama(HasParameters, Protocol):
    """A decoder and its language-model head, as `AutoModelForCausalLM` loads them.

    torch types any part of a module as a tensor or a module; see `decoder_of`.
    """

    @property
    def config(self) -> ModelConfig: ...
    @property
    def generation_config(self) -> Any: ...
    @property
    def model(self) -> Any: ...
    @property
    def lm_head(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    def get_input_embeddings(self) -> nn.Module: ...
    def __call__(self, **inputs: Any) -> Any: ...


def decoder_of(model: Llama) -> Decoder:
    """Return the model without its head."""
    return model.model
