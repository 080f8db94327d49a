"""Patches: least-squares maps that stand for removed layers (ReplaceMe, arXiv 2505.02819).

Each cut, a run of removed layers between kept layers, gets a map from states before it to states
after it. A `linear` map takes the states themselves; a `folded` map takes the output of the MLP
before the cut, whose weights can contain it.

Shapes: T tokens, D hidden.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from command_line.errors import UsageError, reject
from files.hashes import tokens_hash
from models.patches import AFTER, BEFORE, can_fold, with_folded_map, with_map
from processes.ranks import ALONE, Ranks
from pruning.plan import PlanKey, PrunePlan, cuts
from self_speculation.model_protocol import Llama, decoder_of
from self_speculation.uncached_llama import UncachedLlama

# Added to the diagonal of a Gram matrix, relative to its mean, so that it can be inverted.
RIDGE = 1e-8


@dataclass(frozen=True, eq=False)
class Patch:
    """The maps of a plan's cuts, front to back; frozen data, which `patched_layers` obeys.

    `maps` hold matrices, (D, D), on the host, by which rows of states are multiplied from the
    right: after = before @ map for `linear`; after = before + mlp @ (map - 1) for `folded`, where
    mlp is the MLP's output that `before` contains.
    """

    kind: str
    maps: tuple[Tensor, ...]

    def report(self) -> str:
        """Return the number and size of the maps in words."""
        count, (rows, columns) = len(self.maps), self.maps[0].shape
        maps = "1 map" if count == 1 else f"{count} maps"
        into = ", folded into the MLPs before them" if self.kind == "folded" else ""
        return f"patched: {maps} of {rows} x {columns}{into}"


Patches = dict[PlanKey, Patch]


def with_patch(plan: PrunePlan, kind: str, prompts: Sequence[Tensor], width: int) -> PrunePlan:
    """Return the plan, patched by a map of states of this width, to be fitted to the prompts.

    Raises `UsageError` if the plan has no cut that such a map can replace, or the prompts have too
    few tokens to solve for it.
    """
    found = cuts(plan.kept_layers, plan.original_layers)
    if not found:
        reject("prune_patch", kind, f"{plan.approach} removes no layer that a patch could replace")
    tokens = sum(prompt.numel() for prompt in prompts)
    if tokens < width:
        allowed = f"have {tokens} tokens, and a patch needs at least {width}, the width of a state"
        reject("calibration_samples", len(prompts), f"they {allowed}")
    facts = {"prompts": len(prompts), "tokens": tokens, "fingerprint": texts_fingerprint(prompts)}
    patched = dataclasses.replace(plan, patch=kind, calibration=(plan.calibration or {}) | facts)
    check_foldable(patched)
    return patched


def check_foldable(plan: PrunePlan) -> None:
    """Refuse a folded patch of a plan without layer 0."""
    if plan.patch == "folded" and plan.kept_layers[0] != 0:
        allowed = f"{plan.approach} lacks layer 0, and no MLP before it could take in the map"
        reject("prune_patch", "folded", f"{allowed}; --prune_patch linear works")


def texts_fingerprint(prompts: Sequence[Tensor]) -> str:
    """Return a fingerprint of token ids, (1, T) each."""
    return tokens_hash([prompt.flatten().tolist() for prompt in prompts])


def patched_layers(
    layers: Sequence[nn.Module], plan: PrunePlan, patch: Patch | None
) -> list[nn.Module]:
    """Return the layers that the plan keeps; copies hold the patch, and `layers` stay as they are.

    A copy shares every weight with its original, except the weight of the map. All other layers
    are the same objects.
    """
    assert (plan.patch is None) == (patch is None), "a patched plan comes with its patch"
    kept = {index: layers[index] for index in plan.kept_layers}
    if patch:
        found = cuts(plan.kept_layers, plan.original_layers)
        for cut, matrix_DD in zip(found, patch.maps, strict=True):
            if patch.kind == "folded":
                kept[cut.start - 1] = with_folded_map(kept[cut.start - 1], matrix_DD)
            elif cut.stop in kept:
                kept[cut.stop] = with_map(kept[cut.stop], BEFORE, matrix_DD.T)
            else:  # The last layer is removed.
                kept[cut.start - 1] = with_map(kept[cut.start - 1], AFTER, matrix_DD.T)
    return list(kept.values())


def fit_patch(
    model: Llama,
    kept_layers: tuple[int, ...],
    kind: str,
    prompts: Sequence[Tensor],
    ranks: Ranks = ALONE,
) -> Patch:
    """Return the patch of the layers that the model has now, fitted to all tokens of the prompts.

    Fits cut by cut, front to back: from states of the pruned model with its patches so far, before
    the cut, to states of the whole model after the cut. Later maps thus correct errors of earlier
    ones. Each layer runs once over the prompts in both models. Processes share the prompts and get
    the same maps. Raises `UsageError` for states that are not finite.
    """
    layers = list(decoder_of(model).layers)
    fit = _Fit(model, kind, ranks.share(prompts), ranks)
    maps, done = [], 0
    for cut in cuts(kept_layers, len(layers)):
        fit.run_kept(layers[done : cut.start])
        fit.run_removed(layers[cut.start : cut.stop])
        maps.append(fit.solve())
        done = cut.stop
    # A layer rounds its map to its own dtype.
    dtype = torch.promote_types(_embedded(model).dtype, torch.float32)
    return Patch(kind, tuple(matrix_DD.to(dtype) for matrix_DD in maps))


class _Fit:
    """States of the prompts, (1, T, D) on the host, in the whole model and in the patched model.

    The states in both models are equal until the first cut.
    """

    def __init__(self, model: Llama, kind: str, prompts: Sequence[Tensor], ranks: Ranks) -> None:
        self._llama = llama = UncachedLlama(model)
        self._kind, self._ranks, self._width = kind, ranks, state_width(model)
        with torch.no_grad():
            self._whole = [llama.embed(prompt.to(llama.device)).cpu() for prompt in prompts]
        self._patched = self._whole
        self._mlp: list[Tensor] = []

    def run_kept(self, layers: list[nn.Module]) -> None:
        """Run both models' states through layers that stay."""
        if self._kind == "folded":
            self._check_foldable(layers[-1])
        noted: list[Tensor] = []
        hook = _noting(layers[-1], noted) if self._kind == "folded" else None
        try:
            patched = self._through(self._patched, layers)
        finally:
            if hook:
                hook.remove()
        is_first = self._whole is self._patched
        self._whole = patched if is_first else self._through(self._whole, layers)
        self._patched, self._mlp = patched, noted

    def run_removed(self, layers: list[nn.Module]) -> None:
        """Run the whole model's states through the layers of a cut."""
        self._whole = self._through(self._whole, layers)

    def solve(self) -> Tensor:
        """Return the map, (D, D) in float64, and apply it to the patched model's states.

        Least squares of what the removed layers added, so that the ridge favours adding nothing.
        """
        mapped = self._mlp if self._kind == "folded" else self._patched
        sums = torch.zeros(2, self._width, self._width, dtype=torch.float64)
        for source, before, after in zip(mapped, self._patched, self._whole, strict=True):
            self._ranks.check()
            source_TD, added_TD = source[0].double(), (after[0].double() - before[0].double())
            sums += torch.stack([source_TD.T @ source_TD, source_TD.T @ added_TD])
        total = self._ranks.total(sums)
        added_DD = self._ranks.spread(None if total is None else _solved(*total))
        if not added_DD.isfinite().all():
            allowed = "states of the calibration texts are not finite; try another --dtype"
            raise UsageError(f"--prune_patch {self._kind}: {allowed}")
        self._patched = [
            before + (source.double() @ added_DD).to(before.dtype)
            for source, before in zip(mapped, self._patched, strict=True)
        ]
        return added_DD + torch.eye(len(added_DD), dtype=added_DD.dtype)

    @torch.no_grad()
    def _through(self, states: list[Tensor], layers: list[nn.Module]) -> list[Tensor]:
        found = []
        for states_1TD in states:
            self._ranks.check()
            found.append(self._llama.run(states_1TD.to(self._llama.device), layers).cpu())
        return found

    def _check_foldable(self, layer: nn.Module) -> None:
        if not can_fold(layer):
            allowed = "the model stays quantised in memory; --prune_patch linear works"
            reject("prune_patch", self._kind, allowed)


def state_width(model: Llama) -> int:
    """Return the number of values of a state, D."""
    return _embedded(model).shape[1]


def _embedded(model: Llama) -> Tensor:
    embeddings: Any = model.get_input_embeddings()
    return embeddings.weight


def _noting(layer: Any, noted: list[Tensor]) -> torch.utils.hooks.RemovableHandle:
    """Note the outputs of a layer's MLP on the host."""

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        noted.append(output.cpu())

    return layer.mlp.register_forward_hook(note)


def _solved(gram_DD: Tensor, cross_DD: Tensor) -> Tensor:
    """Solve the normal equations; NaN for sums that are not finite."""
    if not (gram_DD.isfinite().all() and cross_DD.isfinite().all()):
        return torch.full_like(cross_DD, torch.nan)
    # All inputs may be 0: then so is the solution.
    ridge = max(RIDGE * gram_DD.diagonal().mean().item(), torch.finfo(torch.float64).tiny)
    gram_DD.diagonal().add_(ridge)
    return torch.cholesky_solve(cross_DD, torch.linalg.cholesky(gram_DD))
