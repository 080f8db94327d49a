"""Which model, and how it is loaded."""

from dataclasses import dataclass
from typing import Any

from arguments.placement import check_placement, memory_by_device
from command_line.errors import reject
from command_line.flags import flag

DTYPES = ("float32", "bfloat16", "float16", "float64")
# What --model_args may hand to `from_pretrained`. Remote code and pickled weights stay out.
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
SYNTHETIC = "synthetic:"  # begins the name of a model whose weights are made up


@dataclass(frozen=True)
class ModelArguments:
    """Which model, and how it is loaded."""

    model: str = flag(
        "smollm2-135m",
        "smollm2-135m or layerskip-topv2-5m (need no hub), a checkpoint folder, a hub name, or "
        "synthetic:SHAPE[:ACCEPTANCE], random weights for work on speed; SHAPE: llama3.2-1b, "
        "llama2-7b, llama3-8b or llama2-13b; ACCEPTANCE: accepted / drafted of greedy rounds of 6 "
        "at an exit layer of a quarter of the depth (default: 0.7)",
    )
    model_args: str = flag(
        "", f"key=value,... handed to from_pretrained; keys: {', '.join(MODEL_ARGS)}"
    )
    dtype: str | None = flag(
        None, "weights' dtype (default: bfloat16 on CUDA, float32 on a CPU)", DTYPES
    )
    device: str | None = flag(
        None, "cuda or cpu (default: cuda where there is one)", ("cuda", "cpu")
    )
    compile: bool = flag(
        False,
        "compile the decoding steps for this machine before they are timed; the compiled steps "
        "are kept for later starts",
    )

    def check(self) -> None:
        if not self.model:
            reject("model", "''", "must name a model")
        extra = self.extra()
        if self.dtype and extra.get("dtype", self.dtype) != self.dtype:
            reject("model_args", f"dtype={extra['dtype']}", f"contradicts --dtype {self.dtype}")
        if extra.get("dtype", "float32") not in DTYPES:
            reject(
                "model_args", f"dtype={extra['dtype']}", f"dtype must be one of {', '.join(DTYPES)}"
            )
        check_placement(extra)

    def extra(self) -> dict[str, Any]:
        """`model_args` as keyword arguments of `from_pretrained`."""
        pairs = {}
        for item in filter(None, self.model_args.split(",")):
            key, separator, text = item.partition("=")
            key = {"torch_dtype": "dtype"}.get(key.strip(), key.strip())
            if not separator:
                reject("model_args", item, "must be key=value,...")
            if key not in MODEL_ARGS:
                reject("model_args", item, f"key must be one of {', '.join(MODEL_ARGS)}")
            read = memory_by_device if key == "max_memory" else _literal
            pairs[key] = read(text.strip())
        return pairs


def _literal(text: str) -> Any:
    named = {"true": True, "false": False, "none": None}
    return named.get(text.lower(), text)
