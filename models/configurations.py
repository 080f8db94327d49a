"""Settings of a config.json that transformers' own class of the model type does not compute."""

import math
from typing import Any

from command_line.errors import reject
from self_speculation.llama_model_utils import MOST_LAYERS, SUPPORTED_MODEL_TYPES

# LLM-Drop (arXiv 2406.15786): indices of layers, or true and false for every layer.
_DROP_LISTS = ("drop_attn_list", "drop_mlp_list")
# Keys of other architectures, each with the value that changes nothing, where there is one.
# Their own classes have model types of their own; below a Llama's type nothing reads them.
_UNREAD: dict[str, Any] = {
    "is_causal": True,
    "use_bidirectional_attention": False,
    "alibi": False,
    "use_alibi": False,
    "parallel_attn": False,
    "attn_logit_softcapping": 0,
    "final_logit_softcapping": 0,
    "attention_multiplier": None,
    "embedding_multiplier": 1,
    "residual_multiplier": 1,
    "logits_scaling": 1,
    "logit_scale": 1,
    "scale_emb": 1,
}
_MODEL_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")


def check_supported(name: str, config: Any) -> None:
    """Refuses a configuration of another model type, or one that asks for other computation."""
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        allowed = ", ".join(SUPPORTED_MODEL_TYPES)
        reject("model", name, f"is of type {config.model_type}; supported are {allowed}")
    for key, most in (("num_hidden_layers", MOST_LAYERS), ("max_position_embeddings", math.inf)):
        if not 1 <= getattr(config, key) <= most:
            reject("model", name, f"its config.json says {key} {getattr(config, key)}")
    unread = unread_setting(config)
    if unread:
        reject("model", name, f"its config.json says {unread}")


def unread_setting(config: Any) -> str | None:
    """Says which setting makes this another model than the one that would be computed."""
    for key in _DROP_LISTS:
        if _drops(getattr(config, key, None), config.num_hidden_layers):
            parts = "attention" if key == "drop_attn_list" else "MLP"
            whole = f"the {parts} of those layers would be computed all the same"
            return f"{key} {getattr(config, key)}, and {whole}"
    if getattr(config, "is_heterogeneous", False):
        return "per_layer_config, which is not supported: all layers must be of one shape"
    for key, neutral in _UNREAD.items():
        value = getattr(config, key, None)
        if value is not None and value != neutral:
            return f"{key} {value}, which is not computed for the type {config.model_type}"
    return None


def own_code(config: Any) -> str | None:
    """Says which code of its own a checkpoint names for the model; it is never run."""
    named = getattr(config, "auto_map", None)
    if not isinstance(named, dict):
        return None
    found = [f"{key}: {named[key]}" for key in _MODEL_CLASSES if key in named]
    if not found:
        return None
    return (
        f"its config.json names code of its own ({', '.join(found)}), which is never run; "
        f"transformers' own class for {config.model_type} computes"
    )


def _drops(dropped: Any, layers: int) -> bool:
    """Whether such a list drops a layer; as flags it has one entry for every layer."""
    if not isinstance(dropped, list):
        return bool(dropped)
    are_flags = len(dropped) == layers and all(isinstance(one, bool | None) for one in dropped)
    return any(dropped) if are_flags else bool(dropped)
