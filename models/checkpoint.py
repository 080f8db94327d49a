"""Find a checkpoint and check that it can run here, before its weights are read."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from arguments.model import ModelArguments
from command_line.errors import reject
from models.checkpoint_files import find_commit, find_source, fingerprint, unused_adapter
from models.configurations import check_supported, own_code
from models.loading_errors import one_line_errors
from models.quantised import check_quantised
from models.synthetic import find_synthetic, is_synthetic, make_tokenizer
from self_speculation.llama_model_utils import DEFAULT_ATTENTION, SUPPORTED_ATTENTION


@dataclass(frozen=True)
class Checkpoint:
    """A supported model with its tokenizer, in a folder or on the hub; its weights are unread.

    `fingerprint` changes with the checkpoint's files. `attention` is the kernel that the model
    will use, `options` are the values of `--model_args`. `commit` pins a repository on the hub to
    one state. `remarks` are warnings to print when the weights are read.
    """

    name: str
    source: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    attention: str
    options: dict[str, Any]
    commit: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def location(self) -> dict[str, Any]:
        """Return the arguments that tell transformers where the files lie."""
        return _location(self.options, self.commit)


def find_checkpoint(arguments: ModelArguments) -> Checkpoint:
    """Find the model that `--model` names, and check that it is supported.

    Raise `UsageError` for a model that is missing, gated, out of reach or no Llama.
    """
    name, options = arguments.model, arguments.options
    attention = options.get("attn_implementation") or DEFAULT_ATTENTION
    if attention not in SUPPORTED_ATTENTION:
        allowed = ", ".join(SUPPORTED_ATTENTION)
        reject("model_args", f"attn_implementation={attention}", f"must be one of {allowed}")
    _check_devices(options)
    if is_synthetic(name):
        synthetic = find_synthetic(name, options)
        config, found = synthetic.config, synthetic.fingerprint
        tokenizer: PreTrainedTokenizerBase = make_tokenizer(config.vocab_size)
        return Checkpoint(name, name, config, tokenizer, found, attention, options)
    source = find_source(name)
    where = _location(options)
    with one_line_errors(name, revision=where.get("revision")):
        commit = None if Path(source).is_dir() else find_commit(name, where)
        where = _location(options, commit)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
        check_supported(name, config)
        check_quantised(name, config)
        found = f"commit {commit}" if commit else fingerprint(Path(source))
        remarks = tuple(filter(None, (own_code(config), unused_adapter(source, where))))
    with one_line_errors(name, of_tokenizer=True):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **where)
    return Checkpoint(name, source, config, tokenizer, found, attention, options, commit, remarks)


def _location(options: dict[str, Any], commit: str | None = None) -> dict[str, Any]:
    """`commit` keeps all files of one state, whatever is pushed to the hub in the meantime."""
    keys = ("cache_dir", "local_files_only", "revision")
    where = {key: options[key] for key in keys if key in options}
    return where | ({"revision": commit} if commit else {})


def _check_devices(options: dict[str, Any]) -> None:
    """Reject CUDA devices that this machine lacks."""
    numbers = [int(name) for name in options.get("max_memory", {}) if name.isdigit()]
    named = re.fullmatch(r"cuda:?(\d*)", str(options.get("device_map")))
    numbers += [int(named[1] or 0)] if named else []
    count = torch.cuda.device_count()
    if max(numbers, default=-1) >= count:
        reject("model_args", f"cuda:{max(numbers)}", f"torch sees {count} CUDA devices here")
