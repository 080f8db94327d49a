"""The GGUF file of a model holds each weight, in llama.cpp's order, and the model's settings."""

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from transformers import LlamaForCausalLM

from benchmarks.gguf_files import interleaved, write_gguf
from tests.conftest import LAYERS, VOCABULARY, tiny_config

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def expected_weights(model):
    """Return the weights by their names in a GGUF file, and the heads of q and k."""
    found = {
        "token_embd": (model.model.embed_tokens.weight, None),
        "output_norm": (model.model.norm.weight, None),
    }
    if not model.config.tie_word_embeddings:
        found["output"] = (model.lm_head.weight, None)
    heads = {"attn_q": 4, "attn_k": 2}
    for index, layer in enumerate(model.model.layers):
        for name, known in NAMES.items():
            weight = layer.get_submodule(name).weight
            found[f"blk.{index}.{known}"] = (weight, heads.get(known))
    return {f"{name}.weight": value for name, value in found.items()}


def values_of(tensor):
    """Return the values of a tensor in a file, in float32."""
    data = torch.tensor(tensor.data)
    if tensor.tensor_type == GGMLQuantizationType.BF16:
        data = data.view(torch.bfloat16)
    return data.float().reshape(*reversed(tensor.shape.tolist()))


def deinterleaved(rows_HD, heads):
    """Return the rows of each head in transformers' order: even rows, then odd."""
    return torch.cat([half for rows in rows_HD.chunk(heads) for half in (rows[::2], rows[1::2])])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_holds_every_weight(dtype, tied, tmp_path):
    model = LlamaForCausalLM(tiny_config(tie_word_embeddings=tied)).to(dtype)
    write_gguf(model, tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    expected = expected_weights(model)
    assert tensors.keys() == expected.keys()
    for name, (weight, heads) in expected.items():
        kept = "F32" if dtype == torch.float32 or weight.dim() == 1 else "BF16"
        assert tensors[name].tensor_type.name == kept
        found = values_of(tensors[name])
        found = deinterleaved(found, heads) if heads else found
        assert torch.equal(found, weight.float()), name


def test_a_file_describes_the_model(model, tmp_path):
    write_gguf(model.float(), tmp_path / "model.gguf")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    found = {name.partition(".")[2]: field.contents() for name, field in fields.items()}
    assert found["architecture"] == "llama"
    assert found["block_count"] == LAYERS
    assert (found["embedding_length"], found["feed_forward_length"]) == (32, 48)
    assert (found["attention.head_count"], found["attention.head_count_kv"]) == (4, 2)
    assert found["attention.key_length"] == found["rope.dimension_count"] == 8
    assert found["context_length"] == 256
    assert found["rope.freq_base"] == 10_000
    assert found["attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert len(set(found["ggml.tokens"])) == found["vocab_size"] == VOCABULARY
    assert "ggml.eos_token_id" not in found


def test_a_head_of_four_rows_is_interleaved():
    rows = torch.arange(8)[:, None]
    assert interleaved(rows, heads=2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
