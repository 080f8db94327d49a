"""CompiledLlama: an engine with compiled steps of one token and of a draft's tokens.

Shapes: T new tokens, S a bucket of cached positions.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from self_speculation.compiled_blocks import CompiledBlocks, TensorFunction
from self_speculation.key_value_cache import KeyValueCache
from self_speculation.llama_model_utils import CachedLlama, place_in_cache
from self_speculation.model_protocol import Llama
from self_speculation.programs import compile_errors

_SMALLEST_BUCKET = 256
_EXAMPLE = 24  # tokens of the prompt with which programs for any prompt are made
# Capacities are often powers of two; the padding of a last draft lies behind them.
_BEYOND = 32


def buckets_for(positions: int) -> list[int]:
    """Return the lengths for which attention is compiled, each about twice the last.

    The longest holds `positions`. A step attends to the smallest bucket that holds its sequence, so
    that its cost follows the actual length.
    """
    powers = [_SMALLEST_BUCKET]
    while powers[-1] + _BEYOND < positions:
        powers.append(2 * powers[-1])
    return [power + _BEYOND for power in powers]


@dataclass(frozen=True)
class CompiledRounds:
    """The rounds for which steps are compiled.

    `exit_layer` is the number of the model's layers that draft, 0 if no layer does, or None for an
    engine with layers that draft. Without drafts it is the depth of early-exit inference, None for
    all layers. `draft_lengths` are the numbers of drafted tokens for which a verification is
    compiled. `skips`: in some rounds no layer drafts.
    """

    exit_layer: int | None = None
    draft_lengths: tuple[int, ...] = ()
    skips: bool = False


class CompiledLlama(CachedLlama):
    """Runs steps of 1 token, and verifications of a draft, as programs of static shapes.

    A verification of fewer tokens is padded to the next of `rounds.draft_lengths`. A drafter's own
    layers run 1 token, 2 after a draft that was accepted as a whole, or more where they catch up.
    On a CPU a program for any number of tokens runs prompts that fit the smallest bucket. Steps of
    other shapes run uncompiled over the same caches.

    The constructor compiles all programs, or loads them from an earlier start, and raises
    `CompileError` if that fails; `compile_seconds` is its time, first runs included.
    """

    def __init__(
        self,
        model: Llama,
        capacity: int,
        rounds: CompiledRounds = CompiledRounds(),
        draft_layers: Sequence[nn.Module] | None = None,
        draft_vocabulary: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model, capacity, draft_layers, draft_vocabulary)
        started = time.perf_counter()
        exit_layer, self._skips = rounds.exit_layer, rounds.skips
        # A round without a draft verifies one token.
        self._row_counts = sorted({1, *(1 + drafts for drafts in rounds.draft_lengths)})
        # Padding is written behind the last token.
        catches_up = self._own is not None and rounds.skips
        self._own_rows = sorted({1, 2, *(1 + rows for rows in self._row_counts if catches_up)})
        self._buckets = buckets_for(capacity + self._row_counts[-1] + catches_up)
        self._cache = KeyValueCache(self._buckets[-1])
        self._draft_cache = KeyValueCache(self._buckets[-1])
        own = self._layers[self.num_layers :]
        self._blocks = CompiledBlocks(self._decoder, self._head, model.config, own)
        self._spans: dict[tuple[int, int, int, int], TensorFunction] = {}
        self._widths: dict[tuple[int, int], list[int]] = defaultdict(list)  # of a span, ascending
        self._prompts: dict[tuple[int, int], TensorFunction] = {}
        self._heads: dict[int, TensorFunction] = {}
        self._compiled_draft_head: TensorFunction | None = None
        if draft_layers is not None:
            exit_layer = self.exit_layer
        with compile_errors():
            self._warm_up(exit_layer)
        self.compile_seconds = time.perf_counter() - started

    @property
    def compilations(self) -> int:
        """Number of programs of this process and of steps that this engine made of them."""
        return self._blocks.compilations

    @torch.inference_mode()
    def reset(self, exit_layer: int | None = None) -> None:
        super().reset(exit_layer)
        # An overflowed sequence may have left values that are not finite: 0 times them is NaN.
        self._cache.clear()
        self._draft_cache.clear()

    @torch.inference_mode()
    def verify(self, ids_1T: Tensor, count: int) -> Tensor:
        if self.pending or self._own is not None or ids_1T.shape[1] > self._row_counts[-1]:
            return super().verify(ids_1T, count)
        # No layer drafted: one span serves all layers.
        states_1TD = self._run(self._embed(ids_1T), 0, self.num_layers, self.length)
        self.length += ids_1T.shape[1]
        return self._logits(states_1TD, count)

    def _run(self, states_1TD: Tensor, first: int, last: int, start: int) -> Tensor:
        """As in `CachedLlama`. Steps without a program of their own are padded to the next wider.

        Padding is written behind the last token, and overwritten later.
        """
        rows = states_1TD.shape[1]
        if start == 0 and 1 < rows <= self._buckets[0]:
            prompt = self._prompts.get((first, last))
            if prompt:
                return prompt(self._prompt_inputs(states_1TD))
        wide = _wider(self._widths.get((first, last), []), rows)
        if wide is None:
            return super()._run(states_1TD, first, last, start)
        bucket = next(bucket for bucket in self._buckets if bucket >= start + wide)
        span = self._spans[first, last, wide, bucket]
        return span(self._inputs(_padded(states_1TD, wide), start, bucket, rows))[:, :rows]

    def _draft_logits(self, states_11D: Tensor, head: nn.Module) -> Tensor:
        if self._compiled_draft_head is None:
            return super()._draft_logits(states_11D, head)
        return self._compiled_draft_head([states_11D.contiguous()])

    def _logits(self, states_1TD: Tensor, count: int) -> Tensor:
        wide = _wider(sorted(self._heads), count)
        if wide is None:
            return super()._logits(states_1TD, count)
        return self._heads[wide]([_padded(states_1TD[:, -count:], wide).contiguous()])[:count]

    def _inputs(self, states_1TD: Tensor, start: int, bucket: int, tokens: int) -> list[Tensor]:
        """Return states, visible positions (1, T, S), rotary factors, and positions (1, T)."""
        device, end = states_1TD.device, start + states_1TD.shape[1]
        positions_1T = torch.arange(start, end, device=device)[None]
        # Some rotary embeddings depend on the longest position, which padding must not change.
        cosine, sine = (one.contiguous() for one in self._factors(states_1TD, start, tokens))
        visible_1TS = torch.arange(bucket, device=device) <= positions_1T[..., None]
        return [states_1TD.contiguous(), visible_1TS, cosine, sine, positions_1T]

    @torch.inference_mode()
    def _warm_up(self, exit_layer: int | None) -> None:
        """Build and run all programs that rounds need, in every bucket."""
        ids_11 = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        for first, last in filter(None, [(0, self.num_layers), self._own]):
            super()._run(self._embed(ids_11), first, last, 0)  # allocates the cache
        for first, last, rows in self._steps(exit_layer):
            states_1TD = self._embed(ids_11.expand(1, rows))
            self._widths[first, last].append(rows)
            for bucket in self._buckets:
                inputs = self._inputs(states_1TD, bucket - rows, bucket, rows)
                caches = [self._cached(layer, bucket) for layer in range(first, last)]
                span = self._blocks.span((first, last), caches, inputs)
                self._spans[first, last, rows, bucket] = span
                self._run(states_1TD, first, last, bucket - rows)
            if rows not in self._heads and first < self.num_layers:
                self._heads[rows] = self._blocks.head([states_1TD])
                self._logits(states_1TD, rows)
        self._warm_up_prompts(exit_layer)
        if self._draft_head is not None:
            states_11D, head = self._embed(ids_11), self._draft_head.linear
            self._compiled_draft_head = self._blocks.head([states_11D], head)
            self._draft_logits(states_11D, head)

    def _warm_up_prompts(self, exit_layer: int | None) -> None:
        """Build and run the programs of a prompt's layers. On CUDA prompts run uncompiled."""
        if self.device.type != "cpu":
            return
        states_1TD = self._embed(torch.zeros(1, _EXAMPLE, dtype=torch.long, device=self.device))
        inputs = self._prompt_inputs(states_1TD)
        spans = {(0, self.num_layers), (0, exit_layer or 0)}
        if self._own is not None:
            shared = exit_layer or 0
            spans = {(0, shared), (shared, self.num_layers), self._own}
        for first, last in spans:
            caches = [self._cached(layer, self._buckets[0]) for layer in range(first, last)]
            if caches:
                self._prompts[first, last] = self._blocks.prompt((first, last), caches, inputs)
                self._prompts[first, last](inputs)

    def _prompt_inputs(self, states_1TD: Tensor) -> list[Tensor]:
        """Return states and rotary factors."""
        factors = (one.contiguous() for one in self._factors(states_1TD, 0))
        return [states_1TD.contiguous(), *factors]

    def _steps(self, exit_layer: int | None) -> list[tuple[int, int, int]]:
        """Return the first and last (excluded) layer and the rows of each step of a round."""
        layers, counts = self.num_layers, self._row_counts
        steps = {(0, layers, 1)}
        if exit_layer is None:
            return sorted(steps)
        steps |= {(0, exit_layer, 1)} | {(exit_layer, layers, rows) for rows in counts[1:]}
        if self._own is not None:
            steps |= {(*self._own, rows) for rows in self._own_rows} | {(exit_layer, layers, 1)}
        if self._skips:
            whole = exit_layer if self._own is not None else layers
            steps |= {(0, whole, rows) for rows in counts}
        return sorted(step for step in steps if step[0] < step[1])

    def _cached(self, layer: int, bucket: int) -> list[Tensor]:
        """Return keys and values of a layer in a bucket."""
        place = place_in_cache(self._layers[layer])
        return list(self._cache_of(layer).layer(place, bucket))


def _padded(states_1TD: Tensor, rows: int) -> Tensor:
    """Return the states with zeros behind them, `rows` in all."""
    missing = rows - states_1TD.shape[1]
    return F.pad(states_1TD, (0, 0, 0, missing)) if missing else states_1TD


def _wider(known: Sequence[int], rows: int) -> int | None:
    """Return the smallest known number of rows that is enough; None if none is."""
    return next((one for one in known if one >= rows), None)
