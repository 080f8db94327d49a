"""Compiled steps compute the same as others, and attend to the smallest bucket that suffices."""

import itertools
from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest
import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pruned_model import PruneModel
from pruning.plan import PrunePlan
from self_speculation import compiled_blocks, llama_model_utils, programs, row_kernels
from self_speculation.compiled_llama import CompiledLlama, CompiledRounds, buckets_for
from self_speculation.generator_base import GenerationConfig
from self_speculation.llama_model_utils import CachedLlama
from self_speculation.row_kernels import HeadBlock
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator
from tests.conftest import LAYERS, random_prompt, row, same, tiny_config
from tests.self_speculation.conftest import is_freed_at_once
from tests.waits import CountedWaits

CAPACITY = 96
PROMPT = random_prompt(40)
K = 3
CONFIG = GenerationConfig(48, 2, K)


MOST_SUMS = row_kernels._MOST_SUMS


def use_library_kernels(monkeypatch):
    """Write no product and no attention as sums, as on CUDA."""
    monkeypatch.setattr(row_kernels, "_MOST_SUMS", 0)


@pytest.fixture(autouse=True)
def interpreted(request, small_buckets, monkeypatch):
    """Programs run their blocks by library kernels, without a compiler, except in slow tests."""
    if "slow" not in request.keywords:
        use_library_kernels(monkeypatch)
        monkeypatch.setattr(programs, "_programs", {})
        monkeypatch.setattr(programs, "_native", lambda block, *_: programs._Stateless(block))


def decode(model, tokenizer, strategy, compiled, exit_layer=None, k=K, **changes):
    config = GenerationConfig(
        **{"max_steps": 48, **changes}, kept_exit_layer=exit_layer, num_speculations=k
    )
    generator = TextGenerator(model, tokenizer, strategy, config, CAPACITY, compiled)
    return generator.generate(PROMPT)


def speculator(model, tokenizer, config=CONFIG):
    return TextGenerator(model, tokenizer, "self_speculative", config, CAPACITY, True)


@pytest.mark.parametrize(
    ("strategy", "exit_layer", "changes"),
    [
        ("autoregressive", None, {}),
        ("autoregressive", 2, {}),
        ("self_speculative", 1, {"max_steps": 3}),
        ("self_speculative", 2, {"sampling": SamplingRule(True, 0.8, 20, 0.95)}),
        ("self_speculative", 3, {"sampling": SamplingRule(no_repeat_ngram_size=2)}),
    ],
)
def test_outputs_equal_those_without_compilation(model, tokenizer, strategy, exit_layer, changes):
    PruneModel(model, PrunePlan("test", LAYERS, (0, 1, 4, 5))).prune()
    expected, found = (
        decode(model, tokenizer, strategy, compiled, exit_layer, **changes)
        for compiled in (False, True)
    )
    assert found.output_ids == expected.output_ids
    assert (found.text, found.rounds) == (expected.text, expected.rounds)


