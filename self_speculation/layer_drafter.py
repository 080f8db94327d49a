"""LayerDrafter: a part of the model's layers drafts.

LayerSkip's self-speculation (Elhoushi et al. 2024, arXiv 2404.16710) drafts with the first layers.
Shapes: V vocabulary.
"""

import torch
from torch import Tensor

from self_speculation.drafter import Draft, Drafter, DraftSetting, Pick
from self_speculation.llama_model_utils import on_device


class LayerDrafter(Drafter):
    """Drafts with the engine's draft layers; the verifier reuses the work of shared layers.

    A draft ends after a token whose own probability is below the threshold. On a CPU it also ends
    at a token of `ends`. On other devices it does not, because reading each token would make the
    host wait, as a threshold does.
    """

    def __init__(self, setting: DraftSetting) -> None:
        self._engine, self._rule, self._name = setting.engine, setting.rule, setting.drafter
        self._threshold = setting.drafting.threshold
        self._ends = setting.ends if setting.engine.device.type == "cpu" else frozenset()

    def begin(self, prompt_ids: list[int], pick: Pick) -> None:
        self._pick = pick

    def outlook(self, tokens: list[int]) -> str:
        return self._name

    def propose(self, tokens: list[int], count: int) -> Draft:
        token_1 = on_device(tokens[-1:], self._engine.device)
        drafted: list[Tensor] = []
        probs: list[Tensor] = []
        for place in range(count):
            logits_1V = self._engine.draft(token_1[None])
            token_1, probs_V = self._pick(logits_1V, self._seen(tokens, drafted), place)
            drafted.append(token_1)
            if probs_V is not None:
                probs.append(probs_V)
            if self._ends and int(token_1) in self._ends:
                break
            if self._threshold and _probability(logits_1V, token_1, probs_V) < self._threshold:
                break
        return Draft(torch.cat(drafted), torch.stack(probs) if probs else None)

    def _seen(self, tokens: list[int], drafted: list[Tensor]) -> list[int]:
        if not self._rule.reads_tokens:
            return tokens
        return tokens + [int(token) for token in drafted]


def _probability(logits_1V: Tensor, token_1: Tensor, probs_V: Tensor | None) -> float:
    """Return the probability of a token in the distribution that it was drawn from, if known.

    Otherwise the model's own, at temperature 1.
    """
    if probs_V is None:
        probs_V = logits_1V[0].float().softmax(-1)
    return float(probs_V[token_1])
