"""Compiled programs of a block of modules, built once and kept for later starts.

The weights are inputs of a program, so all layers of the same structure share a program. On a CPU
AOTInductor makes a native library, which is called without Python or checks in between; the user's
cache keeps it for the next start. On CUDA torch.compile makes the program and has its own cache;
the caller captures its launches in a graph.
"""

import functools
import hashlib
import inspect
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from torch import Tensor, nn
from torch.func import functional_call

from self_speculation.model_protocol import ModelConfig
from self_speculation.user_cache import cache_folder

# Takes a block's tensors, then its inputs; returns its output.
Program = Callable[[list[Tensor], list[Tensor]], Tensor]

_CPUINFO = Path("/proc/cpuinfo")
# Settings that do not describe one layer, or that the block's tensors show.
_NOT_OF_A_LAYER = (
    "num_hidden_layers",
    "layer_types",
    "_name_or_path",
    "architectures",
    "dtype",
    "transformers_version",
)
_OPTIONS = {"cpp.enable_floating_point_contract_flag": "fast"}
# Products of one row become sums in Triton, which read weights faster than the library.
_CUDA_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "coordinate_descent_tuning": True
}
_programs: dict[str, Program] = {}


class CompileError(Exception):
    """The compiler failed; the message gives the reason in one line."""


@contextmanager
def compile_errors() -> Iterator[None]:
    """Turn any error of the block into a `CompileError`.

    Export, lowering, the C++ compiler, the cache's folder and CUDA's capture each raise their own
    errors.
    """
    try:
        yield
    except CompileError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CompileError(f"{type(error).__name__}: {reason}") from error


def tensors_of(block: nn.Module) -> list[Tensor]:
    """Return a block's parameters and buffers, in the order in which its program takes them."""
    return list(_named_tensors(block).values())


def program_of(block: nn.Module, inputs: list[Tensor], config: ModelConfig) -> Program:
    """Return the program of a block for inputs of these shapes; load or build it if necessary.

    The program of a block with `most_tokens` takes any number of tokens from 2 up to it; these are
    the second dimension of the first input, and the number in `inputs` is only an example.
    Blocks of one class share a program if their tensors' layouts and `config`, the model's, are
    equal. Raises `CompileError` on failure; on CUDA the compiler runs, and may raise, in the first
    call of the program.
    """
    key = _key(block, inputs, config)
    if key not in _programs:
        build = _native if inputs[0].device.type == "cpu" else _captured_later
        with compile_errors():
            _programs[key] = build(block, inputs, key)
    return _programs[key]


def programs_known() -> int:
    """Return how many programs this process has built or loaded."""
    return len(_programs)


class _Stateless(nn.Module):
    """A block as a function of its tensors and inputs."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        # A tuple hides the block's parameters from torch.
        self._block = (block,)
        self._names = tuple(_named_tensors(block))

    def forward(self, tensors: list[Tensor], inputs: list[Tensor]) -> Tensor:
        named = dict(zip(self._names, tensors, strict=True))
        return functional_call(self._block[0], named, tuple(inputs))


def _native(block: nn.Module, inputs: list[Tensor], key: str) -> Program:
    path = cache_folder() / "compiled" / f"{key}.pt2"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        try:
            run = _load(path)
        except Exception:  # missing, damaged, or built with newer libraries
            tokens = inputs[0].shape[:2].numel()
            print(f"Compiling {type(block).__name__}, {tokens} tokens (once)", file=sys.stderr)
            _build(block, inputs, path)
            run = _load(path)
    return lambda tensors, inputs: run([*tensors, *inputs])[0]


def _load(path: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(path)  # torch would warn of an outdated file
    return torch._inductor.aoti_load_package(str(path), run_single_threaded=True).loader.boxed_run


def _build(block: nn.Module, inputs: list[Tensor], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.inference_mode(False), torch.no_grad():
            path_built = torch._inductor.aoti_compile_and_package(
                _exported(block, inputs),
                package_path=f"{scratch}/program.pt2",
                inductor_configs=_OPTIONS,
            )
        Path(path_built).replace(path)


def _captured_later(block: nn.Module, inputs: list[Tensor], _: str) -> Program:
    # torch.compile limits the variants of a function; each exported graph is its own function.
    graph = _exported(block, inputs).module()
    return torch.compile(graph, fullgraph=True, dynamic=False, options=_CUDA_OPTIONS)


def _exported(block: nn.Module, inputs: list[Tensor]) -> torch.export.ExportedProgram:
    # Inference tensors cannot be traced.
    with torch.inference_mode(False), torch.no_grad():
        arguments = [_copy(tensor) for tensor in inputs]
        tensors, shapes = tensors_of(block), None
        most_tokens: Callable[[list[Tensor]], int] | None = getattr(block, "most_tokens", None)
        if most_tokens is not None:
            tokens = torch.export.Dim("tokens", min=2, max=most_tokens(inputs))
            varying = [{1: tokens} if _counts_tokens(one, inputs) else None for one in inputs]
            shapes = {"tensors": [None] * len(tensors), "inputs": varying}
        return torch.export.export(
            _Stateless(block), (tensors, arguments), dynamic_shapes=shapes, strict=False
        )


def _counts_tokens(tensor: Tensor, inputs: list[Tensor]) -> bool:
    return tensor.shape[1] == inputs[0].shape[1]


def _copy(tensor: Tensor) -> Tensor:
    """Return a copy of the same strides: a clone of a view that is not dense has others."""
    copy = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return copy.copy_(tensor)


def _named_tensors(block: nn.Module) -> dict[str, Tensor]:
    return dict(block.named_parameters()) | dict(block.named_buffers())


def _signature(block: nn.Module) -> str:
    """Return a block's modules by name and class, and its tensors by layout."""
    modules = [
        (name, type(module).__module__, type(module).__qualname__)
        for name, module in block.named_modules()
    ]
    tensors = [(name, _layout(tensor)) for name, tensor in _named_tensors(block).items()]
    return repr((modules, tensors))


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), str(tensor.dtype), str(tensor.device)


def _key(block: nn.Module, inputs: list[Tensor], config: ModelConfig) -> str:
    """Hash everything that a program depends on, including the code that makes it."""
    facts = [
        _signature(block),
        [_layout(tensor) for tensor in inputs],
        json.dumps(_layer_settings(config), sort_keys=True, default=str),
        _sources(inspect.getfile(type(block))),
        torch.__version__,
        transformers.__version__,
        torch.get_num_threads(),
        _processor(),
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:20]


@functools.cache
def _sources(of_block: str) -> str:
    """Hash the code that decides what a program does, including the block's file."""
    paths = [Path(__file__).with_name(name) for name in ("programs.py", "row_kernels.py")]
    paths.append(Path(of_block))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _layer_settings(config: ModelConfig) -> dict[str, Any]:
    """Return the settings that describe one layer."""
    values = config.to_dict()
    for key in _NOT_OF_A_LAYER:
        values.pop(key, None)
    return values


def _processor() -> str:
    """Return the processor's model and instruction set, for which native code is made."""
    if not _CPUINFO.is_file():
        return f"{platform.machine()} {platform.processor()}"
    first = _CPUINFO.read_text().partition("\n\n")[0].splitlines()
    return " ".join(line for line in first if line.startswith(("model", "flags", "Features")))
