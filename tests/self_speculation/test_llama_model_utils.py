"""The engine computes what the model does, in any order of passes."""

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import (
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from self_speculation.llama_model_utils import CachedLlama, early_exit_view, position_limit
from tests.conftest import LAYERS, VOCABULARY, random_prompt, row, tiny_config

IDS = random_prompt(24)
FAMILIES = {
    "llama": (tiny_config().__class__, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


@torch.inference_mode()
def reference(model, ids):
    return model(input_ids=row(ids), use_cache=False).logits[0]


@torch.inference_mode()
def early_reference(model, ids, depth):
    """Return the logits after `depth` layers, from transformers' hidden states."""
    states = model(input_ids=row(ids), use_cache=False, output_hidden_states=True).hidden_states
    return model.lm_head(model.model.norm(states[depth]))[0]


def same(one, other, tolerance=1e-10):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached(family, attention):
    config_class, model_class = FAMILIES[family]
    config = config_class(**{**tiny_config().to_dict(), "model_type": family})
    torch.manual_seed(1)
    model = model_class._from_config(config, attn_implementation=attention).double().eval()
    # transformers' eager attention computes its softmax in float32 for every dtype.
    tolerance = 1e-4 if attention == "eager" else 1e-10
    engine = CachedLlama(model, capacity=32)
    expected = reference(model, IDS)
    same(engine.forward(row(IDS[:10]), count=10), expected[:10], tolerance)
    same(engine.forward(row(IDS[10:15]), count=5), expected[10:15], tolerance)
    for position in range(15, 20):
        logits = engine.forward(row(IDS[position : position + 1]))
        same(logits, expected[position : position + 1], tolerance)
    engine.exit_layer = 2
    engine.draft(row(IDS[20:21]))
    engine.draft(row(IDS[21:23]))
    same(engine.verify(row(IDS[23:]), count=4), expected[20:], tolerance)


@pytest.mark.parametrize("exit_layer", range(1, LAYERS))
def test_draft_and_verify_equal_a_full_pass(model, exit_layer):
    engine = CachedLlama(model, capacity=32)
    engine.reset(exit_layer)
    engine.forward(row(IDS[:12]))
    early = early_reference(model, IDS, exit_layer)
    for position in range(12, 16):
        same(engine.draft(row(IDS[position : position + 1])), early[position : position + 1])
    assert (engine.length, engine.pending) == (12, 4)
    same(engine.verify(row(IDS[16:17]), count=5), reference(model, IDS)[12:17])
    assert (engine.length, engine.pending) == (17, 0)


def test_verify_takes_tokens_that_were_never_drafted(model):
    engine = CachedLlama(model, capacity=32)
    engine.reset(2)
    engine.forward(row(IDS[:12]))
    same(engine.verify(row(IDS[12:17]), count=5), reference(model, IDS)[12:17])


@pytest.mark.parametrize("kept", range(12, 17))
def test_rollback_and_redo_equals_a_fresh_start(model, kept):
    engine = CachedLlama(model, capacity=40)
    engine.reset(3)
    engine.forward(row(IDS[:12]))
    for position in range(12, 16):
        engine.draft(row(IDS[position : position + 1]))
    engine.verify(row(IDS[16:17]), count=5)
    engine.rollback(kept)
    other = IDS[:kept] + random_prompt(8, seed=9)
    engine.draft(row(other[kept : kept + 3]))
    same(engine.verify(row(other[kept + 3 :]), count=8), reference(model, other)[kept:])


def test_rollback_drops_pending_drafts(model):
    engine = CachedLlama(model, capacity=32)
    engine.reset(3)
    engine.forward(row(IDS[:12]))
    engine.draft(row(IDS[20:22]))
    engine.rollback(12)
    assert engine.pending == 0
    same(engine.forward(row(IDS[12:13])), reference(model, IDS)[12:13])


def test_depth_decodes_from_the_exit_layer(model):
    engine = CachedLlama(model, capacity=32)
    early = early_reference(model, IDS, 2)
    same(engine.forward(row(IDS[:12]), depth=2), early[11:12])
    same(engine.forward(row(IDS[12:13]), depth=2), early[12:13])


def test_keys_are_written_in_place_not_concatenated(model):
    """One allocation per layer serves all steps and prompts."""
    engine = CachedLlama(model, capacity=32)
    engine.forward(row(IDS))
    buffers = {
        layer: (keys.data_ptr(), values.data_ptr(), keys.shape[2])
        for layer, (keys, values) in engine._cache._buffers.items()
    }
    assert len(buffers) == LAYERS
    assert all(capacity == 32 for _, _, capacity in buffers.values())
    for seed in range(3):
        engine.reset(2)
        engine.forward(row(random_prompt(16, seed)))
        engine.draft(row([1]))
        engine.verify(row([2]), count=2)
    assert buffers == {
        layer: (keys.data_ptr(), values.data_ptr(), keys.shape[2])
        for layer, (keys, values) in engine._cache._buffers.items()
    }


def test_a_second_prompt_sees_nothing_of_the_first(model):
    engine = CachedLlama(model, capacity=32)
    engine.forward(row(random_prompt(30, seed=5)))
    engine.reset()
    same(engine.forward(row(IDS), count=24), reference(model, IDS))


def test_head_runs_only_on_positions_that_are_read(model):
    rows = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[1]))
    engine = CachedLlama(model, capacity=32)
    engine.reset(2)
    engine.forward(row(IDS[:12]))
    engine.draft(row(IDS[12:13]))
    engine.verify(row(IDS[13:14]), count=2)
    assert rows == [1, 1, 2]


def test_sequences_end_where_a_sliding_window_begins_to_matter():
    config = MistralConfig(sliding_window=16, max_position_embeddings=64)
    assert position_limit(config) == 16
    assert position_limit(MistralConfig(sliding_window=None, max_position_embeddings=64)) == 64
    assert position_limit(Qwen2Config(max_position_embeddings=64, sliding_window=16)) == 64


def test_windowed_model_equals_full_attention_within_its_window():
    config = MistralConfig(**{**tiny_config().to_dict(), "model_type": "mistral"})
    config.sliding_window = 24
    torch.manual_seed(1)
    model = MistralForCausalLM(config).double().eval()
    engine = CachedLlama(model, capacity=position_limit(config))
    engine.forward(row(IDS[:20]))
    same(engine.forward(row(IDS[20:]), count=4), reference(model, IDS)[20:])


def test_kernels_with_their_own_mask_get_none(model):
    """Flash attention aligns its causal mask to the last key, sdpa to the first."""
    engine, states = CachedLlama(model, 32), torch.zeros(1, 3, 32)
    assert engine._mask(states, 0) is None
    assert engine._mask(states, 5).shape == (1, 1, 3, 8)
    engine._attention = "flash_attention_2"
    assert engine._mask(states, 5) is None
    engine._attention = "eager"
    assert engine._mask(states, 0).isneginf().sum() == 3


def test_unknown_attention_kernel_is_refused(model):
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match=r"flex_attention: must be one of sdpa, eager"):
        CachedLlama(model, capacity=8)


def test_logits_have_one_row_per_position(model):
    assert CachedLlama(model, 32).forward(row(IDS), count=3).shape == (3, VOCABULARY)


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_view_of_early_layers_is_a_model_of_its_own(family, depth):
    config_class, model_class = FAMILIES[family]
    values = {**tiny_config().to_dict(), "model_type": family, "tie_word_embeddings": True}
    torch.manual_seed(1)
    model = model_class(config_class(**values)).double().eval()
    before = reference(model, IDS)
    view = early_exit_view(model, depth)
    view.tie_weights()
    early = CachedLlama(model, capacity=32).forward(row(IDS), count=24, depth=depth)
    same(reference(view, IDS), early)
    same(reference(model, IDS), before)
    assert len(model.model.layers) == model.config.num_hidden_layers == LAYERS
    assert view.lm_head.weight is view.model.embed_tokens.weight is model.lm_head.weight


def test_hooks_of_the_whole_model_do_not_run_in_a_view(model):
    for module in (model, model.model):
        add_hook_to_module(module, AlignDevicesHook(io_same_device=True))
    same(reference(early_exit_view(model, 2), IDS), early_reference(model, IDS, 2))
