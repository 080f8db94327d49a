"""States: how far layers, and blocks of layers, turn the residual stream.

x(l) is the residual stream before layer l, and x(L) that after the last layer.
Shapes: T tokens, L layers, D hidden.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from processes.ranks import ALONE, Ranks
from self_speculation.model_protocol import Llama, decoder_of
from self_speculation.uncached_llama import UncachedLlama


@dataclass(frozen=True)
class States:
    """Scores of layers from the states of calibration texts, in float64.

    `distances`: d(l, n) = arccos(cos_sim(x(l), x(l + n))) / pi at the last token, averaged over
    texts, (L + 1, L + 1) and NaN for l + n > L (Gromov et al. 2024, arXiv 2403.17887).
    `influences`: 1 - cos_sim(x(l), x(l + 1)), averaged over all tokens, (L,) (Men et al. 2024,
    arXiv 2403.03853).
    """

    distances: Tensor
    influences: Tensor


def measure_states(model: Llama, texts: list[Tensor], ranks: Ranks = ALONE) -> States:
    """Run each text, (1, T), through all layers once, without the LM head.

    Each process measures its share of the texts; they are added up in the order of the texts.
    """
    llama, layers = UncachedLlama(model), decoder_of(model).layers
    with torch.inference_mode():
        measured = [read_text(llama, layers, text)[1] for text in ranks.share(texts)]
    size = _size(len(layers))
    share = torch.stack(measured) if measured else torch.zeros(0, size, dtype=torch.float64)
    shares = [list(one) for one in ranks.gather(share)]
    return averaged(ranks.in_order(shares), texts)


def read_text(
    llama: UncachedLlama, layers: Iterable[nn.Module], text: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the states after the last layer, (1, T, D), and what `averaged` adds up."""
    before_1TD = llama.embed(text.to(llama.device))
    last_tokens, cosines = [_last_token(before_1TD)], []
    for after_1TD in llama.after_each(before_1TD, layers):
        last_tokens.append(_last_token(after_1TD))
        cosines.append(_sum_of_cosines(before_1TD.detach(), after_1TD.detach()))
        before_1TD = after_1TD
    unit = nn.functional.normalize(torch.stack(last_tokens), dim=-1)
    angles = (unit @ unit.T).clamp(-1, 1).arccos() / math.pi
    sums = torch.tensor(cosines, dtype=torch.float64)
    return before_1TD, torch.cat([angles.flatten(), sums])


def averaged(measured: list[Tensor], texts: list[Tensor]) -> States:
    """Return the averages over texts, and over their tokens."""
    total = torch.zeros_like(measured[0])
    for one in measured:  # in the order of the texts, so that the sum is the same in all processes
        total += one
    layers = next(count for count in range(len(total)) if _size(count) == len(total))
    angles, cosines = total.split([(layers + 1) ** 2, layers])
    angles = angles.reshape(layers + 1, layers + 1) / len(texts)
    distances = torch.full_like(angles, math.nan)
    for first in range(layers + 1):
        distances[first, : layers + 1 - first] = angles[first, first:]
    return States(distances, 1 - cosines / sum(text.shape[1] for text in texts))


def _size(layers: int) -> int:
    return (layers + 1) ** 2 + layers


def _last_token(states_1TD: Tensor) -> Tensor:
    # A view would hold every position.
    return states_1TD[0, -1].detach().clone().cpu().double()


def _sum_of_cosines(before_1TD: Tensor, after_1TD: Tensor) -> float:
    before_1TD = before_1TD.to(after_1TD.device).double()
    return float(torch.cosine_similarity(before_1TD, after_1TD.double(), dim=-1).sum())
