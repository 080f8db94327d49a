"""Whether decoding steps can be compiled here."""

import importlib.util
import os
import platform
import shutil

import torch

from arguments.model import ModelArguments
from self_speculation.llama_model_utils import COMPILED_ATTENTION, DEFAULT_ATTENTION


def compile_obstacle(arguments: ModelArguments, device: torch.device) -> str | None:
    """Why decoding steps cannot be compiled with these flags, here; None where they can."""
    extra = arguments.extra()
    kernel = extra.get("attn_implementation") or DEFAULT_ATTENTION
    if kernel not in COMPILED_ATTENTION:
        return f"attn_implementation={kernel} is not compiled"
    if "device_map" in extra:
        return "a model that device_map places is not compiled"
    if device.type == "cuda" and not importlib.util.find_spec("triton"):
        return "the package triton is not installed"
    wanted = _compilers(device)
    if not any(map(shutil.which, wanted)):
        return f"no compiler {' or '.join(map(repr, wanted))} was found"
    return None


def _compilers(device: torch.device) -> list[str]:
    """The compilers of which one will be called: by Triton for C, by torch for C++."""
    if device.type == "cuda":
        return [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    return [os.environ.get("CXX", "clang++" if platform.system() == "Darwin" else "g++")]
