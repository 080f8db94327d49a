"""BatchedTextGenerator: a model and a tokenizer become an autoregressive decoder of many prompts.

Shapes: B sequences that decode at the same time, V vocabulary.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from self_speculation.batched_llama import BatchedLlama
from self_speculation.compiled_batch import CompiledBatch
from self_speculation.generator_base import (
    Generation,
    GenerationConfig,
    Output,
    StopRule,
    output_limit,
)
from self_speculation.model_protocol import Llama
from self_speculation.sampling import seeded_generator
from self_speculation.text_generator import WARM_UP_STEPS, stop_rule_of
from self_speculation.timing import now


@dataclass
class _Sequence:
    """A prompt with its output, its stop rule and its draws."""

    output: Output
    ending: StopRule
    generator: torch.Generator


class BatchedTextGenerator:
    """Decodes prompts of up to `capacity` tokens, output included, `batch_size` at a time.

    Decodes autoregressively: with the first layers, if `config` has an exit layer. Stops at the end
    tokens of the model and tokenizer, and at the stop tokens and words of `config`. An output does
    not depend on the other prompts, up to rounding. `compiled`: steps run compiled;
    `engine.compile_seconds` is the time that compiling took. Raises `CompileError` if it fails, and
    ValueError for flash attention.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Any,
        config: GenerationConfig,
        capacity: int,
        batch_size: int,
        compiled: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if compiled:
            exit_layer = config.kept_exit_layer
            self.engine: BatchedLlama = CompiledBatch(model, capacity, batch_size, exit_layer)
        else:
            self.engine = BatchedLlama(model, capacity, batch_size)
        self.config = config
        self._tokenizer = tokenizer
        self._stop_rule = stop_rule_of(model, tokenizer, config)

    def generate(
        self, prompts: list[list[int]], seed: int = 0, example_ids: list[str] | None = None
    ) -> list[Generation]:
        """Generate an output for each prompt; the same seed and example id draw the same tokens.

        Of more prompts than `batch_size`, each waits for a row that an ended output leaves. Each
        result's `prefill_seconds` and `decode_seconds` are those of all prompts together; it has no
        step times. Raises ValueError for a prompt that is empty or longer than the capacity.
        """
        ids = example_ids or [""] * len(prompts)
        pairs = zip(prompts, ids, strict=True)
        sequences = [self._begin(prompt, seed, name) for prompt, name in pairs]
        started = now(self.engine.device)
        prefill_seconds = self._decode(sequences)
        seconds = now(self.engine.device) - started
        return [_result(one, prefill_seconds, seconds - prefill_seconds) for one in sequences]

    def warm_up(self, prompts: list[list[int]]) -> list[Generation]:
        """Decode a few tokens without stopping, so that the next outputs are timed warm."""
        ordinary = self.config, self._stop_rule
        self.config = replace(self.config, max_steps=WARM_UP_STEPS)
        self._stop_rule = StopRule(self._tokenizer, set(), ())
        try:
            return self.generate(prompts)
        finally:
            self.config, self._stop_rule = ordinary

    def _begin(self, prompt_ids: list[int], seed: int, example_id: str) -> _Sequence:
        limit = output_limit(self.engine, prompt_ids, self.config.max_steps)
        ending = self._stop_rule.after(prompt_ids)
        generator = seeded_generator(self.engine.device, seed, example_id, "generate")
        return _Sequence(Output(prompt_ids, limit, ending), ending, generator)

    def _decode(self, sequences: list[_Sequence]) -> float:
        """Decode all sequences to their ends; return the seconds of the prefills."""
        engine, prefill_seconds = self.engine, 0.0
        engine.reset(self.config.kept_exit_layer)
        waiting, running = deque(sequences), list[_Sequence]()
        while waiting or running:
            free = engine.batch_size - len(running)
            if waiting and free:
                started = now(engine.device)
                joining = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                logits_BV = engine.add([one.output.prompt_ids for one in joining])
                self._extend(joining, logits_BV)
                running += joining
                prefill_seconds += now(engine.device) - started
            else:
                self._extend(running, engine.step([one.output.ids[-1] for one in running]))
            self._drop_ended(running)
        return prefill_seconds

    def _extend(self, sequences: list[_Sequence], logits_BV: Tensor) -> None:
        tokens = [one.output.tokens for one in sequences]
        generators = [one.generator for one in sequences]
        chosen = self.config.sampling.pick_each(logits_BV, tokens, generators)
        for one, token in zip(sequences, chosen, strict=True):
            one.output.extend([token])

    def _drop_ended(self, running: list[_Sequence]) -> None:
        """Free the rows of ended outputs; as in the engine, the last sequence takes such a row."""
        for row in reversed(range(len(running))):
            if running[row].output.stop_reason is not None:
                self.engine.drop(row)
                last = running.pop()
                if row < len(running):
                    running[row] = last


def _result(one: _Sequence, prefill_seconds: float, decode_seconds: float) -> Generation:
    output = one.output
    assert output.stop_reason is not None, "an output without an end"
    return Generation(
        output_ids=output.ids,
        text=one.ending.text(output.ids, output.stop_reason),
        stop_reason=output.stop_reason,
        prompt_tokens=len(output.prompt_ids),
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
    )
