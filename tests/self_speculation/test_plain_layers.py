"""A plain layer computes what transformers' layer computes, and runs only where it may."""

import copy

import pytest
import torch
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from self_speculation.key_value_cache import KeyValueCache
from self_speculation.plain_layers import PlainLayer, plain
from tests.conftest import tiny_config

GAPS = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.1}


def outputs(layer, model, dtype):
    """Return the states of a prompt, of one token after it, and of four after that."""
    torch.manual_seed(1)
    cache, found = KeyValueCache(32), []
    with torch.inference_mode():
        for start, tokens in ((0, 7), (7, 1), (8, 4)):
            states = torch.randn(1, tokens, model.config.hidden_size).to(dtype)
            positions = torch.arange(start, start + tokens)[None]
            visible = torch.ones(tokens, start + tokens, dtype=torch.bool).tril(start)
            cache.position = start
            found.append(
                layer(
                    states,
                    attention_mask=visible[None, None] if start and tokens > 1 else None,
                    past_key_values=cache,
                    use_cache=True,
                    position_embeddings=model.model.rotary_emb(states, position_ids=positions),
                )
            )
    return found


@pytest.mark.parametrize("dtype", GAPS, ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_it_equals_the_layer_of_transformers(dtype, biased, heads):
    torch.manual_seed(0)
    config = tiny_config(num_key_value_heads=heads, attention_bias=biased, mlp_bias=biased)
    model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    layer = model.model.layers[2]
    assert isinstance(plain(layer), PlainLayer)
    pairs = zip(outputs(plain(layer), model, dtype), outputs(layer, model, dtype), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=GAPS[dtype], atol=GAPS[dtype])


def hooked(layer):
    layer.mlp.register_forward_hook(lambda *_: None)


def hooked_before(layer):
    layer.self_attn.register_forward_pre_hook(lambda *_: None)


def replaced(layer):
    layer.mlp.gate_proj.__class__ = type("Quantised", (torch.nn.Linear,), {})


def offloaded(layer):
    layer.self_attn.forward = layer.self_attn.forward


def eager(layer):
    layer.self_attn.config = copy.deepcopy(layer.self_attn.config)
    layer.self_attn.config._attn_implementation = "eager"


def otherwise_active(layer):
    layer.mlp.act_fn = torch.nn.GELU().eval()


def training(layer):
    layer.self_attn.train()


@pytest.mark.parametrize(
    "change", [hooked, hooked_before, replaced, offloaded, eager, otherwise_active, training]
)
def test_a_layer_with_another_part_runs_as_it_is(model, change):
    layer = model.model.layers[1]
    assert isinstance(plain(layer), PlainLayer)
    change(layer)
    assert plain(layer) is layer


def test_a_layer_of_another_family_runs_as_it_is():
    config = MistralConfig(**tiny_config().to_dict() | {"sliding_window": None})
    (layer, *_) = MistralForCausalLM(config).eval().model.layers
    assert plain(layer) is layer


def test_weights_that_move_are_found(model):
    """Pruning renumbers layers, and a sweep moves them to another device and back."""
    layer = model.model.layers[3]
    call = plain(layer)
    layer.to(torch.float32)
    layer.self_attn.layer_idx = 0
    one, other = (outputs(each, model, torch.float32)[-1] for each in (call, layer))
    torch.testing.assert_close(one, other)
