"""Autoregressive and self-speculative decoding of a Llama."""

from self_speculation.autoregressive_generator import AutoRegressiveGenerationStrategy
from self_speculation.generator_base import GenerationStrategy
from self_speculation.self_speculation_generator import SelfSpeculativeGenerationStrategy

STRATEGIES: dict[str, type[GenerationStrategy]] = {
    "autoregressive": AutoRegressiveGenerationStrategy,
    "self_speculative": SelfSpeculativeGenerationStrategy,
}
