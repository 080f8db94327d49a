"""What --model_args may say of where weights lie, checked before anything is loaded."""

import re
from typing import Any

from command_line.errors import reject
from command_line.flags import check_new_folder

SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT])(i?)B")


def check_placement(extra: dict[str, Any]) -> None:
    """Refuses a `device_map` that accelerate does not know, and what is idle without one."""
    device_map = extra.get("device_map", "cpu")
    if device_map not in SPREADING and not _DEVICE.fullmatch(str(device_map)):
        allowed = f"must be one of {', '.join(SPREADING)}, cpu, cuda or cuda:N"
        reject("model_args", f"device_map={device_map}", allowed)
    for key in ("max_memory", "offload_folder"):
        if key in extra and device_map not in SPREADING:
            reject("model_args", key, f"needs a device_map of {', '.join(SPREADING)}")
    if "offload_folder" in extra:
        check_new_folder("model_args offload_folder", str(extra["offload_folder"]), may_exist=True)


def memory_by_device(text: str) -> dict[str, int]:
    """Bytes of weights that each device takes at most, of a text such as 0:20GiB;cpu:60GiB."""
    memory = {}
    for item in text.split(";"):
        device, _, size = item.partition(":")
        found = _SIZE.fullmatch(size)
        if not re.fullmatch(r"cpu|\d+", device) or found is None or device in memory:
            reject(
                "model_args",
                f"max_memory={text}",
                "must be DEVICE:SIZE;..., each DEVICE once, cpu or a CUDA device's number, as in "
                "0:20GiB;cpu:60GiB",
            )
        memory[device] = _bytes(*found.groups())
    return memory


def _bytes(number: str, unit: str, binary: str) -> int:
    return int(float(number) * (1024 if binary else 1000) ** ("KMGT".index(unit) + 1))
