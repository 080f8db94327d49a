"""CachedLlama: a Llama that runs any span of its layers over its own cache.

Only this file knows transformers' internals; engines of other kinds build on `LlamaEngine`.
Strategies see tokens and logits, never a cache, a mask or a position.

Shapes: B sequences (`CachedLlama`: 1), T new tokens, D hidden, M positions whose logits are read,
V vocabulary.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from self_speculation.draft_layers import Backlog, DraftHead, count_shared
from self_speculation.key_value_cache import KeyValueCache
from self_speculation.model_protocol import Llama, ModelConfig, decoder_of
from self_speculation.offloading import input_device
from self_speculation.plain_layers import plain

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
MOST_LAYERS = 10_000  # More mean a damaged configuration, whose model would take hours to build.
DEFAULT_ATTENTION = "sdpa"
COMPILED_ATTENTION = ("sdpa", "eager")
SUPPORTED_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")


def position_limit(config: ModelConfig, prompt_tokens: int | None = None) -> int:
    """Return the longest sequence, in tokens, that the model can decode (after a given prompt).

    YaRN multiplies the positions by its factor (Peng et al. 2023, arXiv 2309.00071). A sequence
    ends with its sliding window, within which windowed and full attention are equal. LongRoPE
    (Ding et al. 2024, arXiv 2402.13753) has factors for short and for long sequences, and keys
    cached with the short factors do not fit the long ones: a sequence with a short prompt ends
    where the long factors would begin.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kind, original = rope.get("rope_type"), rope.get("original_max_position_embeddings")
    limit = config.max_position_embeddings
    if kind == "yarn" and original:
        limit = max(limit, int(original * (rope.get("factor") or 1)))
    if kind == "longrope" and original and prompt_tokens is not None and prompt_tokens <= original:
        limit = min(limit, original)
    window: int | None = getattr(config, "sliding_window", None)
    return min(limit, window or limit)


def rotary_depends_on_length(config: ModelConfig) -> bool:
    """Whether a position's rotary factors depend on the longest position of the same call."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("rope_type") in ("dynamic", "longrope")


def on_device(ids: list[int], device: torch.device) -> Tensor:
    """Return token ids, (T,), on the device, without waiting for it."""
    ids_T = torch.tensor(ids)
    if device.type != "cuda":
        return ids_T.to(device)
    # A copy from pageable memory would wait until the device has finished all earlier work.
    return ids_T.pin_memory().to(device, non_blocking=True)


def early_exit_view(model: Llama, kept_exit_layer: int) -> Any:
    """Return a model of the first layers, norm and head, for early-exit inference in batches.

    It shares every weight with `model`, which does not change.
    """
    view, decoder = _shallow_copy(model), _shallow_copy(model.model)
    config: Any = copy.deepcopy(model.config)
    config.num_hidden_layers = kept_exit_layer
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:kept_exit_layer]
    view.config = decoder.config = config
    decoder.layers = decoder.layers[:kept_exit_layer]
    view.model = decoder
    return view


def _shallow_copy(module: Any) -> Any:
    """Return another module with the same parts, in which a part can be replaced."""
    other = copy.copy(module)
    other._modules = dict(module._modules)
    # accelerate's hooks replace `forward` by a function that is bound to the hooked module.
    for name in ("forward", "_old_forward", "_hf_hook"):
        other.__dict__.pop(name, None)
    return other


class LlamaEngine:
    """A model's parts and limits; its subclasses own a cache and run the layers over it.

    `capacity`: tokens of the longest sequence. `compile_seconds`: time spent on compiling steps;
    None without compilation. Raises ValueError for an attention kernel that is not `supported`.
    """

    compile_seconds: float | None = None

    def __init__(
        self, model: Llama, capacity: int, supported: tuple[str, ...] = SUPPORTED_ATTENTION
    ) -> None:
        self._decoder = decoder_of(model)
        self._head = model.lm_head
        self._attention = model.config._attn_implementation
        if self._attention not in supported:
            raise ValueError(
                f"attn_implementation={self._attention}: must be one of {', '.join(supported)}"
            )
        self.num_layers = len(self._decoder.layers)
        self.capacity = capacity
        self.device = input_device(model)
        self._config = model.config

    def room_after(self, prompt_tokens: int) -> int:
        """Return how many tokens may follow such a prompt; the last is never cached."""
        limit = position_limit(self._config, prompt_tokens)
        return min(self.capacity, limit) - prompt_tokens + 1

    def _embed(self, ids_BT: Tensor) -> Tensor:
        return self._decoder.embed_tokens(ids_BT)

    def _rotary(self, states_BTD: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotary cosines and sines of positions that form one call."""
        return self._decoder.rotary_emb(states_BTD, position_ids=positions_BT)

    def _through(
        self,
        layers: Iterable[nn.Module],
        states_BTD: Tensor,
        cache: Any,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Run layers, each a `DecoderLayer`, which write to the cache and read from it."""
        for layer in layers:
            states_BTD = layer(
                states_BTD,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                position_embeddings=rotary,
            )
        return states_BTD

    def _as_mask(self, visible: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the kernel's mask of visible positions, which end with (T, cached tokens)."""
        if self._attention == "sdpa":
            return visible
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, -torch.inf)

    def _head_over(self, states_BTD: Tensor) -> Tensor:
        """Return the logits of all states, (B, T, V), on the engine's device."""
        return self._head(self._decoder.norm(states_BTD)).to(self.device)


