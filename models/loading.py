"""A model and its tokenizer: found, checked, fingerprinted and loaded."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from arguments.run import PLAN_FILE, ModelArguments
from command_line.script import reject, warn
from files.reading import read_settings
from models.checkpoint_files import (
    adapter_aside,
    check_safetensors,
    find_commit,
    find_source,
    fingerprint,
    pinned,
    without_adapter,
)
from models.compilation import compile_obstacle
from models.configurations import check_supported, own_code
from models.generation_settings import unused_settings
from models.loaded_weights import check_complete, some, unused_heads
from models.loading_errors import one_line_errors, one_line_tokenizer_errors
from models.quantised import check_quantised, finish_loading, loading_options
from models.runtime import Runtime
from models.synthetic import find_synthetic, is_synthetic, make_model, make_tokenizer
from models.weight_layout import favour_single_rows
from self_speculation.llama_model_utils import DEFAULT_ATTENTION, SUPPORTED_ATTENTION
from self_speculation.offloading import input_device

_LOCATION_ARGS = ("cache_dir", "local_files_only", "revision")


@dataclass(frozen=True)
class Checkpoint:
    """A supported model with its tokenizer, in a folder or on the hub; its weights are unread.

    `fingerprint` changes with the checkpoint's files. `attention` is the kernel it will run with.
    `commit` names the state of a repository on the hub that all its files are read of.
    `remarks` are what is said when its weights are read.
    """

    name: str
    source: str
    config: Any
    tokenizer: Any
    fingerprint: str
    attention: str
    commit: str | None = None
    remarks: tuple[str, ...] = ()


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


def find_checkpoint(arguments: ModelArguments) -> Checkpoint:
    """Finds what `--model` names and whether it is supported, before its weights are read.

    Raises `UsageError` for a model that is missing, gated, out of reach or no Llama.
    """
    name, extra = arguments.model, arguments.extra()
    kernel = extra.get("attn_implementation") or DEFAULT_ATTENTION
    if kernel not in SUPPORTED_ATTENTION:
        allowed = ", ".join(SUPPORTED_ATTENTION)
        reject("model_args", f"attn_implementation={kernel}", f"must be one of {allowed}")
    _check_devices(extra)
    if is_synthetic(name):
        return _synthetic_checkpoint(name, extra, kernel)
    source = find_source(name)
    where = _location(extra)
    with one_line_errors(name, revision=where.get("revision")):
        commit = None if Path(source).is_dir() else find_commit(name, where)
        where |= pinned(commit)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
        check_supported(name, config)
        check_quantised(name, config)
        found = f"commit {commit}" if commit else fingerprint(Path(source))
        remarks = (own_code(config), adapter_aside(source, where))
    with one_line_tokenizer_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **where)
    remarks = tuple(filter(None, remarks))
    return Checkpoint(name, source, config, tokenizer, found, kernel, commit, remarks)


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


def _synthetic_checkpoint(name: str, extra: dict[str, Any], attention: str) -> Checkpoint:
    synthetic = find_synthetic(name, extra)
    config = synthetic.config
    tokenizer = make_tokenizer(config.vocab_size)
    return Checkpoint(name, name, config, tokenizer, synthetic.fingerprint, attention)


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
    where = _location(extra) | pin
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


def _location(extra: dict[str, Any]) -> dict[str, Any]:
    """Return those of `--model_args` that say where a checkpoint's files lie."""
    return {key: extra[key] for key in _LOCATION_ARGS if key in extra}


def _numbered_devices(extra: dict[str, Any]) -> dict[str, Any]:
    """`max_memory` as accelerate takes it: its CUDA devices are no texts but numbers."""
    if "max_memory" not in extra:
        return {}
    sizes = extra["max_memory"].items()
    return {"max_memory": {int(name) if name.isdigit() else name: size for name, size in sizes}}


def _check_devices(extra: dict[str, Any]) -> None:
    """Refuses CUDA devices that are not here."""
    numbers = [int(name) for name in extra.get("max_memory", {}) if name.isdigit()]
    named = re.fullmatch(r"cuda:?(\d*)", str(extra.get("device_map")))
    numbers += [int(named[1] or 0)] if named else []
    count = torch.cuda.device_count()
    if max(numbers, default=-1) >= count:
        reject("model_args", f"cuda:{max(numbers)}", f"torch sees {count} CUDA devices here")


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
