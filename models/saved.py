"""Write checkpoints for transformers 4 and 5, and compare what was written with the model.

The project writes models only through `write_checkpoint`.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.accelerate import load_offloaded_parameter

from files.reading import read_settings
from models.weight_layout import stored_by_rows
from self_speculation.offloading import save_weights

# Words, numbers, code with indentation, other scripts, a symbol of four bytes, spaces at both ends.
_PROBE = " The 3 cats\n\n    return x_1 != 'é'  # Straße 東京 😀\t1,234.50 \n"
# Keys that differ between a configuration in memory and its file.
_IGNORED = {"_name_or_path", "transformers_version", "dtype", "architectures"}


class DifferentError(OSError):
    """A written checkpoint does not read back as the same model."""


def write_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    files: dict[str, Any] | None = None,
    portable: bool = True,
) -> None:
    """Write model, tokenizer and `files`, JSON values by name; read everything back and compare.

    `portable` adds the keys from which transformers 4 reads the same model and tokenizer. Raise
    OSError if something cannot be written, and `DifferentError` if it reads otherwise.
    """
    with stored_by_rows(model):
        save_weights(model, folder)
        _save_tokenizer(tokenizer, folder)
        for name, values in (files or {}).items():
            (folder / name).write_text(json.dumps(values, indent=2) + "\n")
        if portable:
            _add_older_keys(folder)
        _compare_weights(model, folder)
    _compare_settings(model, folder)
    _compare_tokenizer(tokenizer, folder)
    for name, values in (files or {}).items():
        _require(read_settings(folder / name) == json.loads(json.dumps(values)), name)


def check_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check before a training that its checkpoint will read back with this tokenizer.

    transformers 5 replaces some tokenizers by its own for the model type. Raise `DifferentError`
    if the ids would differ.
    """
    with tempfile.TemporaryDirectory() as scratch:
        config.save_pretrained(scratch)
        _save_tokenizer(tokenizer, Path(scratch))
        _add_older_keys(Path(scratch))
        _compare_tokenizer(tokenizer, Path(scratch))


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        # Errors of Rust, such as for a full disk, are plain exceptions.
        raise OSError(str(error)) from error


def _add_older_keys(folder: Path) -> None:
    """Add the keys of transformers 4.57 to those of transformers 5.

    Version 5 writes only `rope_parameters`, version 4 reads only `rope_theta` and `rope_scaling`:
    without these keys version 4 would compute unscaled, with a theta of 10000. Version 5 reads
    the older keys into the same `rope_parameters`.
    """
    config = read_settings(folder / "config.json")
    rope = dict(config.get("rope_parameters") or {})
    if rope:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope.get("rope_type") == "default" else rope
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]  # what versions before 4.56 read
    _write(folder / "config.json", config)
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    tokenizer = read_settings(path)
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name in version 4
    if isinstance(tokenizer.get("extra_special_tokens"), list):  # a dict of names in version 4
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    _write(path, tokenizer)


def _write(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _compare_weights(model: PreTrainedModel, folder: Path) -> None:
    """Compare names, shapes, dtypes and all bits, one weight at a time."""
    expected, tied = model.state_dict(), model.all_tied_weights_keys
    stored: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  no mapping
                _require(name in expected and name not in stored, f"{name}, which no weight is")
                stored.add(name)
                weight = expected[name]
                weight = load_offloaded_parameter(model, name) if weight.is_meta else weight
                _require(_same(weight.cpu(), file.get_tensor(name)), name)
    for name in sorted(expected.keys() - stored):
        _require(tied.get(name) in stored or name in tied.values(), f"{name}, which is missing")
    _require(bool(stored), "weights, of which there are none")


def _same(one: Tensor, other: Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and torch.equal(_bits(one), _bits(other))


def _bits(weight: Tensor) -> Tensor:
    """Return bytes, which are equal for NaN and NaN, and different for 0.0 and -0.0."""
    return weight.contiguous().flatten().view(torch.uint8)


def _compare_settings(model: PreTrainedModel, folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    _compare_keys("config.json", config, model.config)
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder)
        _compare_keys("generation_config.json", generation, model.generation_config)


def _compare_keys(file: str, stored: Any, settings: Any) -> None:
    """Compare values as JSON, which has no tuples and no numbers as keys."""
    one, other = stored.to_dict(), settings.to_dict()
    for name in sorted((one.keys() | other.keys()) - _IGNORED):
        texts = {json.dumps(each.get(name), sort_keys=True) for each in (one, other)}
        _require(len(texts) == 1, f"{file}'s {name}")


def _compare_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Compare ids, tokens and template. transformers may append tokens, as for Qwen2."""
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    _require(again(_PROBE)["input_ids"] == tokenizer(_PROBE)["input_ids"], "the tokenizer's ids")
    _require(again.get_vocab().items() >= tokenizer.get_vocab().items(), "the vocabulary")
    special = again.special_tokens_map.items() >= tokenizer.special_tokens_map.items()
    _require(special, "the special tokens")
    _require(again.chat_template == tokenizer.chat_template, "the chat template")


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise DifferentError(f"what was written reads otherwise: {what}")
