"""The options in `--model_args`: parsed, and checked before anything is loaded."""

import re
from typing import Any

from command_line.errors import reject
from command_line.flags import check_new_folder

DTYPES = ("float32", "bfloat16", "float16", "float64")
# Options passed on to `from_pretrained`. Remote code and pickled weights are not allowed.
MODEL_ARGS = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "local_files_only",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_folder",
    "revision",
    "variant",
)
SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT])(i?)B")
_LITERALS = {"true": True, "false": False, "none": None}


def parse_model_args(text: str) -> dict[str, Any]:
    """Return `key=value,...` as keyword arguments of `from_pretrained`; sizes are in bytes."""
    options: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, separator, value = map(str.strip, item.partition("="))
        key = "dtype" if key == "torch_dtype" else key
        if not separator:
            reject("model_args", item, "must be key=value,...")
        if key not in MODEL_ARGS:
            reject("model_args", item, f"key must be one of {', '.join(MODEL_ARGS)}")
        is_memory = key == "max_memory"
        options[key] = _memory(value) if is_memory else _LITERALS.get(value.lower(), value)
    return options


def check_model_args(options: dict[str, Any], dtype: str | None) -> None:
    """Reject a dtype that is unknown or contradicts `--dtype`, and an impossible placement."""
    chosen = options.get("dtype", dtype)
    if dtype and chosen != dtype:
        reject("model_args", f"dtype={chosen}", f"contradicts --dtype {dtype}")
    if "dtype" in options and chosen not in DTYPES:
        reject("model_args", f"dtype={chosen}", f"dtype must be one of {', '.join(DTYPES)}")
    device_map = options.get("device_map", "cpu")
    if device_map not in SPREADING and not _DEVICE.fullmatch(str(device_map)):
        allowed = f"must be one of {', '.join(SPREADING)}, cpu, cuda or cuda:N"
        reject("model_args", f"device_map={device_map}", allowed)
    for key in ("max_memory", "offload_folder"):
        if key in options and device_map not in SPREADING:
            reject("model_args", key, f"needs a device_map of {', '.join(SPREADING)}")
    if "offload_folder" in options:
        check_new_folder("model_args offload_folder", str(options["offload_folder"]), True)


def _memory(text: str) -> dict[str, int]:
    """Return the most bytes of weights per device, from a text such as 0:20GiB;cpu:60GiB."""
    memory: dict[str, int] = {}
    for item in text.split(";"):
        device, _, size = item.partition(":")
        parts = _SIZE.fullmatch(size)
        if not re.fullmatch(r"cpu|\d+", device) or parts is None or device in memory:
            allowed = (
                "must be DEVICE:SIZE;..., each DEVICE once, cpu or a CUDA device's number, as in "
                "0:20GiB;cpu:60GiB"
            )
            reject("model_args", f"max_memory={text}", allowed)
        number, unit, binary = parts.groups()
        base = 1024 if binary else 1000
        memory[device] = int(float(number) * base ** ("KMGT".index(unit) + 1))
    return memory
