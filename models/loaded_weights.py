"""Whether a model holds what its checkpoint holds: all of it, and nothing else."""

import re
from typing import Any

from torch import nn

from command_line.errors import reject

# Constants that older releases of transformers stored with the weights, and recompute now.
_OLD_BUFFERS = re.compile(
    r"(rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)"
    r"|(^|\.)(position_ids|causal_mask|masked_bias))$"
)
# Heads that read the model's states and change no next token: of values, of later tokens.
_OTHER_HEADS = re.compile(r"(model\.)?(v_head|mtp|medusa_heads?)\.")
_SHOWN = 3
_SWITCHES = {".self_attn.": "attention_bias", ".mlp.": "mlp_bias"}


def check_complete(name: str, model: nn.Module, report: dict[str, Any]) -> None:
    """Refuses weights that would be made up, and those that would be left out.

    `report` is what `from_pretrained` says of its loading.
    """
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
    """The weights of heads that decoding has no use for."""
    return sorted(key for key in report["unexpected_keys"] if _OTHER_HEADS.match(key))


def some(names: list[str]) -> str:
    """The first few of the names."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _check_layers(name: str, model: nn.Module, unexpected: set[str]) -> None:
    layers = model.config.num_hidden_layers
    found = (re.search(r"\blayers\.(\d+)\.", key) for key in unexpected)
    beyond = [int(match[1]) for match in found if match and int(match[1]) >= layers]
    if beyond:
        held = f"the checkpoint holds {max(beyond) + 1} layers, its config.json says {layers}"
        reject("model", name, held)


def _check_no_others(name: str, model: nn.Module, unexpected: set[str]) -> None:
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


def _check_tied(name: str, model: nn.Module) -> None:
    """Refuses a head of its own where the configuration says that there is none.

    transformers 5 would use it, and its older releases would not.
    """
    head = "lm_head.weight"
    if model.config.tie_word_embeddings and head not in model.all_tied_weights_keys:
        differs = f"its {head} differs from its embeddings, which its config.json says it equals"
        reject("model", name, f"{differs}; set tie_word_embeddings to false to use both")
