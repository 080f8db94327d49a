"""Find, check and fingerprint the files of a checkpoint before its weights are read."""

import hashlib
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)

from arguments.checkpoint_folders import SHIPPED
from command_line.errors import reject
from files.reading import PART_BYTES, read_bounded, read_settings
from models.embedded import EMBEDDED_MODEL, embedded_checkpoint

# Weights, configuration, tokenizers of every kind and their chat templates.
_FINGERPRINTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
_SAMPLED_BYTES = 1 << 16
_MOST_HEADER_BYTES = 100_000_000  # the limit of safetensors itself
# Keys that must be at least 1 if a configuration has them.
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)
_ADAPTER_FILES = (ADAPTER_CONFIG_NAME, "adapter_model.safetensors")  # as peft names them
_NO_FOLDER = "no-adapter"
_NO_WEIGHTS = "holds no *.safetensors weights, the one format that is read"


def find_source(name: str) -> str:
    """Return the folder that `--model` names, or else the name, as one on the hub."""
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
        _check_no_adapter_alone(name, str(folder))
        reject("model", name, "the folder holds no config.json")
    try:
        values = read_settings(folder / "config.json")
    except (OSError, ValueError) as error:
        reject("model", name, f"its config.json cannot be read ({error})")
    for key in _SIZES:
        if isinstance(values.get(key), int) and values[key] < 1:
            reject("model", name, f"its config.json says {key} {values[key]}")
    if not any(path.name not in _ADAPTER_FILES for path in folder.glob("*.safetensors")):
        _check_no_adapter_alone(name, str(folder))
        reject("model", name, f"the folder {_NO_WEIGHTS}")


def unused_adapter(source: str, where: dict[str, Any]) -> str | None:
    """Return the remark that an adapter beside full weights is not applied; None without one.

    transformers would apply the adapter to weights that may contain it already. Raise `UsageError`
    if `without_adapter` does not work, as in folders before transformers 5.23.
    """
    if find_adapter_config_file(source, **where) is None:
        return None
    if find_adapter_config_file(source, **where | {"subfolder": _NO_FOLDER}) is not None:
        twice = f"transformers {transformers.__version__} would apply it to the weights beside it"
        reject("model", source, f"holds an {ADAPTER_CONFIG_NAME}, and {twice}; move it elsewhere")
    return f"the adapter of its {ADAPTER_CONFIG_NAME} is left aside, its own weights are used"


def without_adapter(where: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of `from_pretrained` that make it look for an adapter in vain."""
    return {"adapter_kwargs": where | {"subfolder": _NO_FOLDER}}


def _check_no_adapter_alone(name: str, source: str, **where: Any) -> None:
    """Reject a source that holds an adapter without the model that it changes."""
    path = find_adapter_config_file(source, **where)
    if path is None:
        return
    try:
        base = read_settings(Path(path)).get("base_model_name_or_path")
    except (OSError, ValueError):
        base = None
    whose = base if isinstance(base, str) and base else "another model"
    allowed = f"holds an adapter of {whose} alone; merge it into that model, and name the result"
    reject("model", name, allowed)


def check_safetensors(name: str, commit: str, cache_dir: str | None) -> None:
    """Reject a repository without *.safetensors weights; the cache holds the hub's answers."""
    where = {"cache_dir": cache_dir, "revision": commit}
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    found = [try_to_load_from_cache(name, file, **where) for file in names]
    if all(path is _CACHED_NO_EXIST for path in found):
        _check_no_adapter_alone(name, name, **where)
        reject("model", name, f"the repository {_NO_WEIGHTS}")


def find_commit(name: str, where: dict[str, Any]) -> str:
    """Return the commit that the revision of a repository names now, on the hub or in its cache."""
    path = cached_file(name, "config.json", **where)
    if path is None:
        _check_no_adapter_alone(name, name, **where)
        reject("model", name, "the repository holds no config.json")
    return Path(path).parent.name


def fingerprint(folder: Path) -> str:
    """Return a hash over a checkpoint's files, without an adapter, which is not read.

    Weights enter by size, safetensors header and evenly spaced samples: hashing all bytes of a
    large model would take minutes at each start.
    """
    digest = hashlib.sha256()
    for path in sorted(path for kind in _FINGERPRINTED for path in folder.glob(kind)):
        if path.name in _ADAPTER_FILES:
            continue
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        if path.suffix == ".safetensors":
            _update_with_samples(digest, path)
            continue
        try:
            digest.update(read_bounded(path, PART_BYTES))
        except ValueError as error:
            raise ValueError(f"{path.name} {error}") from error
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
