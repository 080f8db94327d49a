"""CachedLlama: a Llama that runs any span of its layers over a cache of its own.

The one file that knows transformers' internals. Strategies see tokens and logits, never a cache,
a mask or a position.

Shapes: T new tokens, M positions whose logits are read, V vocabulary; the batch is always 1.
"""

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from self_speculation.offloading import input_device

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
MOST_LAYERS = 10_000  # beyond, a configuration is damaged, and a model takes hours to be laid out
DEFAULT_ATTENTION = "sdpa"
COMPILED_ATTENTION = ("sdpa", "eager")
SUPPORTED_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")


def position_limit(config: Any, prompt_tokens: int | None = None) -> int:
    """Return the longest sequence, in tokens, that the model can decode; of a given prompt, if any.

    YaRN stretches the positions by its factor (Peng et al. 2023, arXiv 2309.00071). Within a
    sliding window, windowed and full attention are the same; sequences end where they differ.
    LongRoPE (Ding et al. 2024, arXiv 2402.13753) has factors for short and for long sequences, and
    keys that were cached with the former do not fit the latter: a sequence that begins short ends
    where the long ones would begin.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings")
    limit = config.max_position_embeddings
    if rope.get("rope_type") == "yarn" and original:
        limit = max(limit, int(original * (rope.get("factor") or 1)))
    is_short = prompt_tokens is not None and original and prompt_tokens <= original
    if rope.get("rope_type") == "longrope" and is_short:
        limit = min(limit, original)
    return min(limit, getattr(config, "sliding_window", None) or limit)


def early_exit_view(model: nn.Module, kept_exit_layer: int) -> nn.Module:
    """A model of the first layers alone, then norm and head; early-exit inference for batches.

    It shares every weight with `model`, which stays as it is.
    """
    view, decoder = _shallow_copy(model), _shallow_copy(model.model)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = kept_exit_layer
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:kept_exit_layer]
    view.config = decoder.config = config
    decoder.layers = decoder.layers[:kept_exit_layer]
    view.model = decoder
    return view


def _shallow_copy(module: nn.Module) -> nn.Module:
    """Another module with the same parts, in which one can be replaced."""
    other = copy.copy(module)
    other._modules = dict(module._modules)
    # accelerate's hooks replace `forward` by one that is bound to the module it was put on.
    for name in ("forward", "_old_forward", "_hf_hook"):
        other.__dict__.pop(name, None)
    return other


class KeyValueCache:
    """Keys and values of every layer, allocated once for `capacity` tokens.

    Decoder layers of transformers call `update`, as they would on transformers' own caches.
    Nothing is ever copied to make room or to forget: `position` says where the next tokens are
    written, and what lies behind them is overwritten later.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.position = 0
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Writes (1, heads, T, head size) at `position`; returns views of all up to there."""
        if layer_idx not in self._buffers:
            self._buffers[layer_idx] = (self._allocate(key), self._allocate(value))
        keys, values = self._buffers[layer_idx]
        end = self.position + key.shape[2]
        keys[:, :, self.position : end] = key
        values[:, :, self.position : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def layer(self, layer_idx: int, length: int) -> tuple[Tensor, Tensor]:
        """A layer's first `length` keys and values, (1, heads, `length`, head size), as views.

        The layer was updated before. Shapes and strides say nothing of the capacity.
        """
        keys, values = self._buffers[layer_idx]
        return keys[0, :, :length][None], values[0, :, :length][None]

    def clear(self) -> None:
        """Overwrites everything with zeros."""
        for buffer in chain.from_iterable(self._buffers.values()):
            buffer.zero_()

    def _allocate(self, like: Tensor) -> Tensor:
        # Token by token in memory, so that what is read of it lies alike whatever the capacity.
        _, heads, _, size = like.shape
        return like.new_zeros(1, self.capacity, heads, size).transpose(1, 2)


class CachedLlama:
    """Decodes one sequence at a time, early layers ahead of the others where a draft is wanted.

    `length` counts the tokens that every layer holds. `draft` runs early layers ahead of it and
    keeps their outputs (the exit states) pending; `verify` brings the remaining layers level.

    `capacity`: tokens of the longest sequence; the cache is allocated for them at first use and
    reused from sequence to sequence. `compile_seconds` is what was spent on compiling steps; None
    where none are compiled.
    """

    compile_seconds: float | None = None

    def __init__(self, model: nn.Module, capacity: int) -> None:
        self._decoder = model.model
        self._head = model.lm_head
        self._attention = model.config._attn_implementation
        if self._attention not in SUPPORTED_ATTENTION:
            raise ValueError(
                f"attn_implementation={self._attention}: "
                f"must be one of {', '.join(SUPPORTED_ATTENTION)}"
            )
        self._cache = KeyValueCache(capacity)
        self.num_layers = len(self._decoder.layers)
        self.capacity = capacity
        self.device = input_device(model)
        self._config = model.config
        self.reset()

    def reset(self, exit_layer: int | None = None) -> None:
        """Begins a new sequence; drafts will run the first `exit_layer` of the model's layers."""
        self.length = 0
        self.exit_layer = exit_layer
        self._exit_states: list[Tensor] = []

    def room_after(self, prompt_tokens: int) -> int:
        """Return how many tokens may follow such a prompt; the last one is never cached."""
        limit = position_limit(self._config, prompt_tokens)
        return min(self.capacity, limit) - prompt_tokens + 1

    @property
    def pending(self) -> int:
        """Tokens beyond `length` that `draft` has run through the early layers."""
        return sum(states.shape[1] for states in self._exit_states)

    @torch.inference_mode()
    def forward(self, ids_1T: Tensor, count: int = 1, depth: int | None = None) -> Tensor:
        """Runs T new tokens through the first `depth` layers (default: all).

        Returns the logits of the last `count` positions, (count, V). Needs that nothing is pending.
        A sequence is decoded at one depth throughout: other layers would lack these tokens.
        """
        assert not self._exit_states, "pending drafts must be verified or rolled back first"
        states_1TD = self._run(self._embed(ids_1T), 0, depth or self.num_layers, self.length)
        self.length += ids_1T.shape[1]
        return self._logits(states_1TD, count)

    @torch.inference_mode()
    def draft(self, ids_1T: Tensor) -> Tensor:
        """Runs T new tokens through the early layers; returns the last one's logits, (1, V)."""
        states_1TD = self._early(ids_1T)
        self._exit_states.append(states_1TD)
        return self._logits(states_1TD, 1)

    @torch.inference_mode()
    def verify(self, ids_1T: Tensor, count: int) -> Tensor:
        """Brings every layer level with all pending tokens and T new ones, T at least 1.

        The new tokens run through the early layers first, the pending ones only through the
        remaining layers. Returns the logits of the last `count` positions, (count, V).
        """
        states_1TD = torch.cat([*self._exit_states, self._early(ids_1T)], dim=1)
        self._exit_states = []
        states_1TD = self._run(states_1TD, self.exit_layer, self.num_layers, self.length)
        self.length += states_1TD.shape[1]
        return self._logits(states_1TD, count)

    def rollback(self, length: int) -> None:
        """Forgets all but the first `length` tokens, pending ones included."""
        assert length <= self.length, f"cannot roll {self.length} tokens back to {length}"
        self.length = length
        self._exit_states = []

    def _early(self, ids_1T: Tensor) -> Tensor:
        start = self.length + self.pending
        return self._run(self._embed(ids_1T), 0, self.exit_layer, start)

    def _embed(self, ids_1T: Tensor) -> Tensor:
        return self._decoder.embed_tokens(ids_1T)

    def _run(self, states_1TD: Tensor, first: int, last: int, start: int) -> Tensor:
        """Layers `first` to `last` over tokens at positions `start` and after."""
        count = states_1TD.shape[1]
        assert start + count <= self.capacity, f"{start + count} tokens exceed {self.capacity}"
        positions_1T = torch.arange(start, start + count, device=states_1TD.device)[None]
        rotary = self._decoder.rotary_emb(states_1TD, position_ids=positions_1T)
        mask = self._mask(states_1TD, start)
        self._cache.position = start
        for layer in self._decoder.layers[first:last]:
            states_1TD = layer(
                states_1TD,
                attention_mask=mask,
                past_key_values=self._cache,
                use_cache=True,
                position_embeddings=rotary,
            )
        return states_1TD

    def _mask(self, states_1TD: Tensor, start: int) -> Tensor | None:
        """Lets every token see itself and what is before it; None where the kernel does so itself.

        transformers' sdpa applies its own causal mask to more than one query without a mask, but
        counts positions from 0: right for a first chunk only. Flash attention aligns it to the
        last key.
        """
        count = states_1TD.shape[1]
        if count == 1 or self._attention.startswith("flash"):
            return None
        if self._attention == "sdpa" and start == 0:
            return None
        visible = torch.ones(count, start + count, dtype=torch.bool, device=states_1TD.device)
        visible = visible.tril(diagonal=start)[None, None]
        if self._attention == "sdpa":
            return visible
        return torch.zeros_like(visible, dtype=states_1TD.dtype).masked_fill(~visible, -torch.inf)

    def _logits(self, states_1TD: Tensor, count: int) -> Tensor:
        """The head runs only on the positions that are read."""
        return self._head(self._decoder.norm(states_1TD[:, -count:]))[0].to(self.device)
