"""Decodes prompts in batches, as large as memory allows."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from command_line.messages import warn
from runs.fitting import within_memory
from self_speculation.batched_generator import BatchedTextGenerator
from self_speculation.generator_base import Generation

_Item = TypeVar("_Item")

# An ended output leaves its place to a waiting prompt, so that a call takes more prompts than
# places. What a call decoded is lost if the process is killed before its end.
_PROMPTS_PER_PLACE = 4


class BatchDecoder:
    """Decodes up to `size` prompts at a time, autoregressively.

    `make` returns a warm decoder of so many prompts at a time; `needed` returns the positions that
    a prompt of a length needs with its output. Where memory runs out, the size is halved with a
    warning, and the prompts are decoded again: outputs do not depend on the size. Errors of
    `make(1)` are raised. `seconds` is the time of all calls that succeeded.
    """

    def __init__(
        self,
        make: Callable[[int], BatchedTextGenerator],
        size: int,
        needed: Callable[[int], int] = lambda _: 0,
    ) -> None:
        self._make, self._needed, self.size, self.seconds = make, needed, size, 0.0
        self._generator = self._made()

    @property
    def compile_seconds(self) -> float | None:
        return self._generator.engine.compile_seconds

    def decode(
        self, prompts: list[list[int]], seed: int, names: list[str]
    ) -> list[Generation | None]:
        """Return an output for each prompt, of any number of prompts.

        None for a prompt for which memory does not suffice even alone.
        """
        while self.size > 1:
            made = self._within_memory(prompts, seed, names)
            if made is not None:
                return made
            del self._generator  # frees its cache before the next is allocated
            self._halve()
            self._generator = self._made()
        together = self._within_memory(prompts, seed, names)
        if together is not None:
            return together
        alone = zip(prompts, names, strict=True)
        found = [self._within_memory([ids], seed, [name]) or [None] for ids, name in alone]
        return [one for parts in found for one in parts]

    def _within_memory(
        self, prompts: list[list[int]], seed: int, names: list[str]
    ) -> list[Generation | None] | None:
        """Return the outputs, None for prompts that the cache cannot hold; None if memory ends."""
        capacity = self._generator.engine.capacity
        chosen = [place for place, ids in enumerate(prompts) if self._needed(len(ids)) <= capacity]
        if not chosen:
            return [None] * len(prompts)
        call = [prompts[place] for place in chosen], seed, [names[place] for place in chosen]
        made = within_memory(partial(self._generator.generate, *call))
        if made is None:
            return None
        self.seconds += made[0].seconds
        by_place = dict(zip(chosen, made, strict=True))
        return [by_place.get(place) for place in range(len(prompts))]

    def _made(self) -> BatchedTextGenerator:
        while self.size > 1:
            made = within_memory(partial(self._make, self.size))
            if made is not None:
                return made
            self._halve()
        return self._make(1)

    def _halve(self) -> None:
        half = self.size // 2
        warn(f"--batch_size {self.size}: out of memory; {half} at a time from now on")
        self.size = half


def calls_of(
    items: Sequence[_Item], length: Callable[[_Item], int], size: int
) -> Iterator[list[_Item]]:
    """Divide the items whose prompts have these lengths among calls of `BatchDecoder.decode`.

    Prompts of a call have similar lengths, because each step costs as much as its longest sequence.
    """
    ordered = sorted(items, key=length)
    count = size * _PROMPTS_PER_PLACE
    return (ordered[at : at + count] for at in range(0, len(ordered), count))
