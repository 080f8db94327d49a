"""The flags that choose a model and how it is loaded."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from arguments.model_args import DTYPES, MODEL_ARGS, check_model_args, parse_model_args
from command_line.errors import reject
from command_line.flags import flag

SYNTHETIC = "synthetic:"  # begins the name of a model with made-up weights


@dataclass(frozen=True)
class ModelArguments:
    """Which model, and how it is loaded."""

    model: str = flag(
        "smollm2-135m",
        "smollm2-135m or layerskip-topv2-5m (need no hub), a checkpoint folder, a hub name, or "
        "synthetic:SHAPE[:ACCEPTANCE], random weights for work on speed; SHAPE: llama3.2-1b, "
        "llama2-7b, llama3-8b or llama2-13b; ACCEPTANCE: accepted / drafted tokens of greedy "
        "rounds of 6 at an exit layer of a quarter of the depth (default: 0.7)",
    )
    model_args: str = flag(
        "", f"key=value,... for transformers' from_pretrained; keys: {', '.join(MODEL_ARGS)}"
    )
    dtype: str | None = flag(
        None, "dtype of the weights (default: bfloat16 on CUDA, float32 on a CPU)", DTYPES
    )
    device: str | None = flag(None, "cuda or cpu (default: cuda if available)", ("cuda", "cpu"))
    compile: bool = flag(
        False,
        "compile the decoding steps for this machine before they are timed; later starts reuse "
        "the compiled steps",
    )

    def check(self) -> None:
        if not self.model:
            reject("model", "''", "must name a model")
        check_model_args(self.options, self.dtype)

    @cached_property
    def options(self) -> dict[str, Any]:
        """`model_args` as keyword arguments of `from_pretrained`."""
        return parse_model_args(self.model_args)
