"""From a model and a tokenizer to generated text, with either strategy."""

from typing import Any

import torch
from torch import nn

from self_speculation import STRATEGIES
from self_speculation.compiled_llama import CompiledLlama
from self_speculation.generator_base import Generation, GenerationConfig, StopRule, Streamer
from self_speculation.llama_model_utils import CachedLlama
from self_speculation.sampling import seeded_generator
from self_speculation.timing import StepTime, Stopwatch

# Enough to take every kind of step.
WARM_UP_STEPS = 8
_WARM_UP_PROMPT = 32


class TextGenerator:
    """Decodes prompts of up to `capacity` tokens, output included, with one strategy.

    Stops at the model's own end tokens and at those and the words of `config`. `compiled`: the
    engine's steps run compiled; `engine.compile_seconds` tells what that took.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        strategy: str,
        config: GenerationConfig,
        capacity: int,
        compiled: bool = False,
    ) -> None:
        if compiled:
            drafted = config.num_speculations if strategy == "self_speculative" else 0
            self.engine = CompiledLlama(model, capacity, config.kept_exit_layer, drafted)
        else:
            self.engine = CachedLlama(model, capacity)
        self._tokenizer = tokenizer
        ends = end_token_ids(model, tokenizer) | set(config.stop_token_ids)
        # Special tokens leave no trace in the text: as stop words they are stop tokens.
        added = tokenizer.added_tokens_decoder.items()
        special = {token.content: token_id for token_id, token in added if token.special}
        ends |= {special[word] for word in config.stop_words if word in special}
        words = tuple(word for word in config.stop_words if word not in special)
        stop_rule = StopRule(tokenizer, ends, words)
        self.strategy = STRATEGIES[strategy](self.engine, config, stop_rule)

    def generate(
        self,
        prompt_ids: list[int],
        seed: int = 0,
        example_id: str = "",
        max_steps: int | None = None,
        streamer: Streamer | None = None,
    ) -> Generation:
        """Generates one output; the same seed and example id draw the same tokens."""
        generator = seeded_generator(self.engine.device, seed, example_id, "generate")
        return self.strategy.generate(prompt_ids, generator, max_steps, streamer)

    def warm_up(self, prompt_ids: list[int] | None = None) -> Generation:
        """Decodes a few tokens, which nothing ends, so that the next output is timed warm.

        Allocates the cache. Later outputs are those of a decoder that was never warmed up. Without
        a prompt, a short one is made up.
        """
        prompt_ids = prompt_ids or [0] * min(_WARM_UP_PROMPT, (self.engine.capacity + 1) // 2)
        ordinary = self.strategy.stop_rule
        self.strategy.stop_rule = StopRule(self._tokenizer, set(), ())
        try:
            return self.generate(prompt_ids, max_steps=WARM_UP_STEPS)
        finally:
            self.strategy.stop_rule = ordinary

    def time_full_step(self, token_id: int, repeats: int = 2) -> StepTime:
        """Times full-depth steps at the end of the sequence just generated, and ends it.

        They are the yardstick of draft and verify steps in a run that takes no full step itself;
        like those they include the choice of a token. Every step writes the last cached position
        again, so that all attend to as many tokens.
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


def end_token_ids(model: nn.Module, tokenizer: Any) -> set[int]:
    """The tokens with which model and tokenizer say that an output is over."""
    declared = getattr(model.generation_config, "eos_token_id", None)
    declared = declared if isinstance(declared, list) else [declared]
    return {token_id for token_id in [*declared, tokenizer.eos_token_id] if token_id is not None}
