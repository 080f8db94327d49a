"""GGUF files of loaded Llama models, for llama.cpp.

The vocabulary only names ids, because token ids go in and out. It has no end token, so nothing ends
an output early.
"""

from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from torch import Tensor

TYPES = {
    torch.float32: GGMLQuantizationType.F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}
# The only values that llama.cpp's architecture "llama" computes without further keys or tensors.
_SETTINGS = {"model_type": "llama", "hidden_act": "silu"}
_ROPE = {"rope_type": "default", "partial_rotary_factor": 1.0}


def write_gguf(model: Any, path: Path) -> None:
    """Write the weights in the model's dtype, and norms in float32.

    Without a tied head in the file, llama.cpp takes the embeddings for it. Raise ValueError, and
    write nothing, for a model that the file would not describe.
    """
    weights = _weights(model)
    writer = GGUFWriter(path, "llama")
    try:
        _add_settings(writer, model.config)
        for name, weight in weights.items():
            one_row = weight.dim() == 1
            kept = weight.float() if one_row else weight
            as_bytes = kept.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(name, as_bytes, raw_dtype=TYPES[kept.dtype])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def interleaved(weight_HD: Tensor, heads: int) -> Tensor:
    """Return the rows of each head in llama.cpp's order.

    transformers rotates a row of a head's first half with one of its second half. llama.cpp rotates
    neighbours.
    """
    halves = weight_HD.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2)


def _weights(model: Any) -> dict[str, Tensor]:
    """Return the weights by their names in the file, with q and k in llama.cpp's order."""
    config = model.config
    _check(config)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for name, parameter in model.named_parameters():
        known = names.get_name(name.removesuffix(".weight"))
        if known is None or not name.endswith(".weight"):
            raise ValueError(f"llama.cpp has no place for the tensor {name}")
        if parameter.dtype not in TYPES:
            raise ValueError(f"llama.cpp has no weights in {parameter.dtype}")
        weight, kind = parameter.detach(), known.rpartition(".")[2]
        weights[f"{known}.weight"] = interleaved(weight, heads[kind]) if kind in heads else weight
    return weights


def _check(config: Any) -> None:
    """Raise ValueError for settings that the file would not hold."""
    rope = config.rope_parameters
    found = {name: getattr(config, name) for name in _SETTINGS}
    found |= {name: rope.get(name, allowed) for name, allowed in _ROPE.items()}
    for name, allowed in (_SETTINGS | _ROPE).items():
        if found[name] != allowed:
            raise ValueError(f"no GGUF file is written for {name} {found[name]}, only {allowed}")


def _add_settings(writer: GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    # The other tokenizers of llama.cpp have an end token even where the file names none.
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([f"t{token_id}" for token_id in range(config.vocab_size)])
