"""A model and its tokenizer: found, checked, fingerprinted and loaded."""

import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from arguments import PLAN_FILE, ModelArguments
from bounded_files import PART_BYTES, read_bounded, read_settings
from checkpoint_folders import SHIPPED
from command_line import UsageError, reject, warn
from compilation import compile_obstacle
from embedded_model import EMBEDDED_MODEL, embedded_checkpoint
from files.hub_reasons import Wanted, causes, first_line, hub_reason
from models.generation_settings import unused_settings
from offloading import input_device
from runtime import Runtime
from self_speculation.llama_model_utils import (
    DEFAULT_ATTENTION,
    MOST_LAYERS,
    SUPPORTED_ATTENTION,
    SUPPORTED_MODEL_TYPES,
)
from synthetic_model import find_synthetic, is_synthetic, make_model, make_tokenizer
from weight_layout import favour_single_rows

# Weights, configuration, tokenizers of every kind and their chat templates.
_FINGERPRINTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
_SAMPLED_BYTES = 1 << 16
_MOST_HEADER_BYTES = 100_000_000  # what safetensors itself allows
# What a configuration has at least one of, where it says so.
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)
_LOCATION_ARGS = ("cache_dir", "local_files_only", "revision")


@dataclass(frozen=True)
class Checkpoint:
    """A supported model with its tokenizer, in a folder or on the hub; its weights are unread.

    `fingerprint` changes with the checkpoint's files. `attention` is the kernel it will run with.
    `commit` names the state of a repository on the hub that all its files are read of.
    """

    name: str
    source: str
    config: Any
    tokenizer: Any
    fingerprint: str
    attention: str
    commit: str | None = None


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
    source = _source(name)
    where = {key: extra[key] for key in _LOCATION_ARGS if key in extra}
    with _one_line_errors(name, revision=where.get("revision")):
        commit = None if Path(source).is_dir() else _commit(name, where)
        where |= _pinned(commit)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
        _check_supported(name, config)
        fingerprint = f"commit {commit}" if commit else _fingerprint(Path(source))
    with _one_line_errors(name, "its tokenizer "):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **where)
    return Checkpoint(name, source, config, tokenizer, fingerprint, kernel, commit)


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
    with _one_line_errors(checkpoint.name):
        if is_synthetic(checkpoint.name):
            synthetic = find_synthetic(checkpoint.name, extra)
            return make_model(synthetic, runtime.device, runtime.dtype, checkpoint.attention)
        return _read_weights(checkpoint, runtime, extra)


def _read_weights(checkpoint: Checkpoint, runtime: Runtime, extra: dict[str, Any]) -> nn.Module:
    own = {"dtype": runtime.dtype, "attn_implementation": checkpoint.attention}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            checkpoint.source,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            **extra | own | _numbered_devices(extra) | _pinned(checkpoint.commit),
        )
    except OSError:
        if checkpoint.commit:
            _check_safetensors(checkpoint, extra)
        raise
    _check_complete(checkpoint.name, report, checkpoint.config.num_hidden_layers)
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


@contextmanager
def _one_line_errors(name: str, what: str = "", revision: str | None = None) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        # A checkpoint is foreign input, and transformers answers it with errors of every type.
        raise UsageError(f"--model {name}: {_reason(error, what, revision)}") from error


def _source(name: str) -> str:
    """The folder, or the name on the hub, that `--model` means."""
    if name == EMBEDDED_MODEL:
        return str(embedded_checkpoint())
    if name in SHIPPED:
        return str(SHIPPED[name])
    try:
        folder = Path(name).expanduser()
        if folder.is_dir():
            _check_folder(name, folder)
            return str(folder)
        if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
            reject("model", name, "is no checkpoint folder")
    except (OSError, RuntimeError) as error:
        reject("model", name, f"is no possible folder ({error})")
    return name


