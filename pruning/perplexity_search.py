"""PerplexitySearch: removes one layer after another, each time the one that is missed least.

Shapes: B texts, T tokens read, N tokens predicted, D hidden.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from processes.progress import progress
from processes.ranks import ALONE
from self_speculation.model_protocol import Llama, decoder_of
from self_speculation.uncached_llama import UncachedLlama

_BATCH_TOKENS = 2048  # read at a time


class PerplexitySearch:
    """Greedy search by the perplexity of texts (SLEB, Song et al. 2024, arXiv 2402.09025).

    A step tries to remove each layer that is left, and removes the one whose removal leaves the
    least perplexity; the first of equals. Texts are (1, T + 1), at least one of two tokens.

    - States before a layer are computed once per step, for all candidates.
    - Losses are added up from the tokens on that were hardest in the step before. A candidate whose
      sum exceeds the least sum of another is out: a sum of losses only grows.
    """

    def __init__(self, model: Llama, texts: list[Tensor]) -> None:
        self._llama = UncachedLlama(model)
        self._layers: list[nn.Module] = list(decoder_of(model).layers)
        self._left = list(range(len(self._layers)))
        # The cheapest candidates come first, so that a sum to compare with is known soon.
        self._candidates = self._left[::-1]
        self._batches = list(_batches(texts, self._llama.device))
        self._targets_N = torch.cat([ids_BT[:, 1:].flatten() for ids_BT in self._batches])
        self._hardest = _Hardest(torch.ones_like(self._targets_N))
        self._steps: list[dict[str, Any]] = []
        self._whole: float | None = None

    def result(self, count: int) -> dict[str, Any]:
        """Return the whole model's perplexity, and the steps that remove `count` layers.

        A step holds the layer, the perplexity without it and those before, and that of each
        candidate; None for a candidate that was out before its last token. Earlier calls' steps are
        not searched again. There are fewer steps where no perplexity is finite.
        """
        missing = range(len(self._steps), count)
        if missing:
            tries = sum(len(self._layers) - step for step in missing)
            with progress(ALONE, tries, unit="candidate") as advance:
                all(self._step(advance) for _ in missing)
        return {"perplexity": self._whole, "steps": self._steps[:count]}

    @torch.inference_mode()
    def _step(self, advance: Callable[..., None]) -> bool:
        """Remove a layer and return True; return False if no perplexity is finite."""
        leading = self._leading()
        if self._whole is None:
            return False
        least, best = math.inf, len(self._layers)
        sums: dict[int, float] = {}
        expected: dict[int, float] = {}
        for layer in self._candidates:
            place = self._left.index(layer)
            rest = [self._layers[index] for index in self._left[place + 1 :]]
            states = (self._llama.run(before[place], rest) for before in leading)
            sums[layer], expected[layer], nats_N = self._nats(states, least)
            if (sums[layer], layer) < (least, best):
                least, best = sums[layer], layer
                hardest = _Hardest(nats_N)
            advance(1)
        if self._perplexity(least) is None:
            return False
        found = {str(layer): self._perplexity(sums[layer]) for layer in self._left}
        step = {"layer": best, "perplexity": self._perplexity(least), "candidates": found}
        self._steps.append(step)
        self._left.remove(best)
        self._candidates = sorted(self._left, key=expected.__getitem__)
        self._hardest = hardest
        return True

    def _leading(self) -> list[list[Tensor]]:
        """Return the states before each layer that is left, of each batch, (B, T, D)."""
        layers = [self._layers[index] for index in self._left]
        leading = []
        for ids_BT in self._batches:
            embedded_BTD = self._llama.embed(ids_BT[:, :-1])
            leading.append([embedded_BTD, *self._llama.after_each(embedded_BTD, layers)])
        last = [before.pop() for before in leading]
        if not self._steps:
            total, _, nats_N = self._nats(last)
            self._whole = self._perplexity(total)
            self._hardest = _Hardest(nats_N)
        return leading

    def _nats(
        self, states: Iterable[Tensor], most: float = math.inf
    ) -> tuple[float, float, Tensor]:
        """Return the sum of the losses, the sum to be expected, and each loss, (N,).

        `states` are those after the last layer. As soon as a sum exceeds `most`, or is no number,
        it counts as infinite, and is expected to be as far above the last step's as it was then.
        """
        states_ND = torch.cat([one.flatten(0, 1).to(self._llama.device) for one in states])
        nats_N = torch.zeros(len(states_ND), dtype=torch.float64, device=states_ND.device)
        total = 0.0
        for part in self._llama.parts(len(states_ND)):
            places_N = self._hardest.order_N[part]
            said_NV = self._llama.log_probabilities(states_ND[places_N])
            targets_N1 = self._targets_N[places_N, None]
            nats_N[places_N] = -said_NV.gather(1, targets_N1)[:, 0].double()
            total += float(nats_N[places_N].sum())
            if not total <= most:
                return math.inf, total / self._hardest.share(part), nats_N
        return total, total, nats_N

    def _perplexity(self, nats: float) -> float | None:
        try:
            found = math.exp(nats / len(self._targets_N))
        except OverflowError:
            return None
        return found if math.isfinite(found) else None


class _Hardest:
    """The tokens' places by their losses in the step before, the greatest first."""

    def __init__(self, nats_N: Tensor) -> None:
        sorted_N, self.order_N = nats_N.sort(descending=True)
        self._sums_N = sorted_N.double().cumsum(0)

    def share(self, part: slice) -> float:
        """Return the share of the losses that the tokens up to the end of a part had."""
        return float(self._sums_N[: part.stop][-1] / self._sums_N[-1])


def _batches(texts: list[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield texts of equal length together, (B, T + 1); those of one token predict nothing."""
    ordered = sorted(texts, key=lambda text: text.shape[1])
    for length, alike in itertools.groupby(ordered, key=lambda text: text.shape[1]):
        if length > 1:
            ids_BT = torch.cat(list(alike)).to(device)
            yield from ids_BT.split(max(1, _BATCH_TOKENS // length))