class CachedLlama(LlamaEngine):
    """Decodes one sequence at a time; the drafter's layers may run ahead of the others.

    The drafter shares its first `exit_layer` layers with the model. Its own layers, if there are
    any, follow them and have a cache of their own, because their inputs are others than those of
    the model's layers. `length` counts the tokens that every layer of the model has cached. `draft`
    runs more tokens through the drafter and keeps the outputs of the shared layers (the exit
    states) pending; `verify` runs them through the model's remaining layers. Caches are allocated
    at first use and reused for all sequences.

    Without `draft_layers`, `reset` says how many layers draft, and all of them are shared; with 0
    layers, nothing but `verify` is left of a round. `draft_vocabulary` are the only tokens whose
    logits a draft computes.
    """

    def __init__(
        self,
        model: Llama,
        capacity: int,
        draft_layers: Sequence[nn.Module] | None = None,
        draft_vocabulary: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model, capacity)
        self._draft_head: DraftHead | None = None
        if draft_vocabulary is not None:
            self._draft_head = DraftHead(self._head, draft_vocabulary)
        layers = list(self._decoder.layers)
        self._shared = self.num_layers
        own: list[nn.Module] = []
        if draft_layers is not None:
            self._shared = count_shared(layers, draft_layers)
            own = list(draft_layers[self._shared :])
        # Spans of layers count the model's layers, then the drafter's own.
        self._layers = [*layers, *own]
        self._calls = [plain(layer) for layer in self._layers]
        self._table: tuple[Tensor, Tensor] | None = None
        self._own = (self.num_layers, len(self._layers)) if own else None
        places = {place_in_cache(layer) for layer in own}
        assert len(places) == len(own), "two of the drafter's own layers have one place in a cache"
        self._cache = KeyValueCache(capacity)
        self._draft_cache = KeyValueCache(capacity)
        self.reset()

    def reset(self, exit_layer: int | None = None) -> None:
        """Begin a new sequence; drafts will run the first `exit_layer` layers.

        By default they run the engine's draft layers, or all layers of the model.
        """
        assert exit_layer is None or self._own is None, "an exit layer besides draft layers"
        self.length = 0
        self.exit_layer = self._shared if exit_layer is None else exit_layer
        self._exit_states: list[Tensor] = []
        self._backlog = Backlog()

    @property
    def pending(self) -> int:
        """Number of tokens beyond `length` that `draft` has run through the drafter."""
        return sum(states.shape[1] for states in self._exit_states)

    @torch.inference_mode()
    def prefill(self, ids_1T: Tensor) -> Tensor:
        """Run the first T tokens of a sequence, after which drafts may follow.

        The drafter's own layers see them too. Return the logits of the last position, (1, V).
        """
        assert not self.length, "only the first tokens of a sequence"
        if self._own is None:
            return self.forward(ids_1T)
        states_1TD = self._early(ids_1T)
        self._drafted(states_1TD)
        states_1TD = self._run(states_1TD, self.exit_layer, self.num_layers, 0)
        self.length = ids_1T.shape[1]
        return self._logits(states_1TD, 1)

    @torch.inference_mode()
    def forward(self, ids_1T: Tensor, count: int = 1, depth: int | None = None) -> Tensor:
        """Run T new tokens through the first `depth` layers (default: all).

        Return the logits of the last `count` positions, (count, V). No draft may be pending. Use
        the same depth for a whole sequence: deeper layers do not cache these tokens. Layers of the
        drafter's own do not see them either, so that no draft may follow.
        """
        assert not self._exit_states, "pending drafts must be verified or rolled back first"
        states_1TD = self._run(self._embed(ids_1T), 0, depth or self.num_layers, self.length)
        self.length += ids_1T.shape[1]
        return self._logits(states_1TD, count)

    @torch.inference_mode()
    def draft(self, ids_1T: Tensor) -> Tensor:
        """Run T new tokens through the drafter; return the logits of the last, (1, V).

        Tokens outside the draft vocabulary have the logit -inf.
        """
        states_1TD = self._early(ids_1T)
        drafted_1TD = self._drafted(states_1TD)
        self._exit_states.append(states_1TD)
        if self._draft_head is None:
            return self._logits(drafted_1TD, 1)
        logits_1N = self._draft_logits(drafted_1TD[:, -1:], self._draft_head.linear)
        return self._draft_head.over_all(logits_1N)

    @torch.inference_mode()
    def verify(self, ids_1T: Tensor, count: int) -> Tensor:
        """Run all pending tokens and T new tokens through the remaining layers, T at least 1.

        The new tokens run through the shared layers first. Return the logits of the last `count`
        positions, (count, V).
        """
        states_1TD = self._all_exit_states(ids_1T)
        states_1TD = self._run(states_1TD, self.exit_layer, self.num_layers, self.length)
        self.length += states_1TD.shape[1]
        return self._logits(states_1TD, count)

    def rollback(self, length: int) -> None:
        """Forget all pending tokens, and all others after the first `length`."""
        assert length <= self.length, f"cannot roll {self.length} tokens back to {length}"
        self.length = length
        self._exit_states = []
        self._backlog.cut(length)

    def _early(self, ids_1T: Tensor) -> Tensor:
        start = self.length + self.pending
        return self._run(self._embed(ids_1T), 0, self.exit_layer, start)

    def _drafted(self, states_1TD: Tensor) -> Tensor:
        """Run new tokens through the drafter's own layers, after those that these have missed."""
        if self._own is None:
            return states_1TD
        self._backlog.add(states_1TD, self.length + self.pending)
        start = self._backlog.seen
        return self._run(self._backlog.take(), *self._own, start)

    def _all_exit_states(self, ids_1T: Tensor) -> Tensor:
        """Return the exit states of all pending and of new tokens; nothing is pending then."""
        states_1TD = torch.cat([*self._exit_states, self._early(ids_1T)], dim=1)
        self._exit_states = []
        if self._own is not None:
            self._backlog.add(states_1TD, self.length)
        return states_1TD

    def _run(self, states_1TD: Tensor, first: int, last: int, start: int) -> Tensor:
        """Run layers `first` to `last` (excluded) over tokens that begin at position `start`.

        Layers from `num_layers` on are the drafter's own.
        """
        if first == last:
            return states_1TD
        count = states_1TD.shape[1]
        assert start + count <= self.capacity, f"{start + count} tokens exceed {self.capacity}"
        rotary = self._factors(states_1TD, start)
        mask = self._mask(states_1TD, start)
        cache = self._cache_of(first)
        cache.position = start
        return self._through(self._calls[first:last], states_1TD, cache, mask, rotary)

    def _factors(
        self, states_1TD: Tensor, start: int, tokens: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return rotary cosines and sines of the states, whose first position is `start`.

        They come from a table, unless they depend on the longest position; only the first `tokens`
        states (default: all) count then.
        """
        count, device = states_1TD.shape[1], states_1TD.device
        if rotary_depends_on_length(self._config):
            positions_1T = torch.arange(start, start + count, device=device)[None]
            return self._rotary(states_1TD, positions_1T.clamp(max=start + (tokens or count) - 1))
        if self._table is None or self._table[0].device != device:
            positions_1T = torch.arange(self._cache.capacity, device=device)[None]
            # Without the first dimension, strides of a slice do not depend on the capacity.
            cosine, sine = self._rotary(states_1TD, positions_1T)
            self._table = cosine[0], sine[0]
        cosines, sines = (table[start : start + count][None] for table in self._table)
        return cosines, sines

    def _cache_of(self, layer: int) -> KeyValueCache:
        return self._cache if layer < self.num_layers else self._draft_cache

    def _mask(self, states_1TD: Tensor, start: int) -> Tensor | None:
        """Return the causal mask, or None if the kernel masks correctly by itself.

        Without a mask, transformers' sdpa masks several queries as if they began at position 0,
        which is right only for the first chunk. Flash attention aligns its mask to the last key.
        """
        count = states_1TD.shape[1]
        if count == 1 or self._attention.startswith("flash"):
            return None
        if self._attention == "sdpa" and start == 0:
            return None
        visible = torch.ones(count, start + count, dtype=torch.bool, device=states_1TD.device)
        visible = visible.tril(diagonal=start)[None, None]
        return self._as_mask(visible, states_1TD.dtype)

    def _draft_logits(self, states_11D: Tensor, head: nn.Module) -> Tensor:
        """Return the logits of the draft vocabulary, (1, N)."""
        logits_1N: Tensor = head(self._decoder.norm(states_11D))[0]
        return logits_1N.to(self.device)

    def _logits(self, states_1TD: Tensor, count: int) -> Tensor:
        """Return logits of the last `count` positions; the head runs only on these."""
        return self._head_over(states_1TD[:, -count:])[0]


def place_in_cache(layer: nn.Module) -> int:
    """Return the index under which a layer caches its keys and values."""
    attention: Any = layer.self_attn
    return attention.layer_idx
