"""Every command-line flag: its name, default, help and check.

Nothing here imports torch, so that a mistyped flag is answered at once.
"""

import math
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arguments.checkpoint_folders import PLACEHOLDER, stored_template
from arguments.placement import check_placement, memory_by_device
from command_line.script import check_new_folder, flag, reject, unescaped
from prompts.dataset_table import DATASETS

# The tables of these choices live where torch is imported; a test holds each tuple equal to its
# table's keys.
GENERATION_STRATEGIES = ("autoregressive", "self_speculative")
PRUNE_METHODS = ("base", "angular", "random")
STREAMERS = ("none", "standard", "speculative")
DTYPES = ("float32", "bfloat16", "float16", "float64")
# What --model_args may hand to `from_pretrained`. Remote code and pickled weights stay out.
MODEL_ARGS = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "local_files_only",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_folder",
    "revision",
    "variant",
)
PLAN_FILE = "prune_plan.json"  # beside the weights of a checkpoint that was saved pruned
SYNTHETIC = "synthetic:"  # begins the name of a model whose weights are made up
NO_STOP_WORDS = "none"
DEFAULT_DATASET = "human_eval"


@dataclass(frozen=True)
class ModelArguments:
    """Which model, and how it is loaded."""

    model: str = flag(
        "smollm2-135m",
        "smollm2-135m or layerskip-topv2-5m (need no hub), a checkpoint folder, a hub name, or "
        "synthetic:SHAPE[:ACCEPTANCE], random weights for work on speed; SHAPE: llama3.2-1b, "
        "llama2-7b, llama3-8b or llama2-13b; ACCEPTANCE: accepted / drafted of greedy rounds of 6 "
        "at an exit layer of a quarter of the depth (default: 0.7)",
    )
    model_args: str = flag(
        "", f"key=value,... handed to from_pretrained; keys: {', '.join(MODEL_ARGS)}"
    )
    dtype: str | None = flag(
        None, "weights' dtype (default: bfloat16 on CUDA, float32 on a CPU)", DTYPES
    )
    device: str | None = flag(
        None, "cuda or cpu (default: cuda where there is one)", ("cuda", "cpu")
    )
    compile: bool = flag(
        False,
        "compile the decoding steps for this machine before they are timed; the compiled steps "
        "are kept for later starts",
    )

    def check(self) -> None:
        if not self.model:
            reject("model", "''", "must name a model")
        extra = self.extra()
        if self.dtype and extra.get("dtype", self.dtype) != self.dtype:
            reject("model_args", f"dtype={extra['dtype']}", f"contradicts --dtype {self.dtype}")
        if extra.get("dtype", "float32") not in DTYPES:
            reject(
                "model_args", f"dtype={extra['dtype']}", f"dtype must be one of {', '.join(DTYPES)}"
            )
        check_placement(extra)

    def extra(self) -> dict[str, Any]:
        """`model_args` as keyword arguments of `from_pretrained`."""
        pairs = {}
        for item in filter(None, self.model_args.split(",")):
            key, separator, text = item.partition("=")
            key = {"torch_dtype": "dtype"}.get(key.strip(), key.strip())
            if not separator:
                reject("model_args", item, "must be key=value,...")
            if key not in MODEL_ARGS:
                reject("model_args", item, f"key must be one of {', '.join(MODEL_ARGS)}")
            read = memory_by_device if key == "max_memory" else _literal
            pairs[key] = read(text.strip())
        return pairs


@dataclass(frozen=True)
class PromptArguments:
    """What becomes of a text on its way to the model."""

    template: str | None = flag(
        None,
        r"text around every prompt, which takes the place of {message}; \n, \t and \\ understood "
        "(default: the one that a checkpoint of train.py stores, with the data set it was trained "
        "on)",
    )
    apply_chat_template: bool = flag(
        False, "hand the prompt to the model as a user's message, by its tokenizer's template"
    )
    truncate_prompt: bool = flag(
        False,
        "keep the tail of a prompt that, with --max_steps, exceeds the positions, instead of "
        "leaving it out",
    )
    prompt_field: str = flag("prompt", "custom_jsonl: the field that holds the prompt")
    response_field: str = flag("response", "custom_jsonl: the field that holds the reference")

    def check(self) -> None:
        if self.template is not None and PLACEHOLDER not in self.template:
            reject("template", repr(self.template), f"must hold {PLACEHOLDER}")
        for name in ("prompt_field", "response_field"):
            if getattr(self, name) == "":
                reject(name, "''", "must not be empty")

    def renamed_fields(self) -> dict[str, str]:
        """The fields of custom_jsonl, and what the user's rows call them."""
        return {"prompt": self.prompt_field, "response": self.response_field}

    def filled_template(self, message: str) -> str:
        """The message inside `--template`, or alone without one."""
        if self.template is None:
            return message
        return unescaped(self.template).replace(PLACEHOLDER, message)


