"""The flags of train.py.

Nothing here imports torch, so that a mistyped flag is answered at once.
"""

import math
from dataclasses import dataclass
from typing import Any

from arguments.model_args import DTYPES
from arguments.prompts import PromptArguments
from command_line.errors import reject
from command_line.flags import check_least, check_new_folder, flag
from data import check_renamed
from prompts.dataset_table import DATASETS
from training.layerskip_recipe import Recipe

# The table of these choices is in a module that imports torch; a test compares its keys.
OPTIMIZERS = ("adamw", "muon")
TRAIN_TOKENIZER = "bpe"
_MOST_EPOCHS = 10_000  # all epochs are planned before the first
_SEEDS = 2**62  # the step is added, and torch takes 63 bits


def _require_text(flags: Any, *names: str) -> None:
    for name in names:
        if getattr(flags, name) == "":
            reject(name, "''", "must not be empty")


def _require_positive(flags: Any, *names: str) -> None:
    for name in names:
        if not 0 < getattr(flags, name) < math.inf:
            reject(name, getattr(flags, name), "must be above 0")


@dataclass(frozen=True)
class LearnerArguments:
    """The model."""

    model: str | None = flag(None, "the model to go on with, named as in benchmark.py")
    config: str | None = flag(None, "from scratch: a Llama's config.json, or its folder")
    tokenizer: str | None = flag(
        None,
        "with --config: a checkpoint folder or hub name, or bpe: trained on the training texts, "
        "with the configuration's vocab_size",
    )
    tokenizer_pattern: str | None = flag(
        None,
        "with --tokenizer bpe: a regular expression that splits texts into pieces; no token "
        "crosses their borders (default: GPT-2's)",
    )
    lora_rank: int = flag(0, "rank of LoRA adapters on all linear layers; 0: full training")
    lora_alpha: float = flag(16.0, "LoRA: adapters are scaled by this, divided by their rank")
    distill: bool = flag(False, "learn a teacher's distribution (KL), not the data's tokens")
    teacher: str | None = flag(None, "with --distill: the teacher (default: --model, unchanged)")
    device: str | None = flag(None, "cuda or cpu (default: cuda, if any)", ("cuda", "cpu"))
    mixed_precision: str = flag("bf16", "bf16: autocast to bfloat16; no: float32", ("bf16", "no"))
    attention: str = flag(
        "sdpa", "attention kernel; eager is faster for short sequences on a CPU", ("sdpa", "eager")
    )
    compile: bool = flag(False, "compile the decoder layers, in the first passes")

    def check(self) -> None:
        _require_text(self, "model", "config", "tokenizer", "tokenizer_pattern", "teacher")
        if (self.model is None) == (self.config is None):
            reject("model", self.model, "name either --model or --config, and not both")
        if self.model is not None and self.tokenizer is not None:
            reject("tokenizer", self.tokenizer, "only with --config")
        if self.config is not None and self.tokenizer is None:
            reject("config", self.config, "needs --tokenizer")
        if self.tokenizer_pattern is not None and self.tokenizer != TRAIN_TOKENIZER:
            reject("tokenizer_pattern", self.tokenizer_pattern, "only with --tokenizer bpe")
        check_least(self, lora_rank=0)
        if self.lora_rank and self.config:
            reject("lora_rank", self.lora_rank, "only with --model: adapters need trained weights")
        _require_positive(self, "lora_alpha")
        if self.teacher is not None and not self.distill:
            reject("teacher", self.teacher, "only with --distill true")
        if self.distill and self.teacher_name() is None:
            reject("distill", "true", "with --config, needs a --teacher")

    def teacher_name(self) -> str | None:
        """Return the model whose distribution is learned; None without `--distill`."""
        return (self.teacher or self.model) if self.distill else None


