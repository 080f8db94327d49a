"""Check that a loaded model holds exactly the weights of its checkpoint."""

import re
from typing import Any

from transformers import PreTrainedModel

from command_line.errors import reject

# Constants that older releases of transformers stored with the weights.
_OLD_BUFFERS = re.compile(
    r"(rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)"
    r"|(^|\.)(position_ids|causal_mask|masked_bias))$"
)
# Heads for values or later tokens: they read the model's states and change no next token.
_OTHER_HEADS = re.compile(r"(model\.)?(v_head|mtp|medusa_heads?)\.")
_SHOWN = 3
_SWITCHES = {".self_attn.": "attention_bias", ".mlp.": "mlp_bias"}


def check_complete(name: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Reject weights that would be made up or left out, by the `report` of `from_pretrained`."""
    for key, found, expected in sorted(report["mismatched_keys"]):
        shapes = f"of shape {list(found)}, where its config.json says {list(expected)}"
        reject("model", name, f"its {key} is {shapes}")
    missing = sorted(report["missing_keys"])
    if missing:
        reject("model", name, f"the checkpoint lacks {len(missing)} weights, such as {missing[0]}")
    _check_layers(name, model, report["unexpected_keys"])
    _check_no_others(name, model, report["unexpected_keys"])
    _check_tied(name, model)


def unused_heads(report: dict[str, Any]) -> list[str]:
    """Return the weights of heads that decoding does not use."""
    return sorted(key for key in report["unexpected_keys"] if _OTHER_HEADS.match(key))


def some(names: list[str]) -> str:
    """Return the first few names."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _check_layers(name: str, model: PreTrainedModel, unexpected: set[str]) -> None:
    layers = model.config.num_hidden_layers
    found = (re.search(r"\blayers\.(\d+)\.", key) for key in unexpected)
    beyond = [int(match[1]) for match in found if match and int(match[1]) >= layers]
    if beyond:
        held = f"the checkpoint holds {max(beyond) + 1} layers, its config.json says {layers}"
        reject("model", name, held)


def _check_no_others(name: str, model: PreTrainedModel, unexpected: set[str]) -> None:
    others = sorted(
        key for key in unexpected if not (_OLD_BUFFERS.search(key) or _OTHER_HEADS.match(key))
    )
    if not others:
        return
    switches = {
        switch
        for key in others
        for part, switch in _SWITCHES.items()
        if key.endswith(".bias") and part in key and getattr(model.config, switch, True) is False
    }
    cure = "".join(f"; its config.json may lack {switch}" for switch in sorted(switches))
    what = f"weights that {type(model).__name__} has no place for ({some(others)})"
    reject("model", name, f"the checkpoint holds {len(others)} {what}{cure}")


def _check_tied(name: str, model: PreTrainedModel) -> None:
    """Reject a head with weights of its own if the configuration ties it to the embeddings.

    transformers 5 would use the head, older releases would not.
    """
    head = "lm_head.weight"
    if model.config.tie_word_embeddings and head not in model.all_tied_weights_keys:
        differs = f"its {head} differs from its embeddings, which its config.json says it equals"
        reject("model", name, f"{differs}; set tie_word_embeddings to false to use both")
