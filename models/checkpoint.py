"""A model that is found, checked and fingerprinted; its weights are unread."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from arguments.model import ModelArguments
from command_line.errors import reject
from models.checkpoint_files import (
    adapter_aside,
    find_commit,
    find_source,
    fingerprint,
    pinned,
)
from models.configurations import check_supported, own_code
from models.loading_errors import one_line_errors, one_line_tokenizer_errors
from models.quantised import check_quantised
from models.synthetic import find_synthetic, is_synthetic, make_tokenizer
from self_speculation.llama_model_utils import DEFAULT_ATTENTION, SUPPORTED_ATTENTION

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
    where = location(extra)
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


def _synthetic_checkpoint(name: str, extra: dict[str, Any], attention: str) -> Checkpoint:
    synthetic = find_synthetic(name, extra)
    config = synthetic.config
    tokenizer = make_tokenizer(config.vocab_size)
    return Checkpoint(name, name, config, tokenizer, synthetic.fingerprint, attention)


def location(extra: dict[str, Any]) -> dict[str, Any]:
    """Return those of `--model_args` that say where a checkpoint's files lie."""
    return {key: extra[key] for key in _LOCATION_ARGS if key in extra}


def _check_devices(extra: dict[str, Any]) -> None:
    """Refuses CUDA devices that are not here."""
    numbers = [int(name) for name in extra.get("max_memory", {}) if name.isdigit()]
    named = re.fullmatch(r"cuda:?(\d*)", str(extra.get("device_map")))
    numbers += [int(named[1] or 0)] if named else []
    count = torch.cuda.device_count()
    if max(numbers, default=-1) >= count:
        reject("model_args", f"cuda:{max(numbers)}", f"torch sees {count} CUDA devices here")