def _check_folder(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        reject("model", name, "the folder holds no config.json")
    try:
        values = read_settings(folder / "config.json")
    except (OSError, ValueError) as error:
        reject("model", name, f"its config.json cannot be read ({error})")
    for key in _SIZES:
        if isinstance(values.get(key), int) and values[key] < 1:
            reject("model", name, f"its config.json says {key} {values[key]}")
    if not any(folder.glob("*.safetensors")):
        reject(
            "model", name, "the folder holds no *.safetensors weights, the one format that is read"
        )


def _check_safetensors(checkpoint: Checkpoint, extra: dict[str, Any]) -> None:
    """Refuses a repository of which the hub said that it has no weights to be read."""
    where = {"cache_dir": extra.get("cache_dir"), "revision": checkpoint.commit}
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    found = [try_to_load_from_cache(checkpoint.source, name, **where) for name in names]
    if all(one is _CACHED_NO_EXIST for one in found):
        allowed = "the repository holds no *.safetensors weights, the one format that is read"
        reject("model", checkpoint.name, allowed)


def _check_supported(name: str, config: Any) -> None:
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        allowed = ", ".join(SUPPORTED_MODEL_TYPES)
        reject("model", name, f"is of type {config.model_type}; supported are {allowed}")
    for key, most in (("num_hidden_layers", MOST_LAYERS), ("max_position_embeddings", math.inf)):
        if not 1 <= getattr(config, key) <= most:
            reject("model", name, f"its config.json says {key} {getattr(config, key)}")


def _check_complete(name: str, report: dict[str, Any], layers: int) -> None:
    """Refuses weights that would be made up, and layers that would be left out."""
    for key, found, expected in sorted(report["mismatched_keys"]):
        shapes = f"of shape {list(found)}, where its config.json says {list(expected)}"
        reject("model", name, f"its {key} is {shapes}")
    missing = sorted(report["missing_keys"])
    if missing:
        reject("model", name, f"the checkpoint lacks {len(missing)} weights, such as {missing[0]}")
    found = (re.search(r"\blayers\.(\d+)\.", key) for key in report["unexpected_keys"])
    beyond = [int(match[1]) for match in found if match and int(match[1]) >= layers]
    if beyond:
        reject(
            "model",
            name,
            f"the checkpoint holds {max(beyond) + 1} layers, its config.json says {layers}",
        )


def _reason(error: BaseException, what: str, revision: str | None) -> str:
    """One line for whatever kept a model, or `what` is its, from loading."""
    hint = f"; name a checkpoint folder, or {EMBEDDED_MODEL}"
    reason = hub_reason(error, Wanted("model", revision=revision, otherwise=hint))
    if reason is None and any(isinstance(cause, EntryNotFoundError) for cause in causes(error)):
        reason = "lacks a file that a safetensors checkpoint has"
    return reason or f"{what}cannot be loaded ({first_line(error)})"


def _commit(name: str, where: dict[str, Any]) -> str:
    """The commit that the revision of a repository on the hub, or in its cache, names now."""
    path = cached_file(name, "config.json", **where)
    if path is None:
        reject("model", name, "the repository holds no config.json")
    return Path(path).parent.name


def _pinned(commit: str | None) -> dict[str, str]:
    """How transformers is told to read files of one commit, whatever is pushed meanwhile."""
    return {"revision": commit} if commit else {}


def _fingerprint(folder: Path) -> str:
    """Names the contents of a checkpoint's folder by a hash over its files.

    Weights enter by size, safetensors header and evenly spaced samples: hashing all bytes of a
    large model would take minutes at every start.
    """
    digest = hashlib.sha256()
    for path in sorted(path for kind in _FINGERPRINTED for path in folder.glob(kind)):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        if path.suffix == ".safetensors":
            _update_with_samples(digest, path)
        else:
            digest.update(_side_file(path))
    return f"files {digest.hexdigest()[:16]}"


def _update_with_samples(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > _MOST_HEADER_BYTES:
            raise ValueError(f"{path.name} is no safetensors file")
        digest.update(file.read(header_bytes))
        stride = max(_SAMPLED_BYTES, path.stat().st_size // 64)
        for offset in range(8 + header_bytes, path.stat().st_size, stride):
            file.seek(offset)
            digest.update(file.read(_SAMPLED_BYTES))


def _side_file(path: Path) -> bytes:
    try:
        return read_bounded(path, PART_BYTES)
    except ValueError as error:
        raise ValueError(f"{path.name} {error}") from error


def plan_beside(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The prune plan of a checkpoint that was saved pruned."""
    path = Path(checkpoint.source) / PLAN_FILE
    try:
        return read_settings(path) if path.is_file() else None
    except (OSError, ValueError) as error:
        reject("model", checkpoint.name, f"its {PLAN_FILE} cannot be read ({error})")
