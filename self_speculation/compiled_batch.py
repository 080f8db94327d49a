"""CompiledBatch: a batched engine with compiled steps.

Shapes: B sequences, padding included, S a bucket of cached positions, V vocabulary.
"""

import time

import torch
from torch import Tensor

from self_speculation.batched_llama import BatchedLlama, RowCache
from self_speculation.compiled_blocks import CompiledBlocks, TensorFunction
from self_speculation.llama_model_utils import on_device
from self_speculation.model_protocol import Llama
from self_speculation.programs import compile_errors

# A step of few sequences costs almost as much as a step of a quarter of the batch.
_FEWER = 4
_SMALLEST_BUCKET = 64


def batch_buckets(capacity: int) -> list[int]:
    """Return the lengths for which attention is compiled, each about half of the next.

    The longest is close to the capacity: every sequence has keys and values of its own, so that
    padding costs a batch more than a single sequence.
    """
    buckets = [_rounded(capacity)]
    while buckets[0] > _SMALLEST_BUCKET:
        buckets.insert(0, _rounded(buckets[0] // 2))
    return buckets


def _rounded(positions: int) -> int:
    return -(-positions // _SMALLEST_BUCKET) * _SMALLEST_BUCKET


class CompiledBatch(BatchedLlama):
    """Runs steps as programs of static shapes: all rows or a quarter of them, in every bucket.

    Other numbers of sequences are padded. Prompts run uncompiled over the same cache.

    The constructor compiles all programs, or loads them from an earlier start, and raises
    `CompileError` if that fails; `compile_seconds` is its time, first runs included. `exit_layer`
    counts the model's layers: sequences must end there.
    """

    def __init__(
        self, model: Llama, capacity: int, batch_size: int, exit_layer: int | None = None
    ) -> None:
        super().__init__(model, capacity, batch_size)
        started = time.perf_counter()
        self._buckets = batch_buckets(capacity)
        self._row_counts = sorted({-(-batch_size // _FEWER), batch_size})
        self._cache = RowCache(batch_size, self._buckets[-1])
        self._blocks = CompiledBlocks(self._decoder, self._head, model.config)
        self._spans: dict[tuple[int, int, int], TensorFunction] = {}
        self._heads: dict[int, TensorFunction] = {}
        with compile_errors():
            self._warm_up(exit_layer)
        self.compile_seconds = time.perf_counter() - started

    @property
    def compilations(self) -> int:
        """Number of programs of this process and of steps that this engine made of them."""
        return self._blocks.compilations

    def _step(self, ids: list[int]) -> Tensor:
        rows = next(count for count in self._row_counts if count >= len(ids))
        bucket = next(bucket for bucket in self._buckets if bucket > max(self.lengths))
        padding = [0] * (rows - len(ids))
        positions_B = on_device(self.lengths + padding, self.device)
        inputs = self._step_inputs(ids + padding, positions_B, bucket)
        states_B1D = self._spans[self._depth, rows, bucket](inputs)
        return self._heads[rows]([states_B1D.transpose(0, 1)])[: len(ids)]

    @torch.inference_mode()
    def _warm_up(self, exit_layer: int | None) -> None:
        """Build and run all programs that steps need, for all numbers of rows in every bucket."""
        self.reset(exit_layer)
        self.add([[0]])  # allocates the cache
        for rows in self._row_counts:
            for bucket in self._buckets:
                self.lengths = [bucket - 1] * rows
                positions_B = on_device(self.lengths, self.device)
                inputs = self._step_inputs([0] * rows, positions_B, bucket)
                layers = range(self._depth)
                caches = [list(self._cache.layer(index, rows, bucket)) for index in layers]
                span = self._blocks.span((0, self._depth), caches, inputs)
                self._spans[self._depth, rows, bucket] = span
                if rows not in self._heads:
                    self._heads[rows] = self._blocks.head([inputs[0].transpose(0, 1)])
                self._step([0] * rows)
        self.reset(exit_layer)
