"""Angular distances between the states before any two layers."""

import math

import torch
from torch import Tensor, nn

from processes.ranks import ALONE, Ranks
from self_speculation.model_protocol import Llama, decoder_of
from self_speculation.offloading import input_device


def angular_distances(model: Llama, prompts: list[Tensor], ranks: Ranks = ALONE) -> Tensor:
    """Return d(l, n) for all l and n, float64 (L + 1, L + 1); NaN for l + n > L.

    d(l, n) = arccos(cos_sim(x(l), x(l + n))) / pi, averaged over prompts, where x(l) is the
    residual stream before layer l at the prompt's last token, and x(L) that after the last layer
    (Gromov et al. 2024, arXiv 2403.17887). Each prompt costs one forward pass without the LM head.
    Each process measures its share of the prompts; they are added up in the order of the prompts.
    """
    layers = model.config.num_hidden_layers
    total = torch.zeros(layers + 1, layers + 1, dtype=torch.float64)
    measured = [_distances_of(model, prompt) for prompt in ranks.share(prompts)]
    shares = ranks.gather(torch.stack(measured) if measured else total[None][:0])
    for distances_of_prompt in ranks.in_order([share.unbind() for share in shares]):
        total += distances_of_prompt
    distances = torch.full_like(total, math.nan)
    for first in range(layers + 1):
        distances[first, : layers + 1 - first] = total[first, first:] / len(prompts)
    return distances


def _distances_of(model: Llama, prompt: Tensor) -> Tensor:
    unit = nn.functional.normalize(_last_token_states(model, prompt), dim=-1)
    return (unit @ unit.T).clamp(-1, 1).arccos() / math.pi


@torch.inference_mode()
def _last_token_states(model: Llama, prompt: Tensor) -> Tensor:
    """Return x(0) .. x(L) at the last token, float64 (L + 1, D)."""
    states: list[Tensor] = []

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        states.append(inputs[0][0, -1].clone())  # a view would hold every position

    decoder = decoder_of(model)
    modules = [*decoder.layers, decoder.norm]
    hooks = [module.register_forward_pre_hook(keep_input) for module in modules]
    try:
        decoder(input_ids=prompt.to(input_device(model)), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([state.cpu().double() for state in states])
