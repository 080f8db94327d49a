"""Batches shrink until memory suffices, and outputs do not depend on their size."""

from types import SimpleNamespace

import pytest
import torch

from runs.batches import BatchDecoder, calls_of
from self_speculation.generator_base import Generation

PROMPTS = [[1], [2, 3], [4]]


class Engine:
    capacity, compile_seconds = 7, None


class FakeGenerator:
    """Answers each prompt with its length, while at most `fitting` of them decode at once."""

    engine = Engine()

    def __init__(self, size, fitting):
        self.size, self.fitting = size, fitting

    def generate(self, prompts, seed, names):
        if self.size > self.fitting:
            raise torch.OutOfMemoryError("no memory to decode")
        return [Generation([0] * len(ids), "", "length", len(ids), 1.0, 2.0) for ids in prompts]


@pytest.mark.parametrize("to_make", [1, 2, 3, 8])
@pytest.mark.parametrize("to_decode", [1, 2, 5])
def test_the_batch_is_halved_until_memory_suffices(to_make, to_decode, capsys):
    sizes = []

    def make(size):
        sizes.append(size)
        if size > to_make:
            raise torch.OutOfMemoryError("no memory for the cache")
        return FakeGenerator(size, to_decode)

    decoder = BatchDecoder(make, 8)
    made = decoder.decode(PROMPTS, 0, ["a", "b", "c"])
    assert [one.prompt_tokens for one in made] == [1, 2, 1]
    assert decoder.seconds == 3.0
    fitting = max(size for size in (1, 2, 4, 8) if size <= min(to_make, to_decode))
    assert decoder.size == sizes[-1] == fitting
    lines = capsys.readouterr().err.splitlines()
    halves = [(size, size // 2) for size in (8, 4, 2) if size > fitting]
    assert lines == [
        f"warning: --batch_size {size}: out of memory; {half} at a time from now on"
        for size, half in halves
    ]


def test_prompts_without_memory_have_no_output():
    decoder = BatchDecoder(lambda size: FakeGenerator(size, 0), 4)
    assert decoder.decode(PROMPTS, 0, ["a", "b", "c"]) == [None] * 3
    assert decoder.seconds == 0


def test_prompts_that_a_smaller_cache_cannot_hold_have_no_output():
    """The last decoder, of one prompt at a time, may have less room than those before it."""

    def make(size):
        made = FakeGenerator(size, 1)
        made.engine = SimpleNamespace(capacity=7 if size > 1 else 1, compile_seconds=None)
        return made

    decoder = BatchDecoder(make, 4, needed=lambda length: length)
    made = decoder.decode(PROMPTS, 0, ["a", "b", "c"])
    assert [one and one.prompt_tokens for one in made] == [1, None, 1]


def test_other_errors_are_raised():
    with pytest.raises(ZeroDivisionError):
        BatchDecoder(lambda size: 1 / 0, 4)


def test_calls_hold_prompts_of_similar_lengths():
    lengths = [5, 1, 4, 2, 3, 9, 8, 7, 6, 10]
    calls = list(calls_of([0, 1, 2, 3, 4, 5, 6, 8], lengths.__getitem__, size=1))
    assert [[lengths[index] for index in call] for call in calls] == [[1, 2, 3, 4], [5, 6, 8, 9]]
    assert list(calls_of([], len, size=4)) == []
