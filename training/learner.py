"""The model that is trained, its tokenizer and its teacher; and the checkpoint that it ends as."""

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from arguments.model import ModelArguments
from command_line.errors import UsageError, reject
from files.error_lines import error_line
from files.hashes import content_hash
from files.hub_reasons import Wanted, hub_reason
from files.reading import read_settings
from files.writing import written_whole
from models.checkpoint import Checkpoint, find_checkpoint
from models.configurations import unread_setting
from models.loading import plan_beside, read_model
from models.loading_errors import tokenizer_reason
from models.quantised import check_can_be_saved
from models.runtime import Runtime
from models.saved import DifferentError, check_tokenizer, write_checkpoint
from self_speculation.llama_model_utils import MOST_LAYERS, SUPPORTED_MODEL_TYPES
from training.arguments import TRAIN_TOKENIZER, LearnerArguments
from training.early_exits import EarlyExits, Teacher

END_TOKEN = "<|end|>"
# GPT-2's way to split a text, contractions aside.
DEFAULT_PATTERN = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BYTES = 256


@dataclass
class Learner:
    """What learns.

    `model` is transformers' own, or with LoRA peft's around it. `fingerprints` name what training
    begins with: the model, and a teacher of its own. `plan_of_origin` is a pruned model's.
    """

    model: nn.Module
    tokenizer: Any
    exits: EarlyExits
    teacher: Teacher | None
    fingerprints: dict[str, str]
    plan_of_origin: dict[str, Any] | None = None

    @property
    def config(self) -> Any:
        return self.exits.causal.config

    def save(self, folder: Path, dtype: torch.dtype, files: dict[str, Any]) -> None:
        """Writes an ordinary checkpoint into a new folder, compared and whole or not at all.

        Adapters are merged into the weights for good. `files` are JSON values beside them.
        """
        merged = self.model.merge_and_unload() if hasattr(self.model, "peft_config") else self.model
        merged = merged.to(dtype)
        merged.config._attn_implementation = None
        _declare_end(merged.generation_config, self.tokenizer.eos_token_id)
        partial = folder.with_name(f"{folder.name}.partial")
        with written_whole(folder, partial):
            write_checkpoint(merged, self.tokenizer, partial, files)


def _declare_end(config: Any, end: int | None) -> None:
    """Makes the tokenizer's end token one that ends generation, where none is declared."""
    if end is None or config.eos_token_id is not None:
        return
    config.eos_token_id = end
    if not config.do_sample:
        # Once it was changed, transformers 5 saves no configuration that says how a sampling is
        # done which is off.
        config.update(temperature=None, top_p=None, top_k=None)


def make_learner(
    arguments: LearnerArguments, runtime: Runtime, texts: Iterable[str], seed: int
) -> Learner:
    """Loads or makes the model; in float32, as small updates vanish in half precision.

    `texts` are what a tokenizer is trained on. Raises `UsageError` for a model or configuration
    that cannot be had.
    """
    if arguments.config is None:
        checkpoint, causal = _read(arguments.model, arguments.attention, runtime, True)
        tokenizer = checkpoint.tokenizer
        fingerprint, plan = checkpoint.fingerprint, plan_beside(checkpoint)
    else:
        causal, tokenizer = _from_scratch(arguments, texts, seed)
        causal.to(runtime.device)
        described = json.dumps(causal.config.to_diff_dict(), sort_keys=True, default=str)
        fingerprint, plan = content_hash(described), None
    causal.train()
    model = causal
    if arguments.lora_rank:
        torch.manual_seed(seed)
        model = _with_adapters(arguments, causal)
    learner = Learner(model, tokenizer, EarlyExits(causal), None, {"model": fingerprint}, plan)
    if arguments.distill:
        _give_teacher(learner, arguments, runtime)
    return learner


def _read(
    name: str, attention: str, runtime: Runtime, saved: bool = False
) -> tuple[Checkpoint, nn.Module]:
    found = ModelArguments(model=name, model_args=f"attn_implementation={attention}")
    checkpoint = find_checkpoint(found)
    if saved:
        check_can_be_saved("model", name, "it", checkpoint.config)
    return checkpoint, read_model(checkpoint, runtime)


