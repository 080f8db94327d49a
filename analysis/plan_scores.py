"""The scores by which criteria decided plans, as logs hold them."""

from typing import Any

import numpy

LAYER_SCORES = ("block_influence", "taylor", "magnitude")  # a score of each layer


def check_scores(plan: dict[str, Any]) -> None:
    """Raise an error for scores that plots of the plan's criterion cannot show.

    Criteria without measurements have none, and any criterion may leave them out but `angular`.
    """
    method, scores, layers = plan["method"], plan["scores"], plan["original_layers"]
    if method == "angular":
        _check_distances(plan, scores, layers)
    elif scores is None:
        return
    elif method in LAYER_SCORES:
        _check_layers(method, scores, layers)
    elif method == "perplexity":
        _check_steps(scores, layers)


def _check_distances(plan: dict[str, Any], scores: dict[str, Any], layers: int) -> None:
    shape = numpy.array(scores["distances"], dtype=float).shape
    counts = (scores["first_removed_layer"], plan["prune_n"])
    if len(shape) != 2 or shape[1] <= layers or not all(isinstance(n, int) for n in counts):
        raise ValueError("has other scores than a plan by angular distance")


def _check_layers(method: str, scores: dict[str, Any], layers: int) -> None:
    values, order = scores["layers"], scores["order"]
    known = isinstance(values, list) and isinstance(order, list) and len(values) == layers
    if not known or not all(map(_is_number, values)) or not _are_layers(order, layers):
        raise ValueError(f"has other scores than a plan by {method}")


def _check_steps(scores: dict[str, Any], layers: int) -> None:
    steps = scores["steps"]
    known = isinstance(steps, list) and _is_number(scores["perplexity"])
    if not known or not _are_layers([step["layer"] for step in steps], layers):
        raise ValueError("has other scores than a plan by perplexity")
    if not all(_is_number(step["perplexity"]) for step in steps):
        raise ValueError("has other scores than a plan by perplexity")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _are_layers(values: list[Any], layers: int) -> bool:
    """Return whether these are layers of the model, each at most once."""
    whole = all(isinstance(value, int) and 0 <= value < layers for value in values)
    return whole and len(set(values)) == len(values)
