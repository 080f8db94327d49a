"""Both decoders, compiled and batched ones too, run the maps of a patched model."""

import copy

import pytest
import torch

from pruned_model import PruneModel
from pruning.patch import fit_patch, with_patch
from pruning.plan import PrunePlan
from self_speculation import programs, row_kernels
from self_speculation.batched_llama import BatchedLlama
from self_speculation.compiled_batch import CompiledBatch
from self_speculation.compiled_llama import CompiledLlama, CompiledRounds
from self_speculation.generator_base import GenerationConfig
from self_speculation.llama_model_utils import CachedLlama, early_exit_view
from self_speculation.row_kernels import LayerBlock
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator
from self_speculation.uncached_llama import UncachedLlama
from tests.conftest import LAYERS, random_prompt, row, same

PROMPTS = [torch.tensor([random_prompt(length, seed=length)]) for length in (40, 9, 30)]
IDS = random_prompt(30, seed=5)
CAPACITY = 64
# A linear map in the middle, in front of the first layer, and after the last; a folded one.
PATCHED = {
    "middle": ("linear", (0, 1, 4, 5)),
    "first": ("linear", (2, 3, 4, 5)),
    "last": ("linear", (0, 2, 3)),
    "folded": ("folded", (0, 1, 4, 5)),
}


@pytest.fixture(params=PATCHED)
def patched(request, model):
    kind, kept = PATCHED[request.param]
    plan = with_patch(PrunePlan("test", LAYERS, kept), kind, PROMPTS, 32)
    PruneModel(model, plan, fit_patch(model, kept, kind, PROMPTS)).prune()
    return model


@pytest.fixture
def interpreted(small_buckets, monkeypatch):
    """Programs run their blocks by library kernels, without a compiler."""
    monkeypatch.setattr(row_kernels, "_MOST_SUMS", 0)
    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "_native", lambda block, *_: programs._Stateless(block))


@torch.inference_mode()
def logits(model):
    return model(input_ids=row(IDS), use_cache=False).logits[0]


def passes(engine):
    engine.reset(2)
    yield engine.forward(row(IDS[:20]), count=5)
    yield engine.draft(row(IDS[20:21]))
    yield engine.draft(row(IDS[21:22]))
    yield engine.verify(row(IDS[22:23]), count=3)
    yield engine.forward(row(IDS[23:24]))


def test_the_engines_pass_is_that_of_transformers(patched):
    expected = logits(patched)
    same(CachedLlama(patched, CAPACITY).forward(row(IDS), count=30), expected)
    with torch.inference_mode():
        llama = UncachedLlama(patched)
        states = llama.run(llama.embed(row(IDS)), patched.model.layers)
        same(llama.log_probabilities(states[0]), expected.log_softmax(-1))
    same(BatchedLlama(patched, CAPACITY, 2).add([IDS, IDS[:9]])[0], expected[-1])


def test_compiled_passes_compute_the_maps(patched, interpreted):
    engines = [
        CachedLlama(patched, CAPACITY),
        CompiledLlama(patched, CAPACITY, CompiledRounds(2, (3,))),
    ]
    for one, other in zip(*map(passes, engines), strict=True):
        same(one, other)


@pytest.mark.slow
def test_native_passes_compute_the_maps(patched, small_buckets):
    engines = [
        CachedLlama(patched, CAPACITY),
        CompiledLlama(patched, CAPACITY, CompiledRounds(2, (3,))),
    ]
    for one, other in zip(*map(passes, engines), strict=True):
        same(one, other)


def test_compiled_batches_compute_the_maps(patched, interpreted):
    batches = [BatchedLlama(patched, CAPACITY, 2), CompiledBatch(patched, CAPACITY, 2)]
    for batch in batches:
        batch.add([IDS, IDS[:9]])
    same(*(batch.step([3, 4]) for batch in batches))


def test_a_layer_with_a_map_has_a_program_of_its_own(model, compiled_cache):
    plan = with_patch(PrunePlan("test", LAYERS, (0, 1, 4, 5)), "linear", PROMPTS, 32)
    PruneModel(model, plan, fit_patch(model, plan.kept_layers, "linear", PROMPTS)).prune()
    inputs = [torch.zeros(1, 1, 32)]
    keys = [programs._key(LayerBlock(one), inputs, model.config) for one in model.model.layers]
    assert keys[0] == keys[1] == keys[3] != keys[2]


@pytest.mark.parametrize("exit_layer", [1, 2])
@pytest.mark.parametrize("compiled", [False, True])
def test_self_speculation_of_a_patched_model_is_lossless(
    patched, tokenizer, interpreted, exit_layer, compiled
):
    def decode(strategy, kept_exit_layer=None, compiled=False):
        config = GenerationConfig(24, kept_exit_layer, 3, SamplingRule(no_repeat_ngram_size=3))
        made = TextGenerator(patched, tokenizer, strategy, config, CAPACITY, compiled)
        return made.generate(IDS).output_ids

    expected = decode("autoregressive")
    assert decode("self_speculative", exit_layer, compiled) == expected
    assert len(expected) > 5


@pytest.mark.parametrize("depth", [1, 2])
def test_early_exits_contain_no_map_behind_them(patched, depth):
    """The map after a model's last layer is not part of its norm, through which all exits pass."""
    expected = CachedLlama(patched, CAPACITY).forward(row(IDS), count=30, depth=depth)
    same(logits(early_exit_view(patched, depth)), expected)
    shorter = copy.deepcopy(patched)
    shorter.model.layers = shorter.model.layers[:depth]
    shorter.config.num_hidden_layers = depth
    same(logits(shorter), expected)


def test_one_token_after_another_equals_one_pass(patched):
    engine = CachedLlama(patched, CAPACITY)
    found = torch.cat([engine.forward(row([one])) for one in IDS])
    same(found, logits(patched))
