"""The flags of train.py.

Nothing here imports torch, so that a mistyped flag is answered at once.
"""

import math
from dataclasses import dataclass

from arguments.model_args import DTYPES
from arguments.prompts import PromptArguments
from command_line.errors import reject
from command_line.flags import check_new_folder, flag
from data import check_renamed
from prompts.dataset_table import DATASETS
from training.layerskip_recipe import (
    DROPOUT_CURRICULA,
    EARLY_EXIT_CURRICULA,
    EARLY_EXIT_WEIGHTS,
    Recipe,
)

# The tables of these choices live where torch is imported; a test holds each tuple equal to its
# table's keys.
OPTIMIZERS = ("adamw", "muon")
BATCHINGS = ("length_grouped", "packed")
TRAIN_TOKENIZER = "bpe"
_MOST_EPOCHS = 10_000  # all are planned before the first
_SEEDS = 2**62  # the step is added, and torch takes 63 bits


@dataclass(frozen=True)
class LearnerArguments:
    """What is trained."""

    model: str | None = flag(
        None, "continual training: the model to go on with, named as in benchmark.py"
    )
    config: str | None = flag(
        None, "training from scratch: a config.json of a Llama, or a folder that holds one"
    )
    tokenizer: str | None = flag(
        None,
        "with --config: a checkpoint folder or hub name, or bpe: trained on the training texts, of "
        "the configuration's vocab_size",
    )
    tokenizer_pattern: str | None = flag(
        None,
        "with --tokenizer bpe: a regular expression of the pieces that texts are split into, which "
        "no token crosses (default: GPT-2's)",
    )
    lora_rank: int = flag(0, "rank of LoRA adapters on all linear layers; 0: full training")
    lora_alpha: float = flag(16.0, "LoRA: what the adapters are scaled by, over their rank")
    distill: bool = flag(
        False,
        "learn, instead of the data's tokens, the distribution of the teacher's last layer (KL)",
    )
    teacher: str | None = flag(None, "with --distill: the teacher (default: --model, unchanged)")
    device: str | None = flag(
        None, "cuda or cpu (default: cuda where there is one)", ("cuda", "cpu")
    )
    mixed_precision: str = flag("bf16", "bf16: autocast to bfloat16; no: float32", ("bf16", "no"))
    attention: str = flag(
        "sdpa", "attention kernel; eager is faster for short sequences on a CPU", ("sdpa", "eager")
    )

    def check(self) -> None:
        for name in ("model", "config", "tokenizer", "teacher"):
            if getattr(self, name) == "":
                reject(name, "''", "must not be empty")
        if (self.model is None) == (self.config is None):
            reject("model", self.model, "name either --model or --config, and not both")
        if self.config is not None and self.tokenizer is None:
            reject("config", self.config, "needs --tokenizer")
        if self.config is None and self.tokenizer is not None:
            reject("tokenizer", self.tokenizer, "only with --config")
        self._check_pattern()
        if self.lora_rank < 0:
            reject("lora_rank", self.lora_rank, "must be 0 (off) or more")
        if self.lora_rank and self.config:
            reject("lora_rank", self.lora_rank, "only with --model: adapters need trained weights")
        if not 0 < self.lora_alpha < math.inf:
            reject("lora_alpha", self.lora_alpha, "must be above 0")
        if self.teacher is not None and not self.distill:
            reject("teacher", self.teacher, "only with --distill true")
        if self.distill and self.config and self.teacher is None:
            reject("distill", "true", "with --config, needs a --teacher")

    def _check_pattern(self) -> None:
        if self.tokenizer_pattern is None:
            return
        if self.tokenizer != TRAIN_TOKENIZER:
            reject("tokenizer_pattern", self.tokenizer_pattern, "only with --tokenizer bpe")
        if not self.tokenizer_pattern:
            reject("tokenizer_pattern", "''", "must not be empty")


@dataclass(frozen=True)
class TrainingDataArguments(PromptArguments):
    """What it is trained on."""

    dataset: str | None = flag(
        None,
        "a data set of benchmark.py: its training split, loss on the reference alone (default: "
        "rows with a text, or with messages, of which the assistant's are learned)",
        tuple(DATASETS),
    )
    data_path: str | None = flag(
        None, "file of rows, or folder with a train file, as in benchmark.py (default: the hub)"
    )
    num_samples: int | None = flag(None, "rows to train on, the first ones (default: all)")
    eval_path: str | None = flag(
        None, "file of held-out rows (default: --eval_samples of the training rows, held out)"
    )
    eval_samples: int = flag(200, "held-out rows; 0: none is measured")
    max_length: int = flag(512, "tokens of the longest document; longer texts are split")

    def check(self) -> None:
        super().check()
        if self.dataset is None and self.data_path is None:
            reject("data_path", None, "name a file of rows, or a --dataset")
        if self.num_samples is not None and self.num_samples < 1:
            reject("num_samples", self.num_samples, "must be at least 1")
        if self.eval_samples < 0:
            reject("eval_samples", self.eval_samples, "must be 0 (none) or more")
        if self.max_length < 2:
            reject("max_length", self.max_length, "must be at least 2")
        for name in ("data_path", "eval_path"):
            if getattr(self, name) == "":
                reject(name, "''", "must not be empty")
        if self.truncate_prompt:
            reject("truncate_prompt", "true", "prompts are cut to --max_length in any case")
        self._check_belongs_to_a_dataset()

    def _check_belongs_to_a_dataset(self) -> None:
        if self.dataset is None:
            if self.template is not None:
                reject("template", repr(self.template), "only with --dataset")
            if self.apply_chat_template:
                reject("apply_chat_template", "true", "only with --dataset")
        check_renamed(self, [] if self.dataset is None else [DATASETS[self.dataset]])


