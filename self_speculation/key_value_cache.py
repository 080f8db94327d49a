"""KeyValueCache: the keys and values of one sequence.

Shapes: T new tokens, S cached tokens.
"""

from itertools import chain

from torch import Tensor


class KeyValueCache:
    """Keys and values of every layer, allocated once for `capacity` tokens.

    transformers' decoder layers call `update`, as on transformers' own caches. Growing and
    forgetting copy nothing: the next tokens are written at `position`, over whatever is there.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.position = 0
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write (1, heads, T, head size) at `position`; return views of all tokens so far."""
        if layer_idx not in self._buffers:
            self._buffers[layer_idx] = (self._allocate(key), self._allocate(value))
        keys, values = self._buffers[layer_idx]
        end = self.position + key.shape[2]
        keys[:, :, self.position : end] = key
        values[:, :, self.position : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def layer(self, layer_idx: int, length: int) -> tuple[Tensor, Tensor]:
        """Return a layer's first `length` keys and values as views, (1, heads, S, head size).

        The layer must have been updated before. Shapes and strides do not depend on the capacity.
        """
        keys, values = self._buffers[layer_idx]
        return keys[0, :, :length][None], values[0, :, :length][None]

    def clear(self) -> None:
        """Overwrite everything with zeros."""
        for buffer in chain.from_iterable(self._buffers.values()):
            buffer.zero_()

    def _allocate(self, like: Tensor) -> Tensor:
        # Token by token in memory, so that the strides of a view do not depend on the capacity.
        _, heads, _, size = like.shape
        return like.new_zeros(1, self.capacity, heads, size).transpose(1, 2)
