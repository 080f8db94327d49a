"""The machine's memory bandwidth, and the speed of decoding that it allows.

Each decoded token needs every weight once, so a plain decoder of batch 1 takes at least the time of
reading the weights: the floor in the tables.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pruned_model import weight_bytes
from self_speculation.timing import now

# torch's products read a matrix of this width fastest.
_WIDTH = 4096
READS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sum": lambda matrix_NW, _: matrix_NW.sum(),
    "amax": lambda matrix_NW, _: matrix_NW.amax(),
    "matrix-vector product": lambda matrix_NW, vector_W: matrix_NW @ vector_W,
    "linear": lambda matrix_NW, vector_W: nn.functional.linear(vector_W[None], matrix_NW),
}


class Bandwidth:
    """Reads a buffer of float32 by the fastest operation of torch."""

    def __init__(self, size_bytes: int, device: torch.device) -> None:
        rows = max(1, size_bytes // (4 * _WIDTH))
        # Memory that was never written would be one page of zeros, which stays in the cache.
        self._matrix_NW = torch.ones(rows, _WIDTH, device=device)
        self._vector_W = torch.ones(_WIDTH, device=device)
        self.size_bytes = rows * _WIDTH * 4
        self.seconds: list[float] = []
        trials = {name: min(self._time(name) for _ in range(5)) for name in READS}
        self.gigabytes_per_second_by_operation = {
            name: self.size_bytes / seconds / 1e9 for name, seconds in trials.items()
        }
        self.operation = min(trials, key=trials.__getitem__)

    def measure(self) -> float:
        """Read the buffer once, keep the seconds and return bytes per second."""
        self.seconds.append(self._time(self.operation))
        return self.size_bytes / self.seconds[-1]

    def facts(self) -> dict[str, object]:
        """Return all passes so far, for the log."""
        return {
            "buffer_bytes": self.size_bytes,
            "operation": self.operation,
            "gigabytes_per_second_by_operation": self.gigabytes_per_second_by_operation,
            "median_gigabytes_per_second": self.size_bytes / statistics.median(self.seconds) / 1e9,
            "best_gigabytes_per_second": self.size_bytes / min(self.seconds) / 1e9,
            "seconds": self.seconds,
        }

    @torch.inference_mode()
    def _time(self, operation: str) -> float:
        device = self._matrix_NW.device
        started = now(device)
        READS[operation](self._matrix_NW, self._vector_W)
        return now(device) - started


def step_bytes(model: Any) -> int:
    """Return the bytes of weights that one decoding step of a causal model of transformers reads.

    The step reads one row of the embedding's table, unless the head shares the table.
    """
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    shared = embedding.data_ptr() == head.data_ptr()
    return weight_bytes(model) - (0 if shared else embedding.numel() * embedding.element_size())
