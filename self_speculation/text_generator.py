"""TextGenerator: a model and a tokenizer become a decoder of prompts, with either strategy."""

from typing import Any

import torch

from self_speculation.autoregressive_generator import AutoRegressiveGenerationStrategy
from self_speculation.compiled_llama import CompiledLlama, CompiledRounds
from self_speculation.draft_length import draft_lengths
from self_speculation.generator_base import (
    Generation,
    GenerationConfig,
    GenerationStrategy,
    StopRule,
    Streamer,
)
from self_speculation.llama_model_utils import CachedLlama
from self_speculation.model_protocol import Llama
from self_speculation.sampling import seeded_generator
from self_speculation.self_speculation_generator import SelfSpeculativeGenerationStrategy
from self_speculation.timing import StepTime, Stopwatch

STRATEGIES: dict[str, type[GenerationStrategy]] = {
    "autoregressive": AutoRegressiveGenerationStrategy,
    "self_speculative": SelfSpeculativeGenerationStrategy,
}
# Enough for every kind of step.
WARM_UP_STEPS = 8
# Enough to measure every length among which drafting chooses.
_MEASURING_STEPS = 64
_WARM_UP_PROMPT = 32


class TextGenerator:
    """Decodes prompts of up to `capacity` tokens, output included, with one strategy.

    Stops at the end tokens of the model and tokenizer, and at the stop tokens and words of
    `config`. `compiled`: the engine's steps run compiled; `engine.compile_seconds` is the time that
    compiling took. Raises `CompileError` if it fails.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Any,
        strategy: str,
        config: GenerationConfig,
        capacity: int,
        compiled: bool = False,
    ) -> None:
        speculates = strategy == "self_speculative"
        layers = config.draft_layers if speculates else None
        vocabulary = config.drafting.vocabulary if speculates else None
        if compiled:
            early = CompiledRounds(config.kept_exit_layer)
            rounds = compiled_rounds(config) if speculates else early
            self.engine: CachedLlama = CompiledLlama(model, capacity, rounds, layers, vocabulary)
        else:
            self.engine = CachedLlama(model, capacity, layers, vocabulary)
        self._tokenizer = tokenizer
        stop_rule = stop_rule_of(model, tokenizer, config)
        self.strategy = STRATEGIES[strategy](self.engine, config, stop_rule)

    def generate(
        self,
        prompt_ids: list[int],
        seed: int = 0,
        example_id: str = "",
        max_steps: int | None = None,
        streamer: Streamer | None = None,
    ) -> Generation:
        """Generate an output; the same seed and example id draw the same tokens."""
        generator = seeded_generator(self.engine.device, seed, example_id, "generate")
        return self.strategy.generate(prompt_ids, generator, max_steps, streamer)

    def warm_up(self, prompt_ids: list[int] | None = None) -> Generation:
        """Decode a few tokens without stopping, so that the next output is timed warm.

        Allocates the cache and does not change later outputs. The default prompt is short.
        """
        prompt_ids = prompt_ids or [0] * min(_WARM_UP_PROMPT, (self.engine.capacity + 1) // 2)
        ordinary, measures = self.strategy.stop_rule, self.strategy.config.drafting.measures
        self.strategy.stop_rule = StopRule(self._tokenizer, set(), ())
        try:
            steps = _MEASURING_STEPS if measures else WARM_UP_STEPS
            return self.generate(prompt_ids, max_steps=steps)
        finally:
            self.strategy.stop_rule = ordinary
            self.strategy.forget_outputs()

    def time_full_step(self, token_id: int, repeats: int = 2) -> StepTime:
        """Time full-depth steps at the end of the last output, which cannot go on afterwards.

        Draft and verify steps are compared with them in a run without full steps; all of these
        steps include the choice of a token. Each repeat writes the last cached position again, so
        that all attend to the same number of tokens.
        """
        engine, stopwatch = self.engine, Stopwatch(self.engine.device)
        sampling = self.strategy.config.sampling
        ids_1T = torch.tensor([[token_id]], device=engine.device)
        for _ in range(repeats):
            engine.rollback(engine.length - 1)
            with stopwatch.time("full"):
                logits_1V = engine.forward(ids_1T)
                sampling.pick(logits_1V, [token_id], self.strategy.generator)
        return stopwatch.steps()["full"]


def compiled_rounds(config: GenerationConfig) -> CompiledRounds:
    """Return the steps that self-speculation with this configuration takes."""
    drafting, most = config.drafting, config.num_speculations
    lengths = draft_lengths(most) if drafting.varies else [most]
    exit_layer = config.kept_exit_layer if drafting.drafts_with_layers else 0
    return CompiledRounds(exit_layer, tuple(lengths), drafting.skips)


def stop_rule_of(model: Llama, tokenizer: Any, config: GenerationConfig) -> StopRule:
    """Return the rule of the model's and tokenizer's end tokens and the configuration's stops."""
    ends = end_token_ids(model, tokenizer) | set(config.stop_token_ids)
    # Special tokens do not appear in the text: as stop words they become stop tokens.
    added = tokenizer.added_tokens_decoder.items()
    special = {token.content: token_id for token_id, token in added if token.special}
    ends |= {special[word] for word in config.stop_words if word in special}
    words = tuple(word for word in config.stop_words if word not in special)
    return StopRule(tokenizer, ends, words)


def end_token_ids(model: Llama, tokenizer: Any) -> set[int]:
    """Return the end tokens of the model and of its tokenizer."""
    declared = getattr(model.generation_config, "eos_token_id", None)
    declared = declared if isinstance(declared, list) else [declared]
    return {token_id for token_id in [*declared, tokenizer.eos_token_id] if token_id is not None}
