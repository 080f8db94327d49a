"""A new Llama: its configuration, its tokenizer and its initial weights."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from command_line.errors import reject
from files.error_lines import error_line
from files.hashes import content_hash
from files.hub_reasons import Wanted, hub_reason
from files.reading import read_settings
from models.configurations import unread_setting
from models.loading import LoadedModel
from models.loading_errors import tokenizer_reason
from models.saved import DifferentError, check_tokenizer
from self_speculation.llama_model_utils import MOST_LAYERS, SUPPORTED_MODEL_TYPES
from training.arguments import TRAIN_TOKENIZER, LearnerArguments

END_TOKEN = "<|end|>"
# GPT-2's way to split a text, contractions aside.
DEFAULT_PATTERN = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BYTES = 256


def new_model(arguments: LearnerArguments, texts: Iterable[str], seed: int) -> LoadedModel:
    """Return a model with random weights, on the CPU; a tokenizer may be trained on `texts`.

    Raise `UsageError` for a configuration or tokenizer that does not work.
    """
    name, tokenizer_name = arguments.config, arguments.tokenizer
    assert name is not None and tokenizer_name is not None  # by LearnerArguments.check
    config = _read_config(name)
    if tokenizer_name == TRAIN_TOKENIZER:
        pattern = arguments.tokenizer_pattern or DEFAULT_PATTERN
        tokenizer = _train_tokenizer(texts, name, config.vocab_size, pattern)
    else:
        tokenizer = _read_tokenizer(tokenizer_name)
    if len(tokenizer) > config.vocab_size:
        allowed = f"has {len(tokenizer)} tokens, the configuration's vocab_size {config.vocab_size}"
        reject("tokenizer", tokenizer_name, allowed)
    _check_reads_again(tokenizer_name, config, tokenizer)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=arguments.attention
        )
    except Exception as error:
        _reject_config(name, error)
    described = json.dumps(model.config.to_diff_dict(), sort_keys=True, default=str)
    return LoadedModel(model, tokenizer, name, content_hash(described), None)


def _check_reads_again(name: str, config: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that would read back otherwise from a checkpoint of this model type."""
    try:
        check_tokenizer(config, tokenizer)
    except DifferentError as error:
        reason = f"cannot be that of a {config.model_type} in transformers ({error})"
        reject("tokenizer", name, reason)
    except OSError:
        pass  # no room for the trial; the checkpoint itself is compared at the end


def _read_config(name: str) -> Any:
    try:
        path = Path(name).expanduser()
        path = path / "config.json" if path.is_dir() else path
        values = read_settings(path)
    except (OSError, ValueError, RuntimeError) as error:
        reject("config", name, f"is no configuration that can be read ({error})")
    kind, layers = values.get("model_type"), values.get("num_hidden_layers", 1)
    if not isinstance(layers, int) or not 1 <= layers <= MOST_LAYERS:
        reject("config", name, f"its num_hidden_layers {layers} must be 1 to {MOST_LAYERS}")
    if kind not in SUPPORTED_MODEL_TYPES:
        allowed = ", ".join(SUPPORTED_MODEL_TYPES)
        reject("config", name, f"its model_type {kind} must be one of {allowed}")
    try:
        config = AutoConfig.for_model(**values)
    except Exception as error:
        _reject_config(name, error)
    unread = unread_setting(config)
    if unread:
        reject("config", name, f"says {unread}")
    return config


def _reject_config(name: str, error: Exception) -> NoReturn:
    # A configuration is foreign input, and transformers answers it with errors of every type.
    reject("config", name, f"makes no model ({error_line(error)})")


def _read_tokenizer(name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # of every type, as above
        reason = hub_reason(error, Wanted("tokenizer")) or tokenizer_reason(error)
        reject("tokenizer", name, reason or f"cannot be loaded ({error_line(error)})")


def _train_tokenizer(
    texts: Iterable[str], config: str, vocabulary: int, pattern: str
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of at most `vocabulary` tokens: all bytes, an end token, merges."""
    if vocabulary <= BYTES:
        allowed = (
            f"its vocab_size {vocabulary} must exceed {BYTES}, for every byte and an end token"
        )
        reject("config", config, allowed)
    core = Tokenizer(models.BPE())
    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception as error:  # Rust's have no type of their own
        reject("tokenizer_pattern", pattern, f"is no regular expression ({error})")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    try:
        core.train_from_iterator(texts, trainer)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        # A panic in Rust, such as of a pattern that tries too many ways, is no Exception.
        reject("tokenizer_pattern", pattern, "breaks down on the training texts")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END_TOKEN, clean_up_tokenization_spaces=False
    )
