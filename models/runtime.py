"""Where a run happens: process, device, dtype, and its peak of memory."""

import logging
import os
import platform
import re
import resource
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from arguments.model import ModelArguments
from command_line.errors import FailedError, reject
from command_line.messages import process_count
from models.compilation import compile_obstacle
from processes.ranks import ALONE, Ranks, joined

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Runtime:
    """The device and dtype of a run, and whether its decoding steps are compiled.

    `holds_more`: memory holds other weights than the run's too, so its peak is not measured.
    `ranks` are the processes that share the run's examples.
    """

    device: torch.device
    dtype: torch.dtype
    compiled: bool = False
    holds_more: bool = False
    ranks: Ranks = ALONE

    def facts(self) -> dict[str, Any]:
        """Return what the log says of the machine and its software."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else _cpu_name(),
            "device_type": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "ranks": self.ranks.count,
            "versions": {"python": platform.python_version()} | _versions(),
        }

    def reset_peak_memory(self) -> None:
        """Forget the peak so far, such as that of loading the model before it was pruned."""
        if self.device.type == "cuda":
            for device in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(device)
        elif _CLEAR_REFS.exists() and os.access(_CLEAR_REFS, os.W_OK):
            # Writing 5 resets the peak of the resident set (proc(5)).
            _CLEAR_REFS.write_text("5")

    def peak_memory_bytes(self) -> int | None:
        """Return the peak since the reset: of CUDA's allocators in total, or resident on a CPU.

        Without the system file that resets it, the resident peak is that of the whole process.
        """
        if self.holds_more:
            return None
        if self.device.type == "cuda":
            return sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
        if _STATUS.exists():
            peak = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
            if peak:
                return int(peak[1]) * 1024
        # macOS counts in bytes, other systems in KiB.
        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def start(arguments: ModelArguments, parallel: bool = False) -> Runtime:
    """Choose device and dtype, and silence libraries. Raise `UsageError` for a missing device.

    `parallel`: torchrun may have started several processes; each gets its own CUDA device, or its
    share of the CPU's cores.
    """
    quieten_libraries()
    started = process_count()
    if started > 1 and not parallel:
        reject("nproc_per_node", started, "of torchrun: this script runs in one process")
    ranks = joined()
    device = _device_of(ranks, device_type(arguments.device))
    options = arguments.options
    if ranks.count > 1 and "device_map" in options:
        allowed = "spreads one model over all devices; torchrun with one process (or none) does so"
        reject("model_args", f"device_map={options['device_map']}", allowed)
    default = "bfloat16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, arguments.dtype or options.get("dtype", default))
    if dtype == torch.float32:
        # TF32 keeps 10 bits of each product: too few for the two decoders to agree.
        torch.set_float32_matmul_precision("highest")
    compiled = arguments.compile and compile_obstacle(arguments, device) is None
    return Runtime(device, dtype, compiled, ranks=ranks)


def _device_of(ranks: Ranks, kind: str) -> torch.device:
    if ranks.count == 1:
        return torch.device(kind)
    if kind == "cpu":
        torch.set_num_threads(_threads_per_process(ranks.local_count))
        return torch.device(kind)
    count = torch.cuda.device_count()
    if ranks.local_rank >= count:
        allowed = f"of torchrun: torch sees {count} CUDA devices here, and each process needs one"
        reject("nproc_per_node", ranks.local_count, allowed)
    device = torch.device(kind, ranks.local_rank)
    torch.cuda.set_device(device)
    return device


def _threads_per_process(processes: int) -> int:
    """Return an equal share of the machine's cores, unless the user chose OMP_NUM_THREADS."""
    if os.environ.get("OMP_NUM_THREADS", "") not in ("", "1"):  # torchrun sets 1 by default
        return torch.get_num_threads()
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // processes)


def quieten_libraries() -> None:
    """Silence other libraries: this project prints the warnings that matter."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def device_type(asked: str | None) -> str:
    """Return the device of `--device`; without the flag, cuda if available."""
    if asked == "cuda" and not torch.cuda.is_available():
        reject("device", "cuda", "torch sees no CUDA device here; use --device cpu")
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def start_compiled(arguments: ModelArguments) -> Runtime:
    """Call `start` with --compile true; raise `FailedError` if nothing can be compiled here."""
    arguments = replace(arguments, compile=True)
    runtime = start(arguments)
    obstacle = compile_obstacle(arguments, runtime.device)
    if obstacle:
        raise FailedError(f"compiled decoding is measured here, and {obstacle}")
    return runtime


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    packages = ("transformers", "accelerate", "tokenizers")
    # torch itself also names the build, such as 2.13.0+cpu.
    return {"torch": torch.__version__} | {name: version(name) for name in packages}
