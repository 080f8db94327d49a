"""Settings of a checkpoint that are not followed: rejected, or named in a warning."""

import math
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from command_line.errors import reject
from models.tokens import text_ids
from self_speculation.llama_model_utils import MOST_LAYERS, SUPPORTED_MODEL_TYPES

# LLM-Drop (arXiv 2406.15786): indices of layers, or true and false for each layer.
_DROP_LISTS = {"drop_attn_list": "attention", "drop_mlp_list": "MLP"}
# Settings of other architectures, each with the value that changes nothing, if there is one. The
# classes of the supported model types ignore them.
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
# Settings of generation_config.json that would change tokens. The flags alone decide those that
# both have; `eos_token_id` is followed.
_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff"),
)
_DECODING = (
    *("repetition_penalty", "no_repeat_ngram_size", "num_beams"),
    *("exponential_decay_length_penalty", "min_length", "min_new_tokens"),
    *("bad_words_ids", "force_words_ids", "sequence_bias", "suppress_tokens"),
    *("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "stop_strings"),
    *("guidance_scale", "penalty_alpha", "dola_layers", "watermarking_config"),
)
_NEUTRAL: tuple[Any, ...] = (None, False, 0, 1, [])


def check_supported(name: str, config: PreTrainedConfig) -> None:
    """Reject another model type, impossible sizes, and settings that change the computation."""
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        allowed = ", ".join(SUPPORTED_MODEL_TYPES)
        reject("model", name, f"is of type {config.model_type}; supported are {allowed}")
    for key, most in (("num_hidden_layers", MOST_LAYERS), ("max_position_embeddings", math.inf)):
        if not 1 <= getattr(config, key) <= most:
            reject("model", name, f"its config.json says {key} {getattr(config, key)}")
    unread = unread_setting(config)
    if unread:
        reject("model", name, f"its config.json says {unread}")


def unread_setting(config: PreTrainedConfig) -> str | None:
    """Return the setting that asks for another computation than the one that would run."""
    for key, parts in _DROP_LISTS.items():
        if _drops(getattr(config, key, None), config.num_hidden_layers):
            whole = f"the {parts} of those layers would be computed all the same"
            return f"{key} {getattr(config, key)}, and {whole}"
    if getattr(config, "is_heterogeneous", False):
        return "per_layer_config, which is not supported: all layers must be of one shape"
    for key, neutral in _UNREAD.items():
        value = getattr(config, key, None)
        if value is not None and value != neutral:
            return f"{key} {value}, which is not computed for the type {config.model_type}"
    return None


def own_code(config: PreTrainedConfig) -> str | None:
    """Return the remark that a checkpoint's own model code is not run; None without such code."""
    named = getattr(config, "auto_map", None)
    if not isinstance(named, dict):
        return None
    classes = [f"{key}: {named[key]}" for key in _MODEL_CLASSES if key in named]
    if not classes:
        return None
    return (
        f"its config.json names code of its own ({', '.join(classes)}), which is never run; "
        f"transformers' own class for {config.model_type} computes"
    )


def unused_settings(
    generation_config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """Return the settings for decoding that no run follows, in one line; None without any.

    Settings for sampling count only if the checkpoint asks for sampling.
    """
    sampling = _SAMPLING if getattr(generation_config, "do_sample", None) else ()
    values = {name: getattr(generation_config, name, None) for name in (*sampling, *_DECODING)}
    named = [f"{name} {value!r}" for name, value in values.items() if value not in _NEUTRAL]
    parts = [f"{', '.join(named)} of its generation_config.json"] if named else []
    if tokenizer("a")["input_ids"] != text_ids(tokenizer, "a"):
        parts.append(f"the {tokenizer.eos_token} that its tokenizer puts behind every text")
    return f"the flags alone decide how to decode; not used: {'; '.join(parts)}" if parts else None


def _drops(dropped: Any, layers: int) -> bool:
    """Return whether a list of LLM-Drop, of indices or of a flag per layer, drops a layer."""
    if not isinstance(dropped, list):
        return bool(dropped)
    are_flags = len(dropped) == layers and all(isinstance(one, bool | None) for one in dropped)
    return any(dropped) if are_flags else bool(dropped)
