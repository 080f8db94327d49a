"""A block of modules as a compiled program of its tensors, built once and kept for later starts.

A program takes weights as it takes any input, so one serves every layer that is built alike. On a
CPU it is a library of native code that AOTInductor makes and that is called without Python or
checks in between; it lies in the user's cache and is loaded from there by the next start. On CUDA
torch.compile makes it, with the compiler's own cache, and its calls are meant to be captured.
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

from self_speculation.user_cache import cache_folder

# A block's tensors, then its inputs; returns its one output.
Program = Callable[[list[Tensor], list[Tensor]], Tensor]

_CPUINFO = Path("/proc/cpuinfo")
# Of a configuration, what says nothing of one layer or is known otherwise.
_OF_THE_WHOLE = (
    "num_hidden_layers",
    "layer_types",
    "_name_or_path",
    "architectures",
    "dtype",
    "transformers_version",
)
_OPTIONS = {"cpp.enable_floating_point_contract_flag": "fast"}
# Products of one row are sums of Triton's then, which read weights faster than the library's.
_CUDA_OPTIONS = {"coordinate_descent_tuning": True}
_programs: dict[str, Program] = {}


class CompileError(Exception):
    """The compiler failed; the message says how, in one line."""


@contextmanager
def compile_errors() -> Iterator[None]:
    """Makes a `CompileError` of whatever breaks inside.

    Export, lowering, the C++ compiler, the cache's folder and CUDA's capture raise errors of their
    own.
    """
    try:
        yield
    except CompileError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CompileError(f"{type(error).__name__}: {reason}") from error


def tensors_of(block: nn.Module) -> list[Tensor]:
    """A block's parameters and buffers, in the order in which its program takes them."""
    return list(_named_tensors(block).values())


def program_of(block: nn.Module, inputs: list[Tensor], config: Any) -> Program:
    """The program of a block for inputs of such shapes, found or built.

    The same program is given for blocks that are alike: all that sets two of a class apart, beside
    their tensors, must be in `config`, the model's. Raises `CompileError` where that fails; on CUDA
    the compiler starts with the first call, and raises then.
    """
    key = _key(block, inputs, config)
    if key not in _programs:
        build = _native if inputs[0].device.type == "cpu" else _captured_later
        with compile_errors():
            _programs[key] = build(block, inputs, key)
    return _programs[key]


def programs_known() -> int:
    """How many programs this process has built or loaded."""
    return len(_programs)


class _Stateless(nn.Module):
    """A block as a function of its tensors and inputs."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        # Held in a tuple, where torch does not look for parameters.
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
        except Exception:  # missing, damaged, or made where libraries are newer
            tokens = inputs[0].shape[1]
            print(f"Compiling {type(block).__name__}, {tokens} tokens (once)", file=sys.stderr)
            _build(block, inputs, path)
            run = _load(path)
    return lambda tensors, inputs: run([*tensors, *inputs])[0]


def _load(path: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(path)  # torch would warn of a file that is outdated
    return torch._inductor.aoti_load_package(str(path), run_single_threaded=True).loader.boxed_run


def _build(block: nn.Module, inputs: list[Tensor], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.inference_mode(False), torch.no_grad():
            made = torch._inductor.aoti_compile_and_package(
                _exported(block, inputs),
                package_path=f"{scratch}/program.pt2",
                inductor_configs=_OPTIONS,
            )
        Path(made).replace(path)


def _captured_later(block: nn.Module, inputs: list[Tensor], _: str) -> Program:
    # Of an exported graph, since torch.compile counts variants of one function and has a limit.
    graph = _exported(block, inputs).module()
    return torch.compile(graph, fullgraph=True, dynamic=False, options=_CUDA_OPTIONS)


def _exported(block: nn.Module, inputs: list[Tensor]) -> torch.export.ExportedProgram:
    # Tensors of inference mode cannot be traced.
    with torch.inference_mode(False), torch.no_grad():
        arguments = [tensor.clone() for tensor in inputs]
        return torch.export.export(_Stateless(block), (tensors_of(block), arguments), strict=False)


def _named_tensors(block: nn.Module) -> dict[str, Tensor]:
    return dict(block.named_parameters()) | dict(block.named_buffers())


def _signature(block: nn.Module) -> str:
    """What a block is built of: modules by name and class, tensors by shape, stride and dtype."""
    modules = [
        (name, type(module).__module__, type(module).__qualname__)
        for name, module in block.named_modules()
    ]
    tensors = [(name, _layout(tensor)) for name, tensor in _named_tensors(block).items()]
    return repr((modules, tensors))


def _layout(tensor: Tensor) -> tuple:
    return tuple(tensor.shape), tensor.stride(), str(tensor.dtype), str(tensor.device)


def _key(block: nn.Module, inputs: list[Tensor], config: Any) -> str:
    """Names all that a program depends on, the code that makes it included."""
    facts = [
        _signature(block),
        [_layout(tensor) for tensor in inputs],
        json.dumps(_meaning(config), sort_keys=True, default=str),
        _sources(inspect.getfile(type(block))),
        torch.__version__,
        transformers.__version__,
        torch.get_num_threads(),
        _processor(),
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:20]


@functools.cache
def _sources(of_block: str) -> str:
    """A hash of the code that decides what a program does, its block's file included."""
    paths = [Path(__file__).with_name(name) for name in ("programs.py", "row_kernels.py")]
    paths.append(Path(of_block))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _meaning(config: Any) -> dict[str, Any]:
    """What a configuration says of one layer, however many there are."""
    values = config.to_dict()
    for key in _OF_THE_WHOLE:
        values.pop(key, None)
    return values


def _processor() -> str:
    """The instruction set for which native code is made."""
    if not _CPUINFO.is_file():
        return f"{platform.machine()} {platform.processor()}"
    first = _CPUINFO.read_text().partition("\n\n")[0].splitlines()
    return " ".join(line for line in first if line.startswith(("model", "flags", "Features")))