def test_stop_words_end_compiled_outputs(model, tokenizer):
    text = decode(model, tokenizer, "autoregressive", False).text
    words = (text[len(text) // 2 :][:2],)
    expected = decode(model, tokenizer, "autoregressive", False, stop_words=words)
    found = decode(model, tokenizer, "self_speculative", True, 2, stop_words=words)
    assert (found.text, found.stop_reason) == (expected.text, "stop_word")


def passes(engine, ids):
    engine.reset(2)
    yield engine.forward(row(ids[:57]), count=5)
    yield engine.forward(row(ids[57:58]))
    for position in (58, 59, 60):
        yield engine.draft(row(ids[position : position + 1]))
    yield engine.verify(row(ids[61:62]), count=4)
    engine.rollback(59)
    yield engine.draft(row(ids[59:60]))
    yield engine.verify(row(ids[60:61]), count=2)  # padded
    yield engine.verify(row(ids[61:64]), count=3)  # never drafted
    yield engine.draft(row(ids[64:67]))
    yield engine.verify(row(ids[67:70]), count=6)  # more than was compiled for
    yield engine.forward(row(ids[70:71]))


def check_every_pass(model):
    engines = [
        CachedLlama(model, CAPACITY),
        CompiledLlama(model, CAPACITY, CompiledRounds(2, (K,))),
    ]
    ids = random_prompt(90, seed=3)
    for logits in zip(*(list(passes(engine, ids)) for engine in engines), strict=True):
        same(*logits)


@pytest.mark.parametrize("most_sums", [0, MOST_SUMS])
def test_every_pass_computes_what_the_plain_engine_does(model, most_sums, monkeypatch):
    """Passes of compiled and of other shapes share one cache."""
    monkeypatch.setattr(row_kernels, "_MOST_SUMS", most_sums)
    check_every_pass(model)


@pytest.mark.slow
def test_compiled_passes_compute_what_the_plain_engine_does(model):
    check_every_pass(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_programs_for_cuda_compute_the_same(model, monkeypatch):
    """torch.compile's programs, called without capturing their launches."""
    use_library_kernels(monkeypatch)
    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "_native", programs._captured_later)
    check_every_pass(model)


@torch.inference_mode()
@pytest.mark.parametrize("most_sums", [0, MOST_SUMS])
def test_values_left_behind_are_not_attended_to(model, most_sums, monkeypatch):
    """Neither values after a rollback nor values of an overflowed sequence count."""
    monkeypatch.setattr(row_kernels, "_MOST_SUMS", most_sums)
    engine = CompiledLlama(model, 63)
    (bucket,) = engine._buckets
    prompt = random_prompt(30)
    engine.forward(row(prompt))
    buffers = [buffer for index in range(LAYERS) for buffer in engine._cache.layer(index, bucket)]
    for buffer in buffers:
        buffer.fill_(torch.nan)
    engine.reset()
    engine.forward(row(prompt))
    for buffer in buffers:
        buffer[:, :, 20:30] = 1e4
    engine.rollback(20)
    expected = CachedLlama(model, CAPACITY)
    expected.forward(row(prompt[:20]))
    same(engine.forward(row([5])), expected.forward(row([5])))


def test_nothing_is_compiled_after_the_constructor(model, tokenizer, monkeypatch):
    generator = speculator(model, tokenizer)
    before = generator.engine.compilations
    monkeypatch.setattr(programs, "_native", lambda *_: pytest.fail("a program was built"))
    for length in (1, 61, 64, 65, CAPACITY):
        made = generator.generate(random_prompt(length))
        if made.rounds:
            generator.time_full_step(1)
    assert generator.engine.compilations == before
    assert generator.engine.compile_seconds > 0


def test_the_prompt_and_every_step_run_compiled(model, tokenizer, monkeypatch):
    generator = speculator(model, tokenizer)
    passed = []
    for name in ("_run", "_logits"):
        ordinary = getattr(CachedLlama, name)

        def watched(engine, states, *others, ordinary=ordinary):
            passed.append(states.shape[1])
            return ordinary(engine, states, *others)

        monkeypatch.setattr(CachedLlama, name, watched)
    made = generator.generate(PROMPT)
    generator.time_full_step(1)
    assert made.rounds
    assert passed == []


def test_early_exit_inference_runs_compiled(model, tokenizer, monkeypatch):
    config = GenerationConfig(12, kept_exit_layer=2)
    generator = TextGenerator(model, tokenizer, "autoregressive", config, CAPACITY, True)
    monkeypatch.setattr(CachedLlama, "_run", lambda *_: pytest.fail("a step ran uncompiled"))
    assert len(generator.generate(PROMPT).output_ids) == 12


def test_an_engine_is_freed_without_garbage_collection(model):
    assert is_freed_at_once(lambda: CompiledLlama(model, CAPACITY, CompiledRounds(2, (K,))))


def test_padding_is_never_the_longest_position(model, monkeypatch):
    """Some rotary embeddings change all frequencies with the longest position."""
    engine = CompiledLlama(model, CAPACITY, CompiledRounds(2, (K,)))
    monkeypatch.setattr(llama_model_utils, "rotary_depends_on_length", lambda _: True)
    longest = []
    ordinary = model.model.rotary_emb.forward

    def watched(states, position_ids):
        longest.append(int(position_ids.max()))
        return ordinary(states, position_ids)

    monkeypatch.setattr(model.model.rotary_emb, "forward", watched)
    engine.reset(2)
    engine.forward(row(PROMPT))
    engine.draft(row([1]))
    engine.verify(row([2]), count=2)
    assert longest == [39, 40, 41, 41]


def test_attention_takes_the_smallest_bucket_that_holds_the_sequence(model, monkeypatch):
    engine = CompiledLlama(model, CAPACITY)
    taken = []
    ordinary = engine._inputs

    def watched(states_1TD, start, bucket, tokens):
        taken.append((start, bucket))
        return ordinary(states_1TD, start, bucket, tokens)

    monkeypatch.setattr(engine, "_inputs", watched)
    engine.forward(row(random_prompt(62)))
    for _ in range(4):
        engine.forward(row([1]))
    assert taken == [(62, 64), (63, 64), (64, 128), (65, 128)]


@pytest.mark.parametrize(
    ("positions", "expected"), [(1, [64]), (64, [64]), (65, [64, 128]), (400, [64, 128, 256, 512])]
)
def test_buckets_double(positions, expected):
    assert buckets_for(positions) == expected


def test_a_draft_at_the_end_of_a_usual_capacity_needs_no_further_bucket(monkeypatch):
    monkeypatch.undo()
    assert buckets_for(4096 + 7) == [288, 544, 1056, 2080, 4128]


def test_the_model_stays_as_it_was(model):
    before = {name: type(module) for name, module in model.named_modules()}
    attention = model.config._attn_implementation
    CompiledLlama(model, CAPACITY)
    assert before == {name: type(module) for name, module in model.named_modules()}
    assert model.config._attn_implementation == attention


class FakeGraph:
    """Replaces a CUDA graph: calls the captured function again."""

    def replay(self):
        self.output.copy_(self.function(self.inputs))


def test_a_replay_copies_its_inputs_in_and_its_output_out(monkeypatch):
    captured = FakeGraph()
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: MagicMock())
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: captured)

    def double(inputs):
        return inputs[0] * 2

    replay = compiled_blocks._Replay(double, [torch.zeros(2)])
    captured.function, captured.inputs = double, replay._inputs
    captured.output = replay._output
    one, other = replay([torch.ones(2)]), replay([torch.full((2,), 3.0)])
    assert (one.tolist(), other.tolist()) == ([2, 2], [6, 6])