@dataclass(frozen=True)
class RecipeArguments:
    """The LayerSkip recipe."""

    max_layer_dropout: float = flag(
        0.1, "how often the last layer is dropped, per sequence; earlier ones exponentially less"
    )
    layer_dropout_curriculum: str = flag(
        "constant",
        "constant: for continual training; exponential: the rate grows from 0 as training goes, "
        "for training from scratch",
        tuple(DROPOUT_CURRICULA),
    )
    early_exit_scale: float = flag(0.2, "weight of early exits' loss beside the last layer's")
    early_exit_weights: str = flag(
        "paper",
        "paper: later exits weigh more, by the square of their depth; uniform: all the same",
        tuple(EARLY_EXIT_WEIGHTS),
    )
    early_exit_curriculum: str = flag(
        "rotational",
        "exits that learn at a step: rotational: every --rotation_interval-th, in turn; gradual: "
        "from the last down, all after half of the training; none: all",
        tuple(EARLY_EXIT_CURRICULA),
    )
    rotation_interval: int = flag(8, "rotational: layers from one exit that learns to the next")

    def check(self) -> None:
        if not 0 <= self.max_layer_dropout < 1:
            reject("max_layer_dropout", self.max_layer_dropout, "must be in [0, 1)")
        if not 0 <= self.early_exit_scale < math.inf:
            reject("early_exit_scale", self.early_exit_scale, "must be 0 or more")
        if self.rotation_interval < 1:
            reject("rotation_interval", self.rotation_interval, "must be at least 1")

    @property
    def recipe(self) -> Recipe:
        return Recipe(**vars(self))


@dataclass(frozen=True)
class OptimizationArguments:
    """How it is trained."""

    optimizer: str = flag(
        "adamw",
        "adamw; muon: matrices within the layers by Muon, the others by AdamW",
        OPTIMIZERS,
    )
    learning_rate: float = flag(2e-4, "AdamW's peak learning rate")
    muon_learning_rate: float = flag(0.02, "Muon's peak learning rate")
    weight_decay: float = flag(0.1, "weight decay of matrices; vectors have none")
    warmup_steps: int = flag(50, "steps in which the learning rate rises; a cosine to 0 follows")
    max_gradient_norm: float = flag(1.0, "gradients are scaled down to this norm")
    epochs: int = flag(1, "passes over the data")
    max_steps: int | None = flag(None, "steps, in place of --epochs")
    batch_tokens: int = flag(4096, "most tokens of one step, padding included, on all processes")
    gradient_accumulation: int = flag(1, "parts that a step's batch is computed in")
    batching: str = flag(
        "length_grouped",
        "length_grouped: a sequence a document, of like length; packed: several documents in one "
        "sequence, none of which sees another",
        BATCHINGS,
    )
    seed: int = flag(42, "seed of initial weights, of the order of batches and of layer dropout")

    def check(self) -> None:
        for name in ("learning_rate", "muon_learning_rate", "max_gradient_norm"):
            if not 0 < getattr(self, name) < math.inf:
                reject(name, getattr(self, name), "must be above 0")
        if not 0 <= self.weight_decay < math.inf:
            reject("weight_decay", self.weight_decay, "must be 0 or more")
        if self.warmup_steps < 0:
            reject("warmup_steps", self.warmup_steps, "must be 0 or more")
        for name in ("epochs", "max_steps", "batch_tokens", "gradient_accumulation"):
            value = getattr(self, name)
            if value is not None and value < 1:
                reject(name, value, "must be at least 1")
        if self.epochs > _MOST_EPOCHS:
            reject("epochs", self.epochs, f"must be 1 to {_MOST_EPOCHS}; --max_steps goes beyond")
        if self.gradient_accumulation > self.batch_tokens:
            reject("gradient_accumulation", self.gradient_accumulation, "exceeds --batch_tokens")
        if not 0 <= self.seed < _SEEDS:
            reject("seed", self.seed, f"must be 0 to {_SEEDS - 1}")


@dataclass(frozen=True)
class TrainingLogArguments:
    """Where it goes."""

    output_dir: str = flag(
        "./training",
        "folder of the log, the plot, the training state and the checkpoint; a training that was "
        "broken off there goes on",
    )
    save_dtype: str = flag("float32", "dtype of the final checkpoint's weights", DTYPES)
    log_steps: int = flag(10, "steps from one line of the log to the next")
    eval_steps: int = flag(200, "steps from one measurement on held-out rows to the next")
    state_steps: int = flag(200, "steps from one saved training state to the next")

    def check(self) -> None:
        check_new_folder("output_dir", self.output_dir, may_exist=True)
        for name in ("log_steps", "eval_steps", "state_steps"):
            if getattr(self, name) < 1:
                reject(name, getattr(self, name), "must be at least 1")


@dataclass(frozen=True)
class TrainingArguments:
    """All flags of one training.

    Raises `UsageError` for flags of different groups that cannot go together.
    """

    learner: LearnerArguments
    data: TrainingDataArguments
    recipe: RecipeArguments
    optimization: OptimizationArguments
    log: TrainingLogArguments

    def __post_init__(self) -> None:
        if self.data.max_length > self.optimization.batch_tokens:
            reject("max_length", self.data.max_length, "must not exceed --batch_tokens")
