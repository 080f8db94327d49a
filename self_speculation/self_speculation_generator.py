"""Self-speculative decoding (LayerSkip, Elhoushi et al. 2024, arXiv 2404.16710).

Few layers draft: the model's first layers, or those that a plan keeps. All layers verify; layers
that both share from the first on are computed once.
Shapes: K drafted tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from self_speculation.generator_base import GenerationStrategy, Output, Streamer
from self_speculation.llama_model_utils import CachedLlama, on_device
from self_speculation.sampling import SamplingRule, accept


@dataclass
class Draft:
    """Proposed tokens, (K,), and the distributions of their draws, (K, V); None if certain."""

    tokens_K: Tensor
    probs_KV: Tensor | None


class Drafter(Protocol):
    """Proposes tokens. Tokens that it runs through `engine.draft` stay pending until verified."""

    def propose(self, tokens: list[int], count: int, generator: torch.Generator) -> Draft:
        """Propose 1 to `count` tokens to follow `tokens`, whose last one is not cached."""


class LayerDrafter:
    """Drafts with the engine's draft layers; the verifier reuses the work of shared layers.

    On a CPU a draft ends at a token of `ends`. On other devices it has its full length, because
    reading each token would make the host wait.
    """

    def __init__(self, engine: CachedLlama, rule: SamplingRule, ends: frozenset[int]) -> None:
        self._engine = engine
        self._rule = rule
        self._ends = ends if engine.device.type == "cpu" else frozenset()

    def propose(self, tokens: list[int], count: int, generator: torch.Generator) -> Draft:
        token_1 = on_device(tokens[-1:], self._engine.device)
        drafted: list[Tensor] = []
        probs: list[Tensor] = []
        for _ in range(count):
            logits_1V = self._engine.draft(token_1[None])
            token_1, probs_V = self._rule.pick(logits_1V, self._seen(tokens, drafted), generator)
            drafted.append(token_1)
            if probs_V is not None:
                probs.append(probs_V)
            if self._ends and int(token_1) in self._ends:
                break
        return Draft(torch.cat(drafted), torch.stack(probs) if probs else None)

    def _seen(self, tokens: list[int], drafted: list[Tensor]) -> list[int]:
        if not self._rule.reads_tokens:
            return tokens
        return tokens + [int(token) for token in drafted]


class SelfSpeculativeGenerationStrategy(GenerationStrategy):
    """Drafts `num_speculations` tokens per round; outputs are distributed as the whole model's."""

    def begin(
        self, prompt_ids: list[int], generator: torch.Generator, streamer: Streamer | None = None
    ) -> None:
        super().begin(prompt_ids, generator, streamer)
        ends = self.stop_rule.stop_token_ids
        self.drafter: Drafter = LayerDrafter(self.engine, self.config.sampling, ends)

    def prefill(self, output: Output) -> int:
        return self.picked(output, self.engine.prefill(self.column(output.prompt_ids)))

    def round(self, output: Output) -> list[int]:
        engine, tokens, rule = self.engine, output.tokens, self.config.sampling
        # The verifier adds a token, so the last token of an output is never drafted.
        most = min(self.config.num_speculations, output.remaining - 1)
        if most == 0:
            with self.stopwatch.time("full"):
                return [self.step(output, self.column(tokens[-1:]))]

        with self.stopwatch.time("draft") as calls:
            draft = self.drafter.propose(tokens, most, self.generator)
            calls.count = count = len(draft.tokens_K)
        if self.streamer.shows_drafts:
            drafted = draft.tokens_K.tolist()
            with self.unmeasured():
                self.streamer.draft(output.ids + drafted)

        seen = tokens + draft.tokens_K.tolist() if rule.reads_tokens else tokens
        block_1T = torch.cat([self.column(tokens[-1:]), draft.tokens_K[None]], dim=1)
        with self.stopwatch.time("verify"):
            logits_MV = engine.verify(block_1T[:, engine.pending :], count=count + 1)
            probs_MV = rule.probabilities(logits_MV, seen)

        outcome_2 = accept(
            draft.tokens_K, draft.probs_KV, probs_MV, self.generator if rule.sample else None
        )
        # Only here does the host wait for the device.
        *drafted, accepted, next_token = torch.cat([draft.tokens_K, outcome_2]).tolist()

        engine.rollback(engine.length - count + accepted)
        self.rounds.append((count, accepted))
        return [*drafted[:accepted], next_token]
