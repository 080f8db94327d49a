"""BatchedLlama: an engine that decodes several sequences at once, one token each per step.

Shapes: B sequences, T new tokens (of all sequences together), S cached positions attended to,
D hidden, H key/value heads, E head size, V vocabulary.
"""

from collections.abc import Iterator
from itertools import accumulate, chain

import torch
from torch import Tensor

from self_speculation.llama_model_utils import LlamaEngine, on_device, rotary_depends_on_length
from self_speculation.model_protocol import Llama

# Flash attention takes no mask, which sequences of different lengths need.
BATCHED_ATTENTION = ("sdpa", "eager")
# Short prompts run together: one pass costs less than several. Every token of a pass attends to all
# others, masked, so that longer prompts cost less alone.
_MOST_PACKED = 256


def takes_batches(model: Llama) -> bool:
    """Return whether the model's attention kernel masks sequences of different lengths."""
    return model.config._attn_implementation in BATCHED_ATTENTION


class RowCache:
    """Keys and values of `rows` sequences of up to `capacity` tokens, allocated at first use.

    `write_at` says where the next tokens go; the layers then call `update`, as on transformers' own
    caches.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self._shape = rows, capacity
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def write_at(self, rows_T: Tensor, positions_T: Tensor, seen: tuple[int, int] | None) -> None:
        """Write the next T tokens at these rows and positions.

        They attend to the cache's first rows and positions, as many as `seen` says; without it, to
        one another.
        """
        self._rows_T, self._positions_T, self._seen = rows_T, positions_T, seen

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write the T tokens of (rows, H, tokens, E); return keys and values to attend to."""
        if layer_idx not in self._buffers:
            self._buffers[layer_idx] = (self._allocate(key), self._allocate(value))
        places = self._rows_T.to(key.device), self._positions_T.to(key.device)
        for buffer, new in zip(self._buffers[layer_idx], (key, value), strict=True):
            buffer[places] = new.transpose(1, 2).flatten(0, 1)
        if self._seen is None:
            return key, value
        return self.layer(layer_idx, *self._seen)

    def layer(self, layer_idx: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Return the first rows and positions of a layer as views, (rows, H, length, E).

        The layer must have been updated before.
        """
        keys, values = (buffer[:rows, :length] for buffer in self._buffers[layer_idx])
        return keys.transpose(1, 2), values.transpose(1, 2)

    def copy(self, source: int, target: int) -> None:
        """Copy a row over another row."""
        for buffer in chain.from_iterable(self._buffers.values()):
            buffer[target] = buffer[source]

    def clear(self, row: int) -> None:
        """Overwrite a row with zeros."""
        for buffer in chain.from_iterable(self._buffers.values()):
            buffer[row].zero_()

    def _allocate(self, like: Tensor) -> Tensor:
        return like.new_zeros(*self._shape, like.shape[1], like.shape[3])


class BatchedLlama(LlamaEngine):
    """Decodes up to `batch_size` sequences, each with its own length.

    `lengths` counts the cached tokens of each sequence. `add` appends sequences; `drop` removes one
    and moves the last to its place, so that steps cost only what the others need. Raises ValueError
    for an attention kernel without masks (flash attention).
    """

    def __init__(self, model: Llama, capacity: int, batch_size: int) -> None:
        super().__init__(model, capacity, BATCHED_ATTENTION)
        self.batch_size = batch_size
        self._cache = RowCache(batch_size, capacity)
        self._rotary_of_each = rotary_depends_on_length(model.config)
        self.reset()

    def reset(self, depth: int | None = None) -> None:
        """Forget all sequences; the next run through the first `depth` layers (default: all)."""
        self.lengths: list[int] = []
        self._depth = depth or self.num_layers

    @torch.inference_mode()
    def add(self, prompts: list[list[int]]) -> Tensor:
        """Run prompts as new sequences; return the logits of their last positions, (prompts, V)."""
        assert len(self.lengths) + len(prompts) <= self.batch_size, "no row is free"
        return torch.cat([self._prefill(pack) for pack in _packs(prompts)])

    @torch.inference_mode()
    def step(self, ids: list[int]) -> Tensor:
        """Run the next token of every sequence; return the logits that follow, (B, V)."""
        assert max(self.lengths) < self.capacity, "a sequence has reached the capacity"
        logits_BV = self._step(ids)
        self.lengths = [length + 1 for length in self.lengths]
        return logits_BV

    @torch.inference_mode()
    def drop(self, row: int) -> None:
        """Remove a sequence; the last sequence takes its row."""
        last = len(self.lengths) - 1
        if row != last:
            self._cache.copy(last, row)
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def _prefill(self, prompts: list[list[int]]) -> Tensor:
        first, counts = len(self.lengths), [len(ids) for ids in prompts]
        rows = [first + place for place, count in enumerate(counts) for _ in range(count)]
        for row in set(rows):
            # An overflowed sequence may have left values that are not finite: 0 times them is NaN.
            self._cache.clear(row)
        rows_T = on_device(rows, self.device)
        positions_T = on_device([p for count in counts for p in range(count)], self.device)
        states_1TD = self._embed(on_device(list(chain.from_iterable(prompts)), self.device)[None])
        self._cache.write_at(rows_T, positions_T, seen=None)
        mask = self._packed_mask(len(prompts), rows_T, states_1TD.dtype)
        rotary = self._rotary_by_call(states_1TD, positions_T[None], counts)
        layers = self._decoder.layers[: self._depth]
        states_1TD = self._through(layers, states_1TD, self._cache, mask, rotary)
        self.lengths += counts
        last = on_device([end - 1 for end in accumulate(counts)], states_1TD.device)
        return self._head_over(states_1TD.index_select(1, last))[0]

    def _step(self, ids: list[int]) -> Tensor:
        rows, length = len(ids), max(self.lengths) + 1
        positions_B = on_device(self.lengths, self.device)
        self._cache.write_at(torch.arange(rows, device=self.device), positions_B, (rows, length))
        states_B1D, visible_B1S, *rotary, _ = self._step_inputs(ids, positions_B, length)
        mask = self._as_mask(visible_B1S[:, None], states_B1D.dtype)
        cosine, sine = rotary
        layers = self._decoder.layers[: self._depth]
        states_B1D = self._through(layers, states_B1D, self._cache, mask, (cosine, sine))
        return self._head_over(states_B1D)[:, 0]

    def _step_inputs(self, ids: list[int], positions_B: Tensor, length: int) -> list[Tensor]:
        """Return states, visible positions (B, 1, S), rotary factors, and positions (B, 1)."""
        states_B1D = self._embed(on_device(ids, self.device)[:, None])
        rotary = self._rotary_by_call(states_B1D, positions_B[None], [1] * len(ids))
        cosine, sine = (factors.transpose(0, 1) for factors in rotary)
        visible_BS = torch.arange(length, device=self.device) <= positions_B[:, None]
        return [states_B1D, visible_BS[:, None], cosine, sine, positions_B[:, None]]

    def _packed_mask(self, prompts: int, rows_T: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return the mask by which a token sees the tokens of its prompt up to itself.

        Without a mask, transformers' sdpa masks as one prompt needs it.
        """
        if prompts == 1 and self._attention == "sdpa":
            return None
        visible_TT = (rows_T[:, None] == rows_T).tril()
        return self._as_mask(visible_TT[None, None], dtype)

    def _rotary_by_call(
        self, states_1TD: Tensor, positions_1T: Tensor, counts: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, (1, T, E), of positions of several sequences.

        Each sequence, of `counts` tokens, forms a call if its longest position matters.
        """
        if not self._rotary_of_each:
            return self._rotary(states_1TD, positions_1T)
        parts = positions_1T.split(counts, dim=1)
        pairs = [self._rotary(states_1TD, part) for part in parts]
        cosines, sines = zip(*pairs, strict=True)
        return torch.cat(cosines, dim=1), torch.cat(sines, dim=1)


def _packs(prompts: list[list[int]]) -> Iterator[list[list[int]]]:
    """Divide prompts into groups that run together, in their order."""
    pack: list[list[int]] = []
    for ids in prompts:
        if pack and sum(map(len, pack)) + len(ids) > _MOST_PACKED:
            yield pack
            pack = []
        pack.append(ids)
    if pack:
        yield pack
