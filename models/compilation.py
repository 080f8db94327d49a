"""Check whether code can be compiled here."""

import importlib.util
import os
import platform
import shutil

import torch

from arguments.model import ModelArguments
from self_speculation.llama_model_utils import COMPILED_ATTENTION, DEFAULT_ATTENTION


def compile_obstacle(arguments: ModelArguments, device: torch.device) -> str | None:
    """Return why decoding steps cannot be compiled with these flags here; None if they can."""
    options = arguments.options
    attention = options.get("attn_implementation") or DEFAULT_ATTENTION
    if attention not in COMPILED_ATTENTION:
        return f"attn_implementation={attention} is not compiled"
    if "device_map" in options:
        return "a model that device_map places is not compiled"
    return compiler_obstacle(device)


def compiler_obstacle(device: torch.device) -> str | None:
    """Return what torch.compile misses for this device; None if it misses nothing."""
    if device.type == "cuda" and not importlib.util.find_spec("triton"):
        return "the package triton is not installed"
    wanted = _compilers(device)
    if not any(map(shutil.which, wanted)):
        return f"no compiler {' or '.join(map(repr, wanted))} was found"
    return None


def _compilers(device: torch.device) -> list[str]:
    """Return the compilers that are tried: Triton wants one for C, torch one for C++."""
    if device.type == "cuda":
        return [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    return [os.environ.get("CXX", "clang++" if platform.system() == "Darwin" else "g++")]