_Prompting = typing.TypeVar("_Prompting", bound=PromptArguments)


def with_stored_template(
    prompting: _Prompting, model: str, dataset: str | None = None
) -> _Prompting:
    """The flags with the checkpoint's own template, where `--template` names none."""
    if prompting.template is not None:
        return prompting
    return replace(prompting, template=stored_template(model, dataset))


@dataclass(frozen=True)
class DataArguments(PromptArguments):
    """Which prompts."""

    dataset: str = flag(DEFAULT_DATASET, "the data set", tuple(DATASETS))
    data_path: str | None = flag(
        None,
        "JSONL, JSONL.gz, CSV or Parquet file of the data set's rows, or a folder with a test and "
        "a train file (default: the hub; for human_eval, a package)",
    )
    num_samples: int | None = flag(None, "examples to evaluate (default: all)")
    random_shuffle: bool = flag(True, "evaluate in an order drawn by --seed; false: as they come")
    n_shot: int = flag(
        0, "solved examples before every prompt, drawn by --seed from the training split"
    )
    execute_code: bool = flag(
        False,
        "human_eval: run the data set's tests on every completion, code that a model wrote, in a "
        "process of its own; gives pass@1",
    )

    def check(self) -> None:
        super().check()
        if self.num_samples is not None and self.num_samples < 1:
            reject("num_samples", self.num_samples, "must be at least 1")
        if self.n_shot < 0:
            reject("n_shot", self.n_shot, "must be 0 or more")
        if self.data_path == "":
            reject("data_path", "''", "must not be empty")
        if self.execute_code and DATASETS[self.dataset].tests is None:
            having = ", ".join(name for name, one in DATASETS.items() if one.tests)
            reject("execute_code", "true", f"--dataset {self.dataset} has no tests; {having} has")


@dataclass(frozen=True)
class CalibrationArguments:
    """On what a plan is decided."""

    prune_seed: int = flag(
        42, "seed of the plan: which layers are dropped, or which examples calibrate"
    )
    calibration_samples: int = flag(
        32, "angular: examples, none of them evaluated, on which distances are measured"
    )
    calibration_dataset: str | None = flag(
        None,
        "angular: data set to calibrate on (default: the one evaluated, its training split where "
        f"there is one; {DEFAULT_DATASET} where none is evaluated)",
        tuple(DATASETS),
    )
    calibration_path: str | None = flag(
        None, "angular: file or folder of calibration rows, as --data_path"
    )

    def check(self) -> None:
        if self.calibration_samples < 1:
            reject("calibration_samples", self.calibration_samples, "must be at least 1")
        if self.calibration_path == "":
            reject("calibration_path", "''", "must not be empty")

    def names_calibration(self) -> bool:
        """Whether examples to calibrate on are named, and not those of the data evaluated."""
        return (self.calibration_dataset or self.calibration_path) is not None


@dataclass(frozen=True)
class PruneArguments(CalibrationArguments):
    """Which layers are removed before decoding."""

    prune_method: str = flag("base", "base removes nothing", PRUNE_METHODS)
    prune_n: int | None = flag(None, "angular: number of consecutive layers to remove, 1 to L - 2")
    dropout_threshold: float | None = flag(
        None, "random: probability with which each layer is removed, in [0, 1)"
    )
    save_pruned: str | None = flag(None, "folder for the pruned model, an ordinary checkpoint")

    def check(self) -> None:
        super().check()
        self._check_needed("prune_n", "angular")
        self._check_needed("dropout_threshold", "random")
        self._check_belongs("calibration_dataset", "angular")
        self._check_belongs("calibration_path", "angular")
        if self.prune_n is not None and self.prune_n < 1:
            reject("prune_n", self.prune_n, "must be 1 to L - 2, L being the model's layers")
        if self.dropout_threshold is not None and not 0 <= self.dropout_threshold < 1:
            reject("dropout_threshold", self.dropout_threshold, "must be in [0, 1)")
        if self.save_pruned is not None:
            # One that an earlier start has saved is told from others once the plan is known.
            check_new_folder("save_pruned", self.save_pruned, may_exist=True)
            if (
                Path(self.save_pruned).exists()
                and not (Path(self.save_pruned) / PLAN_FILE).exists()
            ):
                reject("save_pruned", self.save_pruned, "exists already; name a new folder")

    def calibrates(self) -> bool:
        """Whether the method measures something on examples."""
        return self.prune_method == "angular"

    def _check_needed(self, name: str, method: str) -> None:
        if self.prune_method == method and getattr(self, name) is None:
            reject("prune_method", method, f"needs --{name}")
        self._check_belongs(name, method)

    def _check_belongs(self, name: str, method: str) -> None:
        value = getattr(self, name)
        if self.prune_method != method and value is not None:
            reject(name, value, f"only with --prune_method {method}")


