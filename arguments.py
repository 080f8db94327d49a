"""Every command-line flag: its name, default, help and check.

Nothing here imports torch, so that a mistyped flag is answered at once.
"""

import argparse
import dataclasses
import difflib
import math
import os
import re
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

# The tables of these choices live where torch is imported (or import this module); a test holds
# each tuple equal to its table's keys.
DATASETS = ("human_eval", "custom_jsonl")
GENERATION_STRATEGIES = ("autoregressive", "self_speculative")
PRUNE_METHODS = ("base", "angular", "random")
DTYPES = ("float32", "bfloat16", "float16", "float64")
# What --model_args may hand to `from_pretrained`. Remote code and pickled weights stay out.
MODEL_ARGS = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "local_files_only",
    "low_cpu_mem_usage",
    "offload_folder",
    "revision",
    "variant",
)
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class UsageError(ValueError):
    """Input that cannot work; the message names the flag, the value and what is allowed."""


def reject(flag: str, value: object, allowed: str) -> NoReturn:
    """Raises the `UsageError` that every bad flag gets."""
    shown = "" if value is None else f" {value}"
    raise UsageError(f"--{flag}{shown}: {allowed}")


def check_new_folder(name: str, value: str, may_exist: bool) -> None:
    """Refuses a folder that cannot be made or written, before anything is computed for it."""
    try:
        if Path(value).exists() and not may_exist:
            reject(name, value, "exists already; name a new folder")
        nearest = next(path for path in (Path(value), *Path(value).parents) if path.exists())
    except OSError as error:
        reject(name, value, f"is no possible folder ({error.strerror})")
    if not nearest.is_dir():
        reject(name, value, f"{nearest} is a file; name a folder")
    if not os.access(nearest, os.W_OK):
        reject(name, value, f"{nearest} may not be written")