def _give_teacher(learner: Learner, arguments: LearnerArguments, runtime: Runtime) -> None:
    """The model as it was: by adapters off, or read once more; or `--teacher`."""
    if arguments.lora_rank and arguments.teacher is None:
        learner.teacher = Teacher(learner.exits, learner.model.disable_adapter)
        return
    name, vocabulary = arguments.teacher or arguments.model, learner.config.vocab_size
    try:
        checkpoint, model = _read(name, arguments.attention, runtime)
    except UsageError as error:
        raise UsageError(str(error).replace("--model", "--teacher", 1)) from error
    if model.config.vocab_size != vocabulary:
        reject("teacher", name, f"its vocab_size is {model.config.vocab_size}, not {vocabulary}")
    if checkpoint.tokenizer.get_vocab() != learner.tokenizer.get_vocab():
        reject("teacher", name, "its tokens are not those of the model that learns")
    learner.teacher = Teacher(EarlyExits(model.eval().requires_grad_(False)))
    learner.fingerprints["teacher"] = checkpoint.fingerprint


def _with_adapters(arguments: LearnerArguments, causal: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    width = causal.config.hidden_size
    if arguments.lora_rank > width:
        reject("lora_rank", arguments.lora_rank, f"must not exceed the model's width, {width}")
    settings = LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.19 asks for a property that transformers 5.23 has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(causal, settings)


def _from_scratch(
    arguments: LearnerArguments, texts: Iterable[str], seed: int
) -> tuple[nn.Module, Any]:
    config = _read_config(arguments.config)
    if arguments.tokenizer == TRAIN_TOKENIZER:
        tokenizer = train_tokenizer(texts, config.vocab_size, arguments)
    else:
        tokenizer = _read_tokenizer(arguments.tokenizer)
    if len(tokenizer) > config.vocab_size:
        allowed = f"has {len(tokenizer)} tokens, the configuration's vocab_size {config.vocab_size}"
        reject("tokenizer", arguments.tokenizer, allowed)
    _check_reads_again(arguments.tokenizer, config, tokenizer)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=arguments.attention
        )
    except Exception as error:
        # A configuration is foreign input, and transformers answers it with errors of every type.
        reject("config", arguments.config, f"makes no model ({error_line(error)})")
    return model, tokenizer


def _check_reads_again(name: str, config: Any, tokenizer: Any) -> None:
    """Refuses a tokenizer that a checkpoint of this model type would read back otherwise."""
    try:
        check_tokenizer(config, tokenizer)
    except DifferentError as error:
        reason = f"cannot be that of a {config.model_type} in transformers ({error})"
        reject("tokenizer", name, reason)
    except OSError:
        pass  # no room to try it now; the checkpoint itself is compared at the end


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
        # As above.
        reject("config", name, f"makes no model ({error_line(error)})")
    unread = unread_setting(config)
    if unread:
        reject("config", name, f"says {unread}")
    return config


def _read_tokenizer(name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        # As above.
        reason = hub_reason(error, Wanted("tokenizer")) or tokenizer_reason(error)
        reject("tokenizer", name, reason or f"cannot be loaded ({error_line(error)})")


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, arguments: LearnerArguments
) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `vocabulary` tokens: all bytes, an end token, merges of texts."""
    if vocabulary <= BYTES:
        allowed = (
            f"its vocab_size {vocabulary} must exceed {BYTES}, for every byte and an end token"
        )
        reject("config", arguments.config, allowed)
    core = Tokenizer(models.BPE())
    pattern = arguments.tokenizer_pattern or DEFAULT_PATTERN
    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception as error:  # of Rust, without a type of its own
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
    except BaseException as error:
        # What breaks down in Rust, such as a pattern that tries too many ways, is no Exception.
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        reject("tokenizer_pattern", pattern, "breaks down on the training texts")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END_TOKEN, clean_up_tokenization_spaces=False
    )
