"""A batched engine computes what engines of single sequences do, in any order of joining."""

import copy
import itertools

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from hypothesis import given, settings
from hypothesis import strategies as st

from self_speculation import batched_llama, programs
from self_speculation.batched_llama import BatchedLlama
from self_speculation.compiled_batch import CompiledBatch
from self_speculation.llama_model_utils import CachedLlama
from tests.conftest import random_prompt, row, same, tiny_config
from tests.fuzzing import FIXED
from tests.self_speculation.test_llama_model_utils import FAMILIES
from tests.self_speculation.test_rotary_limits import LONGROPE, made

CAPACITY = 80
ROWS = 5
PROMPTS = [random_prompt(length, seed=length) for length in (20, 3, 41, 1, 33)]


@pytest.fixture
def interpreted(small_buckets, monkeypatch):
    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "_native", lambda block, *_: programs._Stateless(block))


class Singles:
    """The same sequences, each in its own engine."""

    def __init__(self, model):
        self._model = model
        self.engines = []

    def add(self, prompts):
        new = [CachedLlama(self._model, CAPACITY) for _ in prompts]
        self.engines += new
        pairs = zip(new, prompts, strict=True)
        return torch.cat([engine.forward(row(ids)) for engine, ids in pairs])

    def step(self, ids):
        pairs = zip(self.engines, ids, strict=True)
        return torch.cat([engine.forward(row([token])) for engine, token in pairs])

    def drop(self, place):
        self.engines[place] = self.engines[-1]
        self.engines.pop()

    @property
    def lengths(self):
        return [engine.length for engine in self.engines]


def check_steps(model, engine, prompts=PROMPTS):
    singles = Singles(model)
    same(engine.add(prompts), singles.add(prompts))
    for step in range(4):
        ids = [step + place for place in range(len(prompts))]
        same(engine.step(ids), singles.step(ids))


def test_sequences_join_and_leave_in_any_order(model, interpreted):
    engine = CompiledBatch(model, CAPACITY, ROWS)
    plain = BatchedLlama(model, CAPACITY, ROWS)
    prompts = st.lists(st.integers(1, 70).map(random_prompt), min_size=1, max_size=ROWS)

    @settings(FIXED, max_examples=5)
    @given(st.data())
    def check(data):
        for one in (engine, plain):
            one.reset()
        singles = Singles(model)
        for _ in range(6):
            free = ROWS - len(singles.engines)
            if free and data.draw(st.booleans()):
                joining = data.draw(prompts)[:free]
                expected = singles.add(joining)
                results = [one.add(joining) for one in (engine, plain)]
            elif singles.engines and max(singles.lengths) < CAPACITY:
                ids = [length * 3 % 256 for length in singles.lengths]
                expected = singles.step(ids)
                results = [one.step(ids) for one in (engine, plain)]
            else:
                continue
            for found in results:
                same(found, expected)
            if data.draw(st.booleans()):
                place = data.draw(st.integers(0, len(singles.engines) - 1))
                for one in (engine, plain, singles):
                    one.drop(place)
            assert engine.lengths == plain.lengths == singles.lengths

    check()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_kernel(family, attention, interpreted):
    config_class, model_class = FAMILIES[family]
    config = config_class(**{**tiny_config().to_dict(), "model_type": family})
    torch.manual_seed(1)
    model = model_class._from_config(config, attn_implementation=attention).double().eval()
    check_steps(model, BatchedLlama(model, CAPACITY, ROWS))
    check_steps(model, CompiledBatch(model, CAPACITY, ROWS))


@pytest.mark.parametrize("most", [1, 45, 10_000])
def test_prompts_may_run_together_or_alone(model, most, monkeypatch):
    monkeypatch.setattr(batched_llama, "_MOST_PACKED", most)
    check_steps(model, BatchedLlama(model, CAPACITY, ROWS))


@pytest.mark.parametrize("compiled", [False, True])
def test_factors_of_one_sequence_do_not_depend_on_the_others(compiled, interpreted):
    """LongRoPE's factors depend on the longest position of a call."""
    model = made(LONGROPE)
    engine = (CompiledBatch if compiled else BatchedLlama)(model, CAPACITY, ROWS)
    check_steps(model, engine, [random_prompt(length) for length in (8, 60, 28, 33)])


@torch.inference_mode()
@pytest.mark.parametrize("compiled", [False, True])
def test_values_left_behind_are_not_attended_to(model, compiled, interpreted):
    """Values of an overflowed sequence may not be finite."""
    engine = (CompiledBatch if compiled else BatchedLlama)(model, CAPACITY, ROWS)
    engine.add(PROMPTS)
    buffers = itertools.chain.from_iterable(engine._cache._buffers.values())
    for buffer in buffers:
        buffer.fill_(torch.nan)
    engine.reset()
    check_steps(model, engine)


def test_a_spread_model_decodes_like_a_whole_one(model):
    """accelerate's hooks move a layer's inputs to its device."""
    spread = copy.deepcopy(model)
    for layer in spread.model.layers[3:]:
        hook = AlignDevicesHook(
            execution_device="cpu",
            offload=True,
            weights_map=layer.state_dict(),
            io_same_device=True,
        )
        add_hook_to_module(layer, hook)
    check_steps(model, BatchedLlama(spread, CAPACITY, ROWS))


def test_flash_attention_is_refused(model):
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2: must be one of sdpa, eager$"):
        BatchedLlama(model, CAPACITY, ROWS)


def test_nothing_is_compiled_after_the_constructor(model, interpreted, monkeypatch):
    engine = CompiledBatch(model, CAPACITY, ROWS)
    before = engine.compilations
    monkeypatch.setattr(programs, "_native", lambda *_: pytest.fail("a program was built"))
    engine.add(PROMPTS)
    while engine.lengths:
        engine.step([1] * len(engine.lengths))
        engine.drop(0)
    assert engine.compilations == before
    assert engine.compile_seconds > 0


@pytest.mark.slow
@pytest.mark.usefixtures("small_buckets")
def test_compiled_steps_compute_what_plain_ones_do(model):
    check_steps(model, CompiledBatch(model, CAPACITY, ROWS))
