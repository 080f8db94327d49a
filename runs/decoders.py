"""Answers the prompts of a run: one after another, or many at a time."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from models.loading import LoadedModel
from pruned_model import PruneModel
from runs.batches import BatchDecoder, calls_of
from runs.conversations import Answer, Request, needed_prompt
from runs.definition import RunDefinition
from runs.encoding import EncodedExample
from runs.fitting import fitted_to_memory, within_memory
from runs.loop import one_by_one
from runs.preparation import make_batched_generator, make_generator, positions_for
from runs.record import Key
from self_speculation.batched_generator import BatchedTextGenerator
from self_speculation.generator_base import Generation
from self_speculation.text_generator import TextGenerator


class Decoder(Protocol):
    """Answers prompts. `compile_seconds` is None without compilation."""

    @property
    def compile_seconds(self) -> float | None: ...

    @property
    def batch_size(self) -> int | None:
        """The prompts that are decoded at a time; None if each is timed alone."""

    @property
    def joint_seconds(self) -> float:
        """Seconds of all answers so far that have none of their own."""

    def groups(self, keys: Sequence[Key]) -> Iterable[list[Key]]:
        """Divide the keys of examples into those whose prompts are best answered together."""

    def answers(self, requests: list[Request]) -> list[Answer | None]:
        """Answer prompts; None for each for which memory does not suffice."""


def make_decoder(
    definition: RunDefinition,
    loaded: LoadedModel,
    pruned: PruneModel,
    encoded: list[EncodedExample],
) -> Decoder:
    """Return a warm decoder with room for the longest prompt that memory allows.

    Raises `FailedError` if memory suffices for no prompt.
    """
    kind = SingleDecoder if definition.arguments.measure.at_once == 1 else ManyDecoder
    return kind(definition, loaded, pruned, encoded)


class SingleDecoder:
    """Decodes one prompt after another and times each."""

    batch_size = None
    joint_seconds = 0.0

    def __init__(
        self,
        definition: RunDefinition,
        loaded: LoadedModel,
        pruned: PruneModel,
        encoded: list[EncodedExample],
    ) -> None:
        self._definition = definition
        arguments = definition.arguments

        def make(longest: int, prompt: list[int]) -> TextGenerator:
            flags, draft, words = arguments.generation, arguments.draft, arguments.stop_words
            generator = make_generator(flags, draft, loaded, pruned, words, longest)
            made = generator.warm_up(prompt)  # allocates the cache
            _time_full_step(generator, prompt, made)
            return generator

        needed = partial(needed_prompt, definition)
        self._generator = fitted_to_memory(definition, encoded, arguments.generation, make, needed)

    @property
    def compile_seconds(self) -> float | None:
        return self._generator.engine.compile_seconds

    def groups(self, keys: Sequence[Key]) -> Iterable[list[Key]]:
        return one_by_one(keys)

    def answers(self, requests: list[Request]) -> list[Answer | None]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Answer | None:
        needed = _positions_of(self._definition)(len(request.prompt_ids))
        if needed > self._generator.engine.capacity:
            return None
        return within_memory(partial(self._decode, request))

    def _decode(self, request: Request) -> Answer:
        generator, seed = self._generator, self._definition.arguments.generation.seed
        made = generator.generate(request.prompt_ids, seed, request.name)
        return Answer(request, made, _time_full_step(generator, request.prompt_ids, made))


class ManyDecoder:
    """Decodes up to `--batch_size` prompts at a time; their answers know only joint seconds."""

    def __init__(
        self,
        definition: RunDefinition,
        loaded: LoadedModel,
        pruned: PruneModel,
        encoded: list[EncodedExample],
    ) -> None:
        self._definition, self._encoded = definition, encoded
        arguments = definition.arguments
        flags, needed = arguments.generation, partial(needed_prompt, definition)
        prompts = [item.prompt_ids for item in encoded if item.prompt_ids]
        longest = max(needed(item) for item in encoded if item.prompt_ids)

        def made(size: int, longest: int, prompts: list[list[int]]) -> BatchedTextGenerator:
            words = arguments.stop_words
            generator = make_batched_generator(flags, loaded, pruned.plan, words, longest, size)
            generator.warm_up(prompts)
            return generator

        def make(size: int) -> BatchedTextGenerator:
            if size > 1:
                return made(size, longest, prompts[:size])

            def alone(longest: int, prompt: list[int]) -> BatchedTextGenerator:
                return made(1, longest, [prompt])

            return fitted_to_memory(definition, encoded, flags, alone, needed)

        size = min(arguments.measure.at_once, len(prompts))
        self._decoder = BatchDecoder(make, size, _positions_of(definition))

    @property
    def batch_size(self) -> int:
        return self._decoder.size

    @property
    def joint_seconds(self) -> float:
        return self._decoder.seconds

    @property
    def compile_seconds(self) -> float | None:
        return self._decoder.compile_seconds

    def groups(self, keys: Sequence[Key]) -> Iterable[list[Key]]:
        def length(key: Key) -> int:
            return len(self._encoded[key.example].prompt_ids or [])

        return calls_of(keys, length, self.batch_size)

    def answers(self, requests: list[Request]) -> list[Answer | None]:
        seed = self._definition.arguments.generation.seed
        prompts, names = [one.prompt_ids for one in requests], [one.name for one in requests]
        made = self._decoder.decode(prompts, seed, names)
        pairs = zip(requests, made, strict=True)
        return [Answer(request, one) if one else None for request, one in pairs]


def _positions_of(definition: RunDefinition) -> Callable[[int], int]:
    """Return a function from a prompt's length to the positions of prompt and longest output."""
    flags = definition.arguments.generation
    return partial(positions_for, definition.checkpoint.config, flags)


def _time_full_step(
    generator: TextGenerator, ids: list[int], made: Generation
) -> dict[str, float] | None:
    """Time full steps as a yardstick for speculative rounds; return None for other outputs.

    Plain outputs consist of steps. After early exit, the last layers have cached nothing that a
    full step could attend to.
    """
    return dataclasses.asdict(generator.time_full_step(ids[-1])) if made.rounds else None
