"""Checkpoints whose weights are quantised: dequantised as they are loaded, or refused by name."""

import json
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AutoQuantizationConfig,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from command_line.errors import reject

# Methods whose weights transformers 5.23 makes ordinary ones as it loads them, on every device.
DEQUANTISED = ("fp8", "mxfp8", "compressed-tensors")
# Modules without which transformers loads no weights of a method, and the packages that hold them.
_PACKAGES = {
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
}
_FP8 = ("F8_E4M3", "F8_E5M2")
_SCALES = (".weight_scale_inv", ".scale", ".qscale_weight")


def quantisation(config: Any) -> dict[str, Any] | None:
    """The settings of a checkpoint's quantisation, None for ordinary weights."""
    found = getattr(config, "quantization_config", None)
    return found if isinstance(found, dict) or found is None else found.to_dict()


def method_of(config: Any) -> str | None:
    """The quantisation in a word, as config.json names it; None for ordinary weights."""
    settings = quantisation(config)
    if settings is None:
        return None
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    return str(settings.get("quant_method"))


def check_quantised(name: str, config: Any) -> None:
    """Refuses a quantisation that cannot be read here, before weights are.

    transformers would load one that it does not know as if quantised values were weights.
    """
    method = method_of(config)
    if method is None:
        return
    if method != "bitsandbytes" and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        known = ", ".join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))
        reject("model", name, f"its quant_method {method} must be one of {known}")
    wanted = _PACKAGES.get(method, {})
    missing = [package for module, package in wanted.items() if find_spec(module) is None]
    if missing:
        reject(
            "model",
            name,
            f"its weights are quantised by {method}, which needs {' and '.join(missing)}; run: "
            f"pip install {' '.join(missing)}, or name a checkpoint that is not quantised",
        )


def check_can_be_saved(flag: str, value: str | None, name: str, config: Any) -> None:
    """Refuses to write what stays quantised in memory: its layers are no ordinary weights."""
    method = method_of(config)
    if value is not None and method is not None and method not in DEQUANTISED:
        allowed = (
            f"{name} stays quantised by {method} and cannot be saved as an ordinary checkpoint; "
            f"weights that can: not quantised, {', '.join(DEQUANTISED)}"
        )
        reject(flag, value, allowed)


def loading_options(name: str, source: str, config: Any, where: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` dequantises; none where it need not.

    Raises `UsageError` for fp8 weights that transformers would read wrongly.
    """
    method = method_of(config)
    if method not in DEQUANTISED:
        return {}
    settings = quantisation(config)
    if method != "compressed-tensors":
        _check_scales(name, _headers(source, where), settings.get("weight_block_size"))
    chosen = AutoQuantizationConfig.from_dict(settings | {"dequantize": True})
    return {"quantization_config": chosen}


def finish_loading(
    name: str, model: nn.Module, config: Any, dtype: torch.dtype, device_map: str | None
) -> None:
    """Makes a dequantised model an ordinary one, all of it in the run's dtype.

    transformers 5.23 leaves in the file's dtype what was not quantised, and would quantise again
    what it saves, without saying so in config.json.
    """
    if method_of(config) not in DEQUANTISED:
        return
    model._weight_conversions = None
    for weight in model.parameters():
        if not weight.is_meta:
            weight.data = weight.data.to(dtype)
    kept = _offloaded_dtypes(model)
    if kept - {str(dtype).removeprefix("torch.")}:
        allowed = f"{name} is quantised and offloaded: needs --dtype {' or '.join(sorted(kept))}"
        reject("model_args", f"device_map={device_map}", allowed)


def _offloaded_dtypes(model: nn.Module) -> set[str]:
    """The dtypes of weights that accelerate keeps, in which they are computed and saved."""
    found: set[str] = set()
    for module in model.modules():
        kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        for key, weight in module.named_parameters(recurse=False) if kept is not None else ():
            if weight.is_meta:
                found.add(str(kept[key].dtype).removeprefix("torch."))
    return found


def _headers(source: str, where: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The safetensors headers of a checkpoint's weights: dtype and shape by name."""
    options = where | {"_raise_exceptions_for_missing_entries": False}
    if Path(source).is_dir():
        files = sorted(map(str, Path(source).glob("*.safetensors")))
    elif (index := cached_file(source, SAFE_WEIGHTS_INDEX_NAME, **options)) is not None:
        files = get_checkpoint_shard_files(source, index, **where)[0]
    else:
        files = [cached_file(source, SAFE_WEIGHTS_NAME, **where)]
    found: dict[str, dict[str, Any]] = {}
    for path in files:
        with Path(path).open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            found |= json.loads(file.read(length))
    found.pop("__metadata__", None)
    return found


def _check_scales(name: str, weights: dict[str, Any], block: list[int] | None) -> None:
    """Refuses fp8 weights whose scales are missing, or end with a block that is not whole.

    transformers 5.23 takes the former as they are, and divides the latter into equal blocks of
    another size.
    """
    for key in sorted(weights):
        if not key.endswith(".weight") or weights[key]["dtype"] not in _FP8:
            continue
        stem = key.removesuffix(".weight")
        scale = next((weights[stem + end] for end in _SCALES if stem + end in weights), None)
        if scale is None:
            reject("model", name, f"its {key} is fp8, and its scales are missing")
        grid, sizes = scale["shape"], weights[key]["shape"]
        if len(grid) != 2 or grid == [1, 1]:
            continue  # a scale for the whole weight
        for size, count, edge in zip(sizes, grid, block or (0, 0), strict=True):
            if size % count or (edge and count > 1 and size // count != edge):
                allowed = f"its {key} of shape {sizes} is not made of whole blocks of {block}"
                reject("model", name, f"{allowed}; such fp8 weights are not supported")
