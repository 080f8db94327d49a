"""The criteria: each returns the plan that its flags ask for, from shared measurements.

Each raises `UsageError` for a number of layers that cannot be removed, before it measures.
"""

import math
import random
from collections.abc import Iterable
from typing import Any

from arguments.pruning import PruneArguments
from command_line.errors import UsageError
from pruning.measurements import Measurements
from pruning.plan import PrunePlan, check_prune_layers, check_prune_n


def base(arguments: PruneArguments, measured: Measurements) -> PrunePlan:
    """Remove nothing."""
    return PrunePlan("base", measured.layers, tuple(range(measured.layers)))


def angular(arguments: PruneArguments, measured: Measurements) -> PrunePlan:
    """Remove the block across which the states turn least (Gromov et al. 2024, arXiv 2403.17887).

    l + n <= L - 1: the last layer always stays.
    """
    count = check_prune_n("prune_n", arguments.prune_n, measured.layers)
    distances = measured.states.distances
    candidates = distances[: measured.layers - count, count]
    if not candidates.isfinite().all():
        raise _not_finite("angular", _STATES)
    first = int(candidates.argmin())
    scores = {
        "first_removed_layer": first,
        "distance": float(candidates[first]),
        "distances": [[d if math.isfinite(d) else None for d in row] for row in distances.tolist()],
    }
    return _measured("angular", range(first, first + count), measured, scores)


def random_layers(arguments: PruneArguments, measured: Measurements) -> PrunePlan:
    """Drop each layer independently, or exactly `--prune_n` layers.

    LayerDrop at inference (Fan et al. 2020, arXiv 1909.11556); a fixed number is the control for
    criteria that remove as many.
    """
    layers, threshold = measured.layers, arguments.dropout_threshold
    draws, seed = random.Random(arguments.prune_seed), arguments.prune_seed
    if threshold is None:
        count = check_prune_n("prune_n", arguments.prune_n, layers)
        removed = draws.sample(range(layers), count)
        return PrunePlan("random", layers, _without(removed, layers), count, prune_seed=seed)
    kept = tuple(index for index in range(layers) if draws.random() >= threshold)
    if not kept:
        raise UsageError(
            f"--dropout_threshold {threshold}: with --prune_seed {seed} it keeps no layer of "
            f"{layers}; lower it or change the seed"
        )
    return PrunePlan("random", layers, kept, dropout_threshold=threshold, prune_seed=seed)


def last(arguments: PruneArguments, measured: Measurements) -> PrunePlan:
    """Remove the deepest layers but the last (Lu et al. 2024, arXiv 2411.15558)."""
    layers = measured.layers
    count = check_prune_n("prune_n", arguments.prune_n, layers)
    removed = range(layers - 1 - count, layers - 1)
    return PrunePlan("last", layers, _without(removed, layers), prune_n=count)


def named(arguments: PruneArguments, measured: Measurements) -> PrunePlan:
    """Remove the layers that `--prune_layers` names."""
    layers, text = measured.layers, arguments.prune_layers
    assert text is not None
    removed = check_prune_layers(text, layers)
    return PrunePlan("layers", layers, _without(removed, layers))


def block_influence(arguments: PruneArguments, measured: Measurements) -> PrunePlan:
    """Remove the layers that turn their input least (ShortGPT, Men et al. 2024, arXiv 2403.03853).

    Every layer is a candidate, the last one too.
    """
    count = check_prune_n("prune_n", arguments.prune_n, measured.layers)
    scores = _ranked("block_influence", measured.states.influences.tolist(), _STATES)
    return _measured("block_influence", scores["order"][:count], measured, scores)


def perplexity(arguments: PruneArguments, measured: Measurements) -> PrunePlan:
    """Remove one layer after another, each time the one without which perplexity is least.

    SLEB (Song et al. 2024, arXiv 2402.09025); every layer is a candidate.
    """
    count = check_prune_n("prune_n", arguments.prune_n, measured.layers)
    scores = measured.removals(count)
    if len(scores["steps"]) < count:
        raise _not_finite("perplexity", "perplexities of the calibration prompts")
    removed = [step["layer"] for step in scores["steps"]]
    return _measured("perplexity", removed, measured, scores)


def taylor(arguments: PruneArguments, measured: Measurements) -> PrunePlan:
    """Remove the layers whose weights the loss depends on least, to first order.

    Shortened LLaMA (Kim et al. 2024, arXiv 2402.02834), without the paper's exemption of the first
    four and the last two layers (Taylor+): every layer is a candidate.
    """
    count = check_prune_n("prune_n", arguments.prune_n, measured.layers)
    scores = _ranked("taylor", measured.taylor, "gradients of the calibration prompts")
    return _measured("taylor", scores["order"][:count], measured, scores)


def magnitude(arguments: PruneArguments, measured: Measurements) -> PrunePlan:
    """Remove the layers with the smallest weights (Kim et al. 2024); every layer is a candidate."""
    count, layers = check_prune_n("prune_n", arguments.prune_n, measured.layers), measured.layers
    scores = _ranked("magnitude", measured.magnitudes, "weights")
    kept = _without(scores["order"][:count], layers)
    return PrunePlan("magnitude", layers, kept, prune_n=count, scores=scores)


_STATES = "hidden states of the calibration prompts"


def _ranked(method: str, scores: list[float], measure: str) -> dict[str, Any]:
    """Return the score of each layer, and the layers by their scores, the least first."""
    if not all(map(math.isfinite, scores)):
        raise _not_finite(method, measure)
    return {"layers": scores, "order": sorted(range(len(scores)), key=scores.__getitem__)}


def _measured(
    method: str, removed: Iterable[int], measured: Measurements, scores: dict[str, Any]
) -> PrunePlan:
    """Return the plan of a criterion that read the calibration texts."""
    kept = _without(removed, measured.layers)
    count = measured.layers - len(kept)
    return PrunePlan(
        method, measured.layers, kept, prune_n=count, scores=scores, calibration=measured.facts
    )


def _not_finite(method: str, measure: str) -> UsageError:
    return UsageError(f"--prune_method {method}: {measure} are not finite; try another --dtype")


def _without(removed: Iterable[int], layers: int) -> tuple[int, ...]:
    return tuple(sorted(set(range(layers)) - set(removed)))