@dataclass
class GenerationArguments:
    """How tokens are generated."""

    generation_strategy: str = flag("autoregressive", "the decoder", GENERATION_STRATEGIES)
    max_steps: int = flag(512, "most tokens generated for one prompt")
    exit_layer: int = flag(
        -1,
        "layers of the original model that draft (self_speculative) or decode (autoregressive); "
        "-1: none",
    )
    num_speculations: int = flag(-1, "self_speculative: tokens drafted in one round; -1: none")
    sample: bool = flag(True, "sample; false: greedy")
    temperature: float = flag(0.6, "sampling temperature, above 0")
    top_k: int = flag(0, "sample from the k likeliest tokens; 0: from all")
    top_p: float = flag(0.9, "sample from the smallest set of tokens with this mass, in (0, 1]")
    no_repeat_ngram_size: int | None = flag(
        None, "no n-gram of this size occurs twice in prompt and output"
    )
    stop_words: list[str] | None = flag(
        None,
        r"texts that end the output, \n, \t and \\ understood; the word none: nothing does "
        "(default: what ends an answer in the data set)",
    )
    stop_token_ids: list[int] = flag([], "token ids that end the output, beside the model's own")
    seed: int = flag(42, "seed of sampling, of the examples' order and of few-shot examples")

    def check(self) -> None:
        if self.max_steps < 1:
            reject("max_steps", self.max_steps, "must be at least 1")
        if self.exit_layer != -1 and self.exit_layer < 1:
            reject("exit_layer", self.exit_layer, "must be 1 to L - 1, or -1 for none")
        if self.generation_strategy == "self_speculative":
            self._check_speculation()
        if self.sample:
            self._check_sampling()
        if self.no_repeat_ngram_size is not None and self.no_repeat_ngram_size < 1:
            reject("no_repeat_ngram_size", self.no_repeat_ngram_size, "must be at least 1")
        self._check_stop_words(self.stop_words or [])
        if any(token_id < 0 for token_id in self.stop_token_ids):
            reject("stop_token_ids", min(self.stop_token_ids), "must be token ids, 0 or more")

    def chosen_stop_words(self) -> tuple[str, ...] | None:
        """The words of `--stop_words`; None where it was not given."""
        if self.stop_words is None:
            return None
        return tuple(unescaped(word) for word in self.stop_words if word != NO_STOP_WORDS)

    def _check_stop_words(self, words: list[str]) -> None:
        if "" in words:
            reject("stop_words", "''", "must not be empty")
        if NO_STOP_WORDS in words and len(words) > 1:
            reject("stop_words", " ".join(words), f"{NO_STOP_WORDS} stands alone")

    def _check_speculation(self) -> None:
        if self.exit_layer == -1:
            reject("exit_layer", -1, "--generation_strategy self_speculative needs one, 1 to L - 1")
        if self.num_speculations < 1:
            reject("num_speculations", self.num_speculations, "self_speculative needs at least 1")

    def _check_sampling(self) -> None:
        # Logits divided by less would leave float32's range.
        if not 1e-6 <= self.temperature < math.inf:
            allowed = "must be above 0, and no less than 1e-6; --sample false is greedy"
            reject("temperature", self.temperature, allowed)
        if self.top_k < 0:
            reject("top_k", self.top_k, "must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            reject("top_p", self.top_p, "must be in (0, 1]")


@dataclass
class LogArguments:
    """Where results go."""

    output_dir: str = flag("./logs", "folder of the run's two files")

    def check(self) -> None:
        check_new_folder("output_dir", self.output_dir, may_exist=True)


@dataclass
class CellArguments:
    """All flags of one cell."""

    model: ModelArguments
    data: DataArguments
    prune: PruneArguments
    generation: GenerationArguments
    log: LogArguments

    def __post_init__(self) -> None:
        self.data = with_stored_template(self.data, self.model.model, self.data.dataset)

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Those of `--stop_words`, or else what ends an answer in the data set."""
        chosen = self.generation.chosen_stop_words()
        return DATASETS[self.data.dataset].stop_words if chosen is None else chosen


CELL_GROUPS = tuple(typing.get_type_hints(CellArguments).values())


def _literal(text: str) -> Any:
    named = {"true": True, "false": False, "none": None}
    return named.get(text.lower(), text)
