"""Load the weights of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from arguments.model import ModelArguments
from arguments.pruning import PLAN_FILE
from command_line.errors import reject
from command_line.messages import warn
from files.reading import read_settings
from models.checkpoint import Checkpoint, find_checkpoint
from models.checkpoint_files import check_safetensors, without_adapter
from models.compilation import compile_obstacle
from models.configurations import unused_settings
from models.loaded_weights import check_complete, some, unused_heads
from models.loading_errors import one_line_errors
from models.patches import attach_saved
from models.quantised import dequantising_options, finish_loading
from models.runtime import Runtime
from models.synthetic import find_synthetic, is_synthetic, make_model
from models.weight_layout import favour_single_rows
from self_speculation.offloading import input_device


@dataclass
class LoadedModel:
    """A model with its tokenizer, and where it came from.

    `fingerprint` is the checkpoint's. `plan_of_origin` is the plan stored beside a pruned
    checkpoint, whose layers count as original layers all the same. `compiled`: the decoding steps
    are to be compiled.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    plan_of_origin: dict[str, Any] | None
    compiled: bool = False

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config


def load_model(
    arguments: ModelArguments, runtime: Runtime, checkpoint: Checkpoint | None = None
) -> LoadedModel:
    """Load `--model` from safetensors, or make it up; never run a checkpoint's own code.

    Raise `UsageError` like `find_checkpoint`, and for an incomplete checkpoint.
    """
    checkpoint = checkpoint or find_checkpoint(arguments)
    name, tokenizer = checkpoint.name, checkpoint.tokenizer
    obstacle = compile_obstacle(arguments, runtime.device)
    if arguments.compile and obstacle:
        warn(f"--compile true: {obstacle}; decoding goes on without")
    model = read_model(checkpoint, runtime)
    plan = plan_beside(checkpoint)
    unused = unused_settings(model.generation_config, tokenizer)
    if unused:
        warn(f"{name}: {unused}")
    model.eval().requires_grad_(False)
    if not runtime.compiled:
        favour_single_rows(model)
    return LoadedModel(model, tokenizer, name, checkpoint.fingerprint, plan, runtime.compiled)


def read_model(checkpoint: Checkpoint, runtime: Runtime) -> PreTrainedModel:
    """Return the model in transformers' layout, on the run's device or where `device_map` says.

    Raise `UsageError` for an incomplete checkpoint.
    """
    name = checkpoint.name
    with one_line_errors(name):
        if is_synthetic(name):
            synthetic = find_synthetic(name, checkpoint.options)
            return make_model(synthetic, runtime.device, runtime.dtype, checkpoint.attention)
        for remark in checkpoint.remarks:
            warn(f"{name}: {remark}")
        return _read_weights(checkpoint, runtime)


def _read_weights(checkpoint: Checkpoint, runtime: Runtime) -> PreTrainedModel:
    name, options, where = checkpoint.name, checkpoint.options, checkpoint.location
    own = {"dtype": runtime.dtype, "attn_implementation": checkpoint.attention}
    own |= dequantising_options(name, checkpoint.source, checkpoint.config, where)
    read: Any = AutoModelForCausalLM.from_pretrained  # returns a pair with output_loading_info
    try:
        model, report = read(
            checkpoint.source,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # `check_complete` rejects them by name
            output_loading_info=True,
            **options | own | _numbered_devices(options) | where | without_adapter(where),
        )
    except OSError:
        if checkpoint.commit:
            check_safetensors(name, checkpoint.commit, options.get("cache_dir"))
        raise
    maps = attach_saved(name, model, Path(checkpoint.source), plan_beside(checkpoint))
    report["unexpected_keys"] = set(report["unexpected_keys"]) - maps
    check_complete(name, model, report)
    placed = options.get("device_map")
    finish_loading(name, model, checkpoint.config, runtime.dtype, placed)
    heads = unused_heads(report)
    if heads:
        warn(f"{name}: {len(heads)} weights of other heads are not used ({some(heads)})")
    if placed is None:
        return model.to(runtime.device)
    first = input_device(model).type
    if first != runtime.device.type:  # the log names the run's device
        allowed = f"the model begins on {first}; it needs --device {first}"
        reject("model_args", f"device_map={placed}", allowed)
    return model


def _numbered_devices(options: dict[str, Any]) -> dict[str, Any]:
    """Return `max_memory` with CUDA devices as numbers, as accelerate wants them."""
    if "max_memory" not in options:
        return {}
    sizes = options["max_memory"].items()
    return {"max_memory": {int(name) if name.isdigit() else name: size for name, size in sizes}}


def plan_beside(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the prune plan of a checkpoint that was saved pruned; None for others."""
    path = Path(checkpoint.source) / PLAN_FILE
    try:
        return read_settings(path) if path.is_file() else None
    except (OSError, ValueError) as error:
        reject("model", checkpoint.name, f"its {PLAN_FILE} cannot be read ({error})")