def flag(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that is a command-line flag."""
    metadata = {"help": help, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelArguments:
    """Which model, and how it is loaded."""

    model: str = flag(
        "smollm2-135m",
        "smollm2-135m (embedded, needs no hub), a local checkpoint folder, or a hub name",
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
            pairs[key] = _literal(text.strip())
        return pairs


@dataclass
class DataArguments:
    """Which prompts."""

    dataset: str = flag("human_eval", "the data set", DATASETS)
    data_path: str | None = flag(None, "JSONL file of --dataset custom_jsonl")
    prompt_field: str = flag("prompt", "custom_jsonl: the field that holds the prompt")
    response_field: str = flag("response", "custom_jsonl: the field that holds the reference")
    num_samples: int | None = flag(None, "examples to evaluate (default: all)")
    truncate_prompt: bool = flag(
        False,
        "keep the tail of a prompt that, with --max_steps, exceeds the positions, instead of "
        "skipping it",
    )

    def check(self) -> None:
        if self.num_samples is not None and self.num_samples < 1:
            reject("num_samples", self.num_samples, "must be at least 1")
        if self.dataset == "custom_jsonl" and not self.data_path:
            reject("data_path", None, "--dataset custom_jsonl needs a JSONL file")
        if self.dataset != "custom_jsonl" and self.data_path:
            reject("data_path", self.data_path, "only with --dataset custom_jsonl")


@dataclass
class PruneArguments:
    """Which layers are removed before decoding."""

    prune_method: str = flag("base", "base removes nothing", PRUNE_METHODS)
    prune_n: int | None = flag(None, "angular: number of consecutive layers to remove, 1 to L - 2")
    dropout_threshold: float | None = flag(
        None, "random: probability with which each layer is removed, in [0, 1)"
    )
    prune_seed: int = flag(42, "random: seed of the plan")
    calibration_samples: int = flag(
        32, "angular: examples, none of them evaluated, on which distances are measured"
    )
    save_pruned: str | None = flag(None, "folder for the pruned model, an ordinary checkpoint")

    def check(self) -> None:
        self._check_belongs("prune_n", "angular")
        self._check_belongs("dropout_threshold", "random")
        if self.prune_n is not None and self.prune_n < 1:
            reject("prune_n", self.prune_n, "must be 1 to L - 2, L being the model's layers")
        if self.dropout_threshold is not None and not 0 <= self.dropout_threshold < 1:
            reject("dropout_threshold", self.dropout_threshold, "must be in [0, 1)")
        if self.calibration_samples < 1:
            reject("calibration_samples", self.calibration_samples, "must be at least 1")
        if self.save_pruned is not None:
            check_new_folder("save_pruned", self.save_pruned, may_exist=False)

    def _check_belongs(self, name: str, method: str) -> None:
        value = getattr(self, name)
        if self.prune_method == method and value is None:
            reject("prune_method", method, f"needs --{name}")
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
    stop_words: list[str] = flag([], r"texts that end the output; \n, \t and \\ are understood")
    stop_token_ids: list[int] = flag([], "token ids that end the output, beside the model's own")
    seed: int = flag(42, "seed of sampling")

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
        if "" in self.stop_words:
            reject("stop_words", "''", "must not be empty")
        if any(token_id < 0 for token_id in self.stop_token_ids):
            reject("stop_token_ids", min(self.stop_token_ids), "must be token ids, 0 or more")

    def unescaped_stop_words(self) -> list[str]:
        r"""Stop words with \n, \t and \\ read as a shell's user means them."""
        named = {"n": "\n", "t": "\t", "\\": "\\"}
        return [re.sub(r"\\([nt\\])", lambda m: named[m[1]], word) for word in self.stop_words]

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


class OneLineParser(argparse.ArgumentParser):
    """Raises a one-line `UsageError` where argparse would print its usage and exit."""

    def parse_known_args(self, args: list[str] | None = None, namespace: Any = None) -> Any:
        for text in sys.argv[1:] if args is None else args:
            if text != text.encode(errors="replace").decode():
                shown = text.encode(errors="backslashreplace").decode()
                raise UsageError(f"{shown}: is not UTF-8 text")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def parse(argv: list[str] | None, description: str, *groups: type) -> list[Any]:
    """Parses `argv` (default: the process's own) into one checked instance of each dataclass.

    Raises `UsageError` for anything that no model is needed to see.
    """
    parser = OneLineParser(description=description, allow_abbrev=False)
    for group in groups:
        section = parser.add_argument_group(group.__doc__)
        for item in dataclasses.fields(group):
            _add_flag(section, item, typing.get_type_hints(group)[item.name])
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UsageError(_unknown_message(unknown[0], vars(values)))
    instances = [
        group(**{item.name: getattr(values, item.name) for item in dataclasses.fields(group)})
        for group in groups
    ]
    for instance in instances:
        instance.check()
    return instances


def run_script(
    main: typing.Callable[[list[str] | None], int], argv: list[str] | None = None
) -> int:
    """Calls `main`; a `UsageError` becomes one line on stderr and exit code 2."""
    try:
        return main(argv)
    except UsageError as error:
        line = " ".join(str(error).split())
        print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _unknown_message(unknown: str, known: dict[str, Any]) -> str:
    name = unknown.partition("=")[0]
    close = difflib.get_close_matches(name.lstrip("-"), known, n=1)
    hint = f"; did you mean --{close[0]}?" if close and name.startswith("-") else ""
    return f"{name}: no such flag{hint}"


def _add_flag(section: Any, item: dataclasses.Field, hint: Any) -> None:
    many = typing.get_origin(hint) is list
    if many:
        (kind,) = typing.get_args(hint)
    elif isinstance(hint, types.UnionType):
        (kind,) = (option for option in typing.get_args(hint) if option is not type(None))
    else:
        kind = hint
    default = item.default_factory() if many else item.default
    shown = "" if default in (None, "", []) else f" (default: {default})"
    section.add_argument(
        f"--{item.name}",
        type=_boolean if kind is bool else kind,
        nargs="+" if many else None,
        default=default,
        choices=item.metadata["choices"],
        help=item.metadata["help"].replace("%", "%%") + shown,
        metavar=None if item.metadata["choices"] else kind.__name__.upper(),
    )


def _boolean(text: str) -> bool:
    choices = {"true": True, "false": False}
    if text.lower() not in choices:
        raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")
    return choices[text.lower()]


def _literal(text: str) -> Any:
    named = {"true": True, "false": False, "none": None}
    return named.get(text.lower(), text)
