"""Self-speculative decoding (LayerSkip, Elhoushi et al. 2024, arXiv 2404.16710).

A drafter proposes tokens, by some of the layers or by none. All layers verify them in one pass;
layers that drafted from the first on are not computed again.
Shapes: K drafted tokens, M verified tokens (K + 1), V vocabulary.
"""

from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from self_speculation.draft_length import DraftLengths
from self_speculation.drafter import Draft, DraftSetting, drafted_by
from self_speculation.generator_base import (
    GenerationConfig,
    GenerationStrategy,
    Output,
    StopRule,
    Streamer,
)
from self_speculation.llama_model_utils import CachedLlama
from self_speculation.sampling import Noise, accept, agreeing


class SelfSpeculativeGenerationStrategy(GenerationStrategy):
    """Drafts up to `num_speculations` tokens a round; outputs are distributed as the model's.

    An output is token for token that of autoregressive decoding with the same seed if it is greedy,
    or if drafts have no distribution. Sampled drafts have one if layers draft, unless clocks or
    earlier answers have a say in what is drafted: such drafts are drawn with the verifier's own
    noise instead, so that tokens depend on neither.
    """

    def __init__(self, engine: CachedLlama, config: GenerationConfig, stop_rule: StopRule) -> None:
        super().__init__(engine, config, stop_rule)
        if not config.drafting.drafts_with_layers:
            self.exit_layer = 0
        self.lengths = DraftLengths(config.drafting, config.num_speculations)
        self._has_probabilities = config.sampling.sample and not config.drafting.differs
        self.forget_outputs()

    def forget_outputs(self) -> None:
        drafting, ends = self.config.drafting, self.stop_rule.stop_token_ids
        self.lengths.forget_acceptance()
        setting = DraftSetting(self.engine, self.config.sampling, drafting, ends, drafting.drafter)
        self.drafter = setting.make()
        self._answers = 0

    def facts(self) -> dict[str, Any]:
        earlier = self._answers - 1 if self.config.drafting.history else None
        return {
            "drafters": self.drafters,
            "switches": self.lengths.switches,
            "earlier_answers": earlier,
        }

    def begin(
        self, prompt_ids: list[int], generator: torch.Generator, streamer: Streamer | None = None
    ) -> None:
        super().begin(prompt_ids, generator, streamer)
        self.drafters: list[str] = []

    def begin_output(self, prompt_ids: list[int]) -> None:
        self._noise = Noise(self.generator)
        self._position = 0
        self.drafter.begin(prompt_ids, self._pick)
        self.lengths.begin()

    def prefill(self, output: Output) -> int:
        self.begin_output(output.prompt_ids)
        logits_1V = self.engine.prefill(self.column(output.prompt_ids))
        return int(self._choose(logits_1V, output.tokens))

    def round(self, output: Output) -> list[int]:
        started, unmeasured = perf_counter(), self._unmeasured_seconds
        tokens, self._position = output.tokens, len(output.ids)
        self._noise.forget(before=self._position)
        # The verifier adds a token, so the last token of an output is never drafted.
        most = min(self.config.num_speculations, output.remaining - 1)
        if most == 0:
            with self.stopwatch.time("full"):
                return self._verify(tokens, None)[1]

        with self.stopwatch.time("draft") as calls:
            kind, asked, draft = self._draft(tokens, most)
            calls.count = count = 0 if draft is None else len(draft.tokens_K)
        if draft is not None and self.streamer.shows_drafts:
            drafted = draft.tokens_K.tolist()
            with self.unmeasured():
                self.streamer.draft(output.ids + drafted)

        with self.stopwatch.time("verify"):
            accepted, new = self._verify(tokens, draft)
        self.rounds.append((count, accepted))
        self.drafters.append(drafted_by(kind) if kind and count else "")
        pause = self._unmeasured_seconds - unmeasured
        self.lengths.add(kind, asked, accepted, perf_counter() - started - pause)
        return new

    def finish(self, output: Output) -> None:
        self.drafter.end(output.ids)
        self._answers += 1

    def _draft(self, tokens: list[int], most: int) -> tuple[str | None, int, Draft | None]:
        """Return the kind of draft that the drafter has to offer, and a draft, if any.

        The number between them is the length that was asked for.
        """
        kind = self.drafter.outlook(tokens)
        asked = 0 if kind is None else self.lengths.choose(kind, most, self._position)
        return kind, asked, self.drafter.propose(tokens, asked) if asked else None

    def _verify(self, tokens: list[int], draft: Draft | None) -> tuple[int, list[int]]:
        """Run a draft through all layers; return how many tokens are accepted, and all new tokens.

        The new tokens are the accepted ones and a token of the verifier.
        """
        engine, rule = self.engine, self.config.sampling
        drafted_K = draft.tokens_K if draft else torch.empty(0, dtype=torch.long)
        count = len(drafted_K)
        block_1T = self.column(tokens[-1:])
        if draft:
            block_1T = torch.cat([block_1T, drafted_K[None]], dim=1)
        logits_MV = engine.verify(block_1T[:, engine.pending :], count=count + 1)
        seen = tokens + drafted_K.tolist() if rule.reads_tokens else tokens
        if draft is None or draft.probs_KV is None:
            chosen_M = self._choose(logits_MV, seen)
            # Only here does the host wait for the device.
            ids = torch.cat([drafted_K.to(chosen_M.device), chosen_M]).tolist()
            drafted, chosen = ids[:count], ids[count:]
            accepted = agreeing(drafted, chosen)
            next_token = chosen[accepted]
        else:
            probs_MV = rule.probabilities(logits_MV, seen)
            outcome_2 = accept(drafted_K, draft.probs_KV, probs_MV, self.generator)
            *drafted, accepted, next_token = torch.cat([drafted_K, outcome_2]).tolist()
        engine.rollback(engine.length - count + accepted)
        if self.drafter.learns:
            self.drafter.learn([tokens[-1], *drafted], logits_MV.argmax(-1).tolist())
        return accepted, [*drafted[:accepted], next_token]

    def _choose(self, logits_MV: Tensor, tokens: list[int]) -> Tensor:
        return self.config.sampling.choose(logits_MV, tokens, self._noise, self._position)

    def _pick(
        self, logits_1V: Tensor, tokens: list[int], place: int
    ) -> tuple[Tensor, Tensor | None]:
        """Draw the draft number `place` of a round."""
        rule = self.config.sampling
        if self._has_probabilities:
            return rule.pick(logits_1V, tokens, self.generator)
        return rule.choose(logits_1V, tokens, self._noise, self._position + place), None
