"""Autoregressive decoding: one pass over the layers per token."""

from self_speculation.generator_base import GenerationStrategy, Output


class AutoRegressiveGenerationStrategy(GenerationStrategy):
    """Decode with the whole model, or with its first layers if the configuration has an exit layer.

    The latter is early-exit inference: a smaller model, and no baseline for self-speculation.
    """

    def prefill(self, output: Output) -> int:
        return self.step(output, self.column(output.prompt_ids), self.config.kept_exit_layer)

    def round(self, output: Output) -> list[int]:
        depth = self.config.kept_exit_layer
        with self.stopwatch.time("full" if depth is None else "early_exit"):
            token = self.step(output, self.column([output.ids[-1]]), depth)
        return [token]
