"""Settings of a checkpoint for decoding that its runs do not follow."""

from typing import Any

from models.tokens import text_ids

# Settings of generation_config.json that would change tokens. Where the flags have the same one,
# they alone decide; `eos_token_id` is obeyed.
_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff"),
)
_SETTINGS = (
    *("repetition_penalty", "no_repeat_ngram_size", "num_beams"),
    *("exponential_decay_length_penalty", "min_length", "min_new_tokens"),
    *("bad_words_ids", "force_words_ids", "sequence_bias", "suppress_tokens"),
    *("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "stop_strings"),
    *("guidance_scale", "penalty_alpha", "dola_layers", "watermarking_config"),
)
_NEUTRAL = (None, False, 0, 1, [])


def unused_settings(generation_config: Any, tokenizer: Any) -> str | None:
    """Return the settings that no run follows, in one line; None without any.

    Those of sampling count only where the checkpoint asks for sampling.
    """
    sampling = _SAMPLING if getattr(generation_config, "do_sample", None) else ()
    asked = {name: getattr(generation_config, name, None) for name in (*sampling, *_SETTINGS)}
    named = [f"{name} {value!r}" for name, value in asked.items() if value not in _NEUTRAL]
    parts = [f"{', '.join(named)} of its generation_config.json"] if named else []
    if tokenizer("a")["input_ids"] != text_ids(tokenizer, "a"):
        parts.append(f"the {tokenizer.eos_token} that its tokenizer puts behind every text")
    return f"the flags alone decide how to decode; not used: {'; '.join(parts)}" if parts else None
