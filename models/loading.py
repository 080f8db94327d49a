"""A checkpoint's weights, loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from arguments.model import ModelArguments
from arguments.pruning import PLAN_FILE
from command_line.errors import reject
from command_line.messages import warn
from files.reading import read_settings
from models.checkpoint import Checkpoint, find_checkpoint, location
from models.checkpoint_files import (
    check_safetensors,
    pinned,
    without_adapter,
)
from models.compilation import compile_obstacle
from models.generation_settings import unused_settings
from models.loaded_weights import check_complete, some, unused_heads
from models.loading_errors import one_line_errors
from models.quantised import finish_loading, loading_options
from models.runtime import Runtime
from models.synthetic import find_synthetic, is_synthetic, make_model
from models.weight_layout import favour_single_rows
from self_speculation.offloading import input_device


@dataclass
class LoadedModel:
    """A model with its tokenizer, and where it came from.

    `fingerprint` is the checkpoint's. `plan_of_origin` is the prune plan stored beside one that was
    saved pruned; its own layers count as the original ones all the same. `compiled`: its decoding
    steps are to be.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    fingerprint: str
    plan_of_origin: dict[str, Any] | None
    compiled: bool = False

    @property
    def config(self) -> Any:
        return self.model.config


def load_model(
    arguments: ModelArguments, runtime: Runtime, checkpoint: Checkpoint | None = None
) -> LoadedModel:
    """Loads `--model` from safetensors, or makes it up; never runs a checkpoint's own code.

    Raises `UsageError` as `find_checkpoint` does, and for a checkpoint that is incomplete.
    """
    checkpoint = checkpoint or find_checkpoint(arguments)
    name, extra = checkpoint.name, arguments.extra()
    obstacle = compile_obstacle(arguments, runtime.device)
    if arguments.compile and obstacle:
        warn(f"--compile true: {obstacle}; decoding goes on without")
    model = read_model(checkpoint, runtime, extra)
    plan_of_origin = plan_beside(checkpoint)
    ignored = unused_settings(model.generation_config, checkpoint.tokenizer)
    if ignored:
        warn(f"{name}: {ignored}")
    model.eval().requires_grad_(False)
    if not runtime.compiled:
        favour_single_rows(model)
    return LoadedModel(
        model,
        checkpoint.tokenizer,
        name,
        checkpoint.fingerprint,
        plan_of_origin,
        runtime.compiled,
    )


def read_model(checkpoint: Checkpoint, runtime: Runtime, extra: dict[str, Any]) -> nn.Module:
    """The model as transformers makes it, on the run's device unless `device_map` says where.

    Raises `UsageError` for a checkpoint that is incomplete.
    """
    with one_line_errors(checkpoint.name):
        if is_synthetic(checkpoint.name):
            synthetic = find_synthetic(checkpoint.name, extra)
            return make_model(synthetic, runtime.device, runtime.dtype, checkpoint.attention)
        for remark in checkpoint.remarks:
            warn(f"{checkpoint.name}: {remark}")
        return _read_weights(checkpoint, runtime, extra)


def _read_weights(checkpoint: Checkpoint, runtime: Runtime, extra: dict[str, Any]) -> nn.Module:
    own = {"dtype": runtime.dtype, "attn_implementation": checkpoint.attention}
    pin = pinned(checkpoint.commit)
    where = location(extra) | pin
    own |= loading_options(checkpoint.name, checkpoint.source, checkpoint.config, where)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            checkpoint.source,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            **extra | own | _numbered_devices(extra) | pin | without_adapter(where),
        )
    except OSError:
        if checkpoint.commit:
            check_safetensors(checkpoint.name, checkpoint.commit, extra.get("cache_dir"))
        raise
    check_complete(checkpoint.name, model, report)
    placed = extra.get("device_map")
    finish_loading(checkpoint.name, model, checkpoint.config, runtime.dtype, placed)
    heads = unused_heads(report)
    if heads:
        warn(f"{checkpoint.name}: {len(heads)} weights of other heads are not used ({some(heads)})")
    if "device_map" not in extra:
        return model.to(runtime.device)
    _check_begins_on(runtime.device, model, extra)
    return model


def _numbered_devices(extra: dict[str, Any]) -> dict[str, Any]:
    """`max_memory` as accelerate takes it: its CUDA devices are no texts but numbers."""
    if "max_memory" not in extra:
        return {}
    sizes = extra["max_memory"].items()
    return {"max_memory": {int(name) if name.isdigit() else name: size for name, size in sizes}}


def _check_begins_on(device: torch.device, model: nn.Module, extra: dict[str, Any]) -> None:
    """Refuses a placement that the log, which names the run's device, would not tell."""
    begins = input_device(model).type
    if begins != device.type:
        placed = f"device_map={extra['device_map']}"
        reject("model_args", placed, f"the model begins on {begins}; it needs --device {begins}")


def plan_beside(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The prune plan of a checkpoint that was saved pruned."""
    path = Path(checkpoint.source) / PLAN_FILE
    try:
        return read_settings(path) if path.is_file() else None
    except (OSError, ValueError) as error:
        reject("model", checkpoint.name, f"its {PLAN_FILE} cannot be read ({error})")
