"""Reads the logs of the older tool, LayerSkip with pruning.

It wrote `benchmark_<time>.json`, four JSON objects one after another. Its captured consoles,
`<data set>_results_base_0`, `..._angular_n2` or `..._random_t0.1`, end with a Python dict of
metrics.
"""

import ast
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from analysis.finished_runs import FinishedRun
from files.reading import LOG_BYTES, read_bounded, unique
from files.values import check_kinds
from runs.reader import check_metrics

_CONSOLE = re.compile(
    r"(?P<dataset>.+)_results_(?:base(?:_\d+)?|angular_n(?P<n>\d+)|random_t(?P<t>\d*\.?\d+))"
    r"(?:\.(?:txt|log|out))?"
)
_RENAMED = {"xsum": "xsum_summarization"}
_METHODS = ("base", "angular", "random")
# The keys of the older tool's objects. A fork that adds a key may have changed the others' meaning.
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
_METRICS = {
    "predicted_text": {"rouge-l", "rouge-1", "rouge-2", "rouge-3", "bleu_score", "exact_match"},
    "acceptance_rate": {"mean"},
    "total_time": {"mean"},
    "time_per_token": {"mean"},
    "tokens_per_second": {"mean"},
}
_NOT_A_NUMBER = re.compile(r"(?<=[\s:,\[{])[-+]?(?:nan|inf)(?=[\s,\]}])")


class UnknownLogError(ValueError):
    """A log that neither this project nor the older tool wrote."""


def is_console(path: Path) -> bool:
    """Return whether the file has the name of a captured console."""
    return _CONSOLE.fullmatch(path.name) is not None


def read_console(path: Path) -> FinishedRun:
    """Return the run of a captured console, whose name holds the only flags that are known.

    Raise ValueError if the console ends without metrics.
    """
    name = _CONSOLE.fullmatch(path.name)
    assert name
    metrics = _printed_metrics(read_bounded(path, LOG_BYTES).decode(errors="replace"))
    method = "angular" if name["n"] else "random" if name["t"] else "base"
    return FinishedRun(
        path=path,
        dataset=_RENAMED.get(name["dataset"], name["dataset"]),
        method=method,
        param=_param(method, int(name["n"] or 0), float(name["t"] or 0)),
        metrics=_renamed(metrics),
    )


def read_objects(text: str, path: Path) -> FinishedRun:
    """Return the run in a file of four JSON objects. Raise ValueError for any other text."""
    objects = _objects(text)
    if len(objects) != 4 or "predicted_text" not in objects[3] or "dataset" not in objects[1]:
        raise UnknownLogError("is neither one object nor the four of an older log")
    arguments, data, generation, metrics = objects
    for name, values in zip(_KEYS, objects[:3], strict=True):
        _check_keys(name, values, _KEYS[name])
    method, dataset = _method(data), data["dataset"]
    strategy, exit_layer = generation.get("generation_strategy"), generation.get("exit_layer")
    drafts = generation.get("num_speculations") if strategy == "self_speculative" else None
    run = FinishedRun(
        path=path,
        dataset=_RENAMED.get(dataset, dataset) if isinstance(dataset, str) else dataset,
        method=method,
        param=_param(method, data.get("prune_n"), data.get("dropout_threshold")),
        strategy=strategy,
        exit_layer=exit_layer if exit_layer != -1 else None,
        num_speculations=drafts,
        metrics=_renamed(metrics, strategy),
        model=arguments.get("model"),
        num_samples=_finite(data.get("num_samples")),
    )
    check_kinds(run)
    return run


def _param(method: str, prune_n: Any, dropout_threshold: Any) -> str:
    """Return the plan's parameter; a log holds the flags of the other methods too."""
    if method == "base":
        return ""
    return f"n={_finite(prune_n)}" if method == "angular" else f"p={_finite(dropout_threshold)}"


def _check_keys(name: str, values: dict[str, Any], known: Iterable[str]) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UnknownLogError(f"has {', '.join(map(repr, unknown))} in its {name}")


def _method(data: dict[str, Any]) -> str:
    """Return how layers were pruned: base in logs from before pruning, which lack its flags."""
    method = data.get("prune_method")
    flags = {"prune_method", "prune_n", "dropout_threshold"} & data.keys()
    if method is None and (not flags or "prune_method" in flags):
        return "base"
    if method not in _METHODS:
        raise UnknownLogError(f"has the prune_method {method!r}, not one of {', '.join(_METHODS)}")
    return method


def _objects(text: str) -> list[dict[str, Any]]:
    decoder, objects, place = json.JSONDecoder(object_pairs_hook=unique), [], 0
    text = text.rstrip()
    while place < len(text):
        place = len(text) - len(text[place:].lstrip())
        try:
            found, place = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError) as error:
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


def _renamed(metrics: dict[str, Any], strategy: str | None = None) -> dict[str, Any]:
    """Return the metrics under this tool's names.

    What the older tool calls exact match is a mean edit distance. An acceptance of 0 or -1 in
    autoregressive decoding means that nothing was drafted.
    """
    _check_keys("metrics", metrics, _METRICS)
    for name, values in metrics.items():
        if isinstance(values, dict):
            _check_keys(name, values, _METRICS[name])
    found = _finite(metrics)
    check_metrics(found)
    text = dict(found["predicted_text"] or {})
    text["edit_distance"] = text.pop("exact_match", None)
    if text["edit_distance"] is not None and 0 <= text["edit_distance"] <= 1:
        # A small mean distance looks like a share of exact matches.
        raise UnknownLogError("has an exact_match that may be a share or an edit distance")
    acceptance = (found.get("acceptance_rate") or {}).get("mean")
    if strategy == "autoregressive" or (acceptance is not None and acceptance < 0):
        acceptance = None
    return found | {"predicted_text": text, "acceptance_rate": {"mean": acceptance}}


def _finite(value: Any) -> Any:
    """Return the value with None for NaN and infinity. Raise ValueError for another kind."""
    if isinstance(value, dict):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ValueError(f"has the metric {value!r}, which is no number")
    return None if isinstance(value, float) and not math.isfinite(value) else value