@pytest.mark.parametrize("sampling", [SamplingRule(), SamplingRule(True, 0.8, 20, 0.95)])
def test_the_host_waits_once_per_round(model, tokenizer, sampling, monkeypatch):
    def without_layers(block, *_):
        head = isinstance(block, HeadBlock)
        return lambda _, inputs: block(*inputs) if head else inputs[0].clone()

    monkeypatch.setattr(programs, "_native", without_layers)
    generator = speculator(model, tokenizer, GenerationConfig(12, 2, K, sampling))
    strategy, counts = generator.strategy, []
    # As on CUDA, where a draft does not read its tokens.
    strategy.stop_rule.stop_token_ids = frozenset()
    strategy.forget_outputs()
    ordinary = strategy.round

    def watched(output):
        with CountedWaits() as counted:
            ids = ordinary(output)
        counts.append(counted.waits)
        return ids

    strategy.round = watched
    generator.generate(PROMPT)
    assert set(counts) == {1}


FAMILIES = {
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
}


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_compile(family, attention, tokenizer):
    config_class, model_class, changes = FAMILIES[family]
    config = config_class(**{**tiny_config().to_dict(), "model_type": family, **changes})
    torch.manual_seed(1)
    model = model_class._from_config(config, attn_implementation=attention).double().eval()
    expected = decode(model, tokenizer, "autoregressive", False)
    assert decode(model, tokenizer, "self_speculative", True, 2).output_ids == expected.output_ids


@pytest.mark.slow
def test_every_exit_layer_and_draft_length(model, tokenizer):
    expected = decode(model, tokenizer, "autoregressive", False)
    for exit_layer, k in itertools.product(range(1, LAYERS), range(1, 9)):
        found = decode(model, tokenizer, "self_speculative", True, exit_layer, k)
        assert found.output_ids == expected.output_ids, (exit_layer, k)
