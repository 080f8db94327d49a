"""Reads the logs of LayerSkip with pruning, the tool that this one follows.

It left two: `benchmark_<time>.json`, four JSON objects one after another; and captured consoles,
`<data set>_results_base_0`, `..._angular_n2` or `..._random_t0.1`, in which a Python dict of
metrics was printed last.
"""

import ast
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from files.reading import LOG_BYTES, DuplicateKeyError, read_bounded, unique
from files.values import check_kinds
from runs.reader import check_metrics

_CONSOLE = re.compile(
    r"(?P<dataset>.+)_results_(?:base(?:_\d+)?|angular_n(?P<n>\d+)|random_t(?P<t>\d*\.?\d+))"
    r"(?:\.(?:txt|log|out))?"
)
_RENAMED = {"xsum": "xsum_summarization"}
_METHODS = ("base", "angular", "random")
_MEANS = ("acceptance_rate", "total_time", "time_per_token", "tokens_per_second")
_SCORES = ("rouge-l", "rouge-1", "rouge-2", "rouge-3", "bleu_score", "exact_match")
# The keys of the older tool's objects. A fork that adds one may mean other things by all others.
_KEYS = {
    "arguments": {"model", "model_args", "seed", "output_dir", "distributed"},
    "data": {
        *("dataset", "data_path", "random_shuffle", "num_samples", "n_shot", "template"),
        *("prune_method", "prune_n", "dropout_threshold"),
    },
    "generation": {
        *("max_steps", "exit_layer", "num_speculations", "generation_strategy", "sample"),
        *("temperature", "top_k", "top_p", "no_repeat_ngram_size", "stop_words"),
        "stop_token_ids",
    },
}
_NOT_A_NUMBER = re.compile(r"(?<=[\s:,\[{])[-+]?(?:nan|inf)(?=[\s,\]}])")


class UnknownLogError(ValueError):
    """A log of neither this project nor, to the letter, the older tool."""


@dataclass(frozen=True)
class OlderLog:
    """One run. Of a console, the flags are known as far as its name tells them."""

    dataset: str
    method: str
    prune_n: int | None
    dropout_threshold: float | None
    metrics: dict[str, Any]
    model: str | None = None
    generation_strategy: str | None = None
    exit_layer: int | None = None
    num_speculations: int | None = None
    num_samples: float | None = None


def is_console(path: Path) -> bool:
    """Whether the name is one of a captured console."""
    return _CONSOLE.fullmatch(path.name) is not None


def read_console(path: Path) -> OlderLog:
    """The run whose console was captured. Raises ValueError where no metrics were printed."""
    name = _CONSOLE.fullmatch(path.name)
    metrics = _printed_metrics(read_bounded(path, LOG_BYTES).decode(errors="replace"))
    n, threshold = name["n"], name["t"]
    return OlderLog(
        dataset=_dataset(name["dataset"]),
        method="angular" if n else "random" if threshold else "base",
        prune_n=int(n) if n else None,
        dropout_threshold=float(threshold) if threshold else None,
        metrics=_renamed(metrics),
    )


def read_objects(text: str) -> OlderLog:
    """The run in four JSON objects. Raises ValueError for any other text."""
    objects = _objects(text)
    if len(objects) != 4 or "predicted_text" not in objects[3] or "dataset" not in objects[1]:
        raise UnknownLogError("is neither one object nor the four of an older log")
    arguments, data, generation, metrics = objects
    for name, values in zip(_KEYS, objects[:3], strict=True):
        _check_keys(name, values, _KEYS[name])
    method = _method(data)
    strategy, exit_layer = generation.get("generation_strategy"), generation.get("exit_layer")
    log = OlderLog(
        dataset=_dataset(data["dataset"]),
        method=method,
        # The flags of the other methods stand there too, with their defaults.
        prune_n=data.get("prune_n") if method == "angular" else None,
        dropout_threshold=data.get("dropout_threshold") if method == "random" else None,
        metrics=_renamed(metrics, strategy),
        model=arguments.get("model"),
        generation_strategy=strategy,
        exit_layer=exit_layer if exit_layer != -1 else None,
        num_speculations=generation.get("num_speculations")
        if strategy == "self_speculative"
        else None,
        num_samples=_finite(data.get("num_samples")),
    )
    check_kinds(log)
    return log


def _check_keys(name: str, values: dict[str, Any], known: Iterable[str]) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UnknownLogError(f"has {', '.join(map(repr, unknown))} in its {name}")


def _method(data: dict[str, Any]) -> str:
    """How layers were pruned. Logs from before pruning have none of its flags: whole models."""
    method = data.get("prune_method")
    if "prune_method" not in data and not {"prune_n", "dropout_threshold"} & set(data):
        return "base"
    if "prune_method" in data and method is None:
        return "base"
    if method not in _METHODS:
        raise UnknownLogError(f"has the prune_method {method!r}, not one of {', '.join(_METHODS)}")
    return method


def _objects(text: str) -> list[dict[str, Any]]:
    decoder, objects, place = json.JSONDecoder(object_pairs_hook=unique), [], 0
    while place < len(text.rstrip()):
        place += len(text[place:]) - len(text[place:].lstrip())
        try:
            found, place = decoder.raw_decode(text, place)
        except DuplicateKeyError:
            raise
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is cut off, or no JSON ({error})") from error
        if not isinstance(found, dict):
            raise ValueError("holds something that is no object")
        objects.append(found)
    return objects


def _printed_metrics(text: str) -> dict[str, Any]:
    for line in reversed(text.splitlines()):
        line = line.strip()
        if line.startswith("{") and line.endswith("}"):
            try:
                found = ast.literal_eval(_NOT_A_NUMBER.sub("None", line))
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
            if isinstance(found, dict) and "predicted_text" in found:
                return found
    raise ValueError("ends without printed metrics: the run was broken off, or the file cut")


def _dataset(name: Any) -> Any:
    return _RENAMED.get(name, name) if isinstance(name, str) else name


def _renamed(metrics: dict[str, Any], strategy: str | None = None) -> dict[str, Any]:
    """The metrics under the names of what they are: its exact match is a mean edit distance.

    Its acceptance of 0 or -1 in autoregressive decoding means that nothing was drafted.
    """
    _check_keys("metrics", metrics, ("predicted_text", *_MEANS))
    for name in metrics:
        known = _SCORES if name == "predicted_text" else ("mean",)
        if isinstance(metrics[name], dict):
            _check_keys(name, metrics[name], known)
    found = _finite(metrics)
    check_metrics(found)
    text = dict(found["predicted_text"] or {})
    text["edit_distance"] = text.pop("exact_match", None)
    if text["edit_distance"] is not None and 0 <= text["edit_distance"] <= 1:
        # A mean of distances that small and a share of exact matches look the same.
        raise UnknownLogError("has an exact_match that may be a share or an edit distance")
    acceptance = (found.get("acceptance_rate") or {}).get("mean")
    if strategy == "autoregressive" or (acceptance is not None and acceptance < 0):
        acceptance = None
    return found | {"predicted_text": text, "acceptance_rate": {"mean": acceptance}}


def _finite(value: Any) -> Any:
    """The value with None for what is not a number."""
    if isinstance(value, dict):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ValueError(f"has the metric {value!r}, which is no number")
    return None if isinstance(value, float) and not math.isfinite(value) else value