@dataclass(frozen=True)
class TrainingDataArguments(PromptArguments):
    """The data."""

    dataset: str | None = flag(
        None,
        "a data set of benchmark.py: its training split, with loss on the reference only "
        "(default: rows with a text, or with messages; only the assistant's are learned)",
        tuple(DATASETS),
    )
    data_path: str | None = flag(
        None, "file of rows, or folder with a train file, as in benchmark.py (default: the hub)"
    )
    num_samples: int | None = flag(None, "rows to train on, from the first (default: all)")
    eval_path: str | None = flag(None, "file of held-out rows (default: some of --data_path)")
    eval_samples: int = flag(200, "held-out rows; 0: nothing is measured")
    max_length: int = flag(512, "tokens of the longest document; longer texts are split")

    def check(self) -> None:
        super().check()
        if self.dataset is None and self.data_path is None:
            reject("data_path", None, "name a file of rows, or a --dataset")
        check_least(self, num_samples=1, eval_samples=0, max_length=2)
        _require_text(self, "data_path", "eval_path")
        if self.truncate_prompt:
            reject("truncate_prompt", "true", "prompts are cut to --max_length in any case")
        if self.max_prompt_tokens is not None:
            reject("max_prompt_tokens", self.max_prompt_tokens, "--max_length cuts prompts")
        if self.dataset is None:
            if self.template is not None:
                reject("template", repr(self.template), "only with --dataset")
            if self.apply_chat_template:
                reject("apply_chat_template", "true", "only with --dataset")
        if self.dataset is not None and not DATASETS[self.dataset].references:
            reject("dataset", self.dataset, "has no answers to learn; texts need no --dataset")
        check_renamed(self, [] if self.dataset is None else [DATASETS[self.dataset]])


@dataclass(frozen=True)
class OptimizationArguments:
    """The optimization."""

    optimizer: str = flag("adamw", "muon: AdamW for all but the layers' matrices", OPTIMIZERS)
    learning_rate: float = flag(2e-4, "AdamW's peak learning rate")
    muon_learning_rate: float = flag(0.02, "Muon's peak learning rate")
    weight_decay: float = flag(0.1, "weight decay of matrices; vectors have none")
    warmup_steps: int = flag(50, "steps in which the learning rate rises; a cosine to 0 follows")
    max_gradient_norm: float = flag(1.0, "gradients are scaled down to this norm")
    epochs: int = flag(1, "passes over the data")
    max_steps: int | None = flag(None, "steps, instead of --epochs")
    batch_tokens: int = flag(4096, "most tokens per step, padding included, on all processes")
    gradient_accumulation: int = flag(1, "parts in which a step's batch is computed")
    seed: int = flag(42, "seed of initial weights, of the order of batches and of layer dropout")

    def check(self) -> None:
        _require_positive(self, "learning_rate", "muon_learning_rate", "max_gradient_norm")
        check_least(self, weight_decay=0, warmup_steps=0)
        check_least(self, epochs=1, max_steps=1, batch_tokens=1, gradient_accumulation=1)
        if self.epochs > _MOST_EPOCHS:
            reject("epochs", self.epochs, f"must be 1 to {_MOST_EPOCHS}; --max_steps goes beyond")
        if self.gradient_accumulation > self.batch_tokens:
            reject("gradient_accumulation", self.gradient_accumulation, "exceeds --batch_tokens")
        if not 0 <= self.seed < _SEEDS:
            reject("seed", self.seed, f"must be 0 to {_SEEDS - 1}")


@dataclass(frozen=True)
class TrainingLogArguments:
    """The output."""

    output_dir: str = flag(
        "./training", "folder of log, plot, states and checkpoint; a training in it goes on"
    )
    save_dtype: str = flag("float32", "dtype of the final checkpoint's weights", DTYPES)
    log_steps: int = flag(10, "steps per line of the log")
    eval_steps: int = flag(200, "steps per measurement on held-out rows")
    state_steps: int = flag(200, "steps per saved training state")

    def check(self) -> None:
        check_new_folder("output_dir", self.output_dir, may_exist=True)
        check_least(self, log_steps=1, eval_steps=1, state_steps=1)


@dataclass(frozen=True)
class TrainingArguments:
    """All flags of one training.

    Raises `UsageError` for flags of different groups that contradict each other.
    """

    learner: LearnerArguments
    data: TrainingDataArguments
    recipe: Recipe
    optimization: OptimizationArguments
    log: TrainingLogArguments

    def __post_init__(self) -> None:
        if self.data.max_length > self.optimization.batch_tokens:
            reject("max_length", self.data.max_length, "must not exceed --batch_tokens")
