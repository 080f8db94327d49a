"""Quantised checkpoints: dequantised while they are loaded, or rejected by name."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AutoQuantizationConfig,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from command_line.errors import reject

# Methods that transformers 5.23 dequantises while loading, on every device.
DEQUANTISED = ("fp8", "mxfp8", "compressed-tensors")
# For each method, the modules that transformers needs and the packages that hold them.
_PACKAGES = {
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
}
_FP8 = ("F8_E4M3", "F8_E5M2")
_SCALES = (".weight_scale_inv", ".scale", ".qscale_weight")


def quantisation(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Return the settings of a checkpoint's quantisation; None for ordinary weights."""
    settings = getattr(config, "quantization_config", None)
    return settings if isinstance(settings, dict | None) else settings.to_dict()


def method_of(config: PreTrainedConfig) -> str | None:
    """Return the method of quantisation as config.json names it; None for ordinary weights."""
    settings = quantisation(config)
    if settings is None:
        return None
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    return str(settings.get("quant_method"))


def check_quantised(name: str, config: PreTrainedConfig) -> None:
    """Reject a quantisation that cannot be read here, before weights are read.

    transformers would load values of an unknown quantisation as if they were weights.
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
        needed = f"its weights are quantised by {method}, which needs {' and '.join(missing)}"
        cure = f"run: pip install {' '.join(missing)}, or name a checkpoint that is not quantised"
        reject("model", name, f"{needed}; {cure}")


def check_can_be_saved(flag: str, value: str | None, name: str, config: PreTrainedConfig) -> None:
    """Reject a flag that saves a model which stays quantised in memory."""
    method = method_of(config)
    if value is not None and method is not None and method not in DEQUANTISED:
        allowed = (
            f"{name} stays quantised by {method} and cannot be saved as an ordinary checkpoint; "
            f"weights that can: not quantised, {', '.join(DEQUANTISED)}"
        )
        reject(flag, value, allowed)


def dequantising_options(
    name: str, source: str, config: PreTrainedConfig, where: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments that make `from_pretrained` dequantise; none for ordinary weights.

    Raise `UsageError` for fp8 weights that transformers would read wrongly.
    """
    settings, method = quantisation(config), method_of(config)
    if settings is None or method not in DEQUANTISED:
        return {}
    if method != "compressed-tensors":
        _check_scales(name, _headers(source, where), settings.get("weight_block_size"))
    chosen = AutoQuantizationConfig.from_dict(settings | {"dequantize": True})
    return {"quantization_config": chosen}


def finish_loading(
    name: str,
    model: PreTrainedModel,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device_map: str | None,
) -> None:
    """Turn a dequantised model into an ordinary model in the run's dtype.

    transformers 5.23 leaves weights that were not quantised in the file's dtype, and would
    quantise the model again when it saves it, without saying so in config.json.
    """
    if method_of(config) not in DEQUANTISED:
        return
    model._weight_conversions = None  # type: ignore[assignment]  # torch declares no None
    for weight in model.parameters():
        if not weight.is_meta:
            weight.data = weight.data.to(dtype)
    needed = _offloaded_dtypes(model)
    if needed - {str(dtype).removeprefix("torch.")}:
        allowed = f"{name} is quantised and offloaded: needs --dtype {' or '.join(sorted(needed))}"
        reject("model_args", f"device_map={device_map}", allowed)


def _offloaded_dtypes(model: nn.Module) -> set[str]:
    """Return the dtypes of weights that accelerate keeps, in which they are computed and saved."""
    dtypes: set[str] = set()
    for module in model.modules():
        kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        if kept is not None:
            weights = module.named_parameters(recurse=False)
            dtypes |= {str(kept[name].dtype) for name, weight in weights if weight.is_meta}
    return {name.removeprefix("torch.") for name in dtypes}


def _headers(source: str, where: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return dtype and shape of each weight, from the headers of the safetensors files."""
    options = where | {"_raise_exceptions_for_missing_entries": False}
    if Path(source).is_dir():
        files = sorted(map(str, Path(source).glob("*.safetensors")))
    elif (index := cached_file(source, SAFE_WEIGHTS_INDEX_NAME, **options)) is not None:
        files = get_checkpoint_shard_files(source, index, **where)[0]
    else:
        whole = cached_file(source, SAFE_WEIGHTS_NAME, **where)
        files = [whole] if whole else []
    headers: dict[str, dict[str, Any]] = {}
    for path in files:
        with Path(path).open("rb") as file:
            headers |= json.loads(file.read(int.from_bytes(file.read(8), "little")))
    headers.pop("__metadata__", None)
    return headers


def _check_scales(name: str, weights: dict[str, Any], block: list[int] | None) -> None:
    """Reject fp8 weights without scales, and those that do not consist of whole blocks.

    transformers 5.23 would read the former unscaled, and the latter in blocks of another size.
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
            continue  # one scale for the whole weight
        for size, count, edge in zip(sizes, grid, block or (0, 0), strict=True):
            if size % count or (edge and count > 1 and size // count != edge):
                allowed = f"its {key} of shape {sizes} is not made of whole blocks of {block}"
                reject("model", name, f"{allowed}; such fp8 weights are not supported")
