"""CRITERIA decide which layers stay; PruneModel removes the others."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from arguments.pruning import PLAN_FILE, PruneArguments
from command_line.errors import UsageError, reject
from command_line.messages import warn
from files.reading import read_settings
from files.writing import whole_folder
from models.patches import PATCH_WEIGHTS, patch_weights
from models.saved import write_checkpoint
from pruning import criteria
from pruning.measurements import Measurements
from pruning.patch import Patch, patched_layers, state_width, with_patch
from pruning.plan import PrunePlan, drafting_plan, spans
from self_speculation.model_protocol import HasParameters, Llama, decoder_of
from self_speculation.offloading import forget_offloaded


class PruneModel:
    """Removes the layers that a plan does not keep.

    The pruned model has no passes, memory or cache for them, and saves and loads as an ordinary
    checkpoint. A patch stands for the removed layers in copies of the layers beside them. Raises
    `UsageError` for the plan of a model with another number of layers.
    """

    def __init__(self, model: PreTrainedModel, plan: PrunePlan, patch: Patch | None = None) -> None:
        layers, planned = model.config.num_hidden_layers, plan.original_layers
        if layers != planned:
            raise UsageError(f"a plan for {planned} layers cannot prune a model of {layers}")
        self.model = model
        self.plan = plan
        self.patch = patch
        self._decoder = decoder_of(model)
        self.parameters_before = count_parameters(model)
        self.parameters_after = self.parameters_before
        self.draft_plan: PrunePlan | None = None
        self.draft_layers: tuple[nn.Module, ...] | None = None
        self.draft_vocabulary: tuple[int, ...] | None = None
        self._removed_parameters = 0
        self._unpruned: list[nn.Module] | None = None
        self._is_for_a_while = False

    def prune(self, releases: bool = True) -> None:
        """Remove the layers, renumber the kept layers and free the memory.

        Without `releases`, `unpruned` can yield the removed layers until `release` is called.
        """
        self._unpruned = list(self._decoder.layers)
        self._remove()
        if releases:
            self.release()

    def release(self) -> None:
        """Free the memory of removed layers, unless the model is pruned for a while only."""
        if self._unpruned is None or self._is_for_a_while:
            return
        forget_offloaded(self._unpruned[index] for index in self.plan.removed_layers)
        self._unpruned = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def unpruned(self) -> Iterator[list[nn.Module]]:
        """Yield the layers of the unpruned model, on its device; they must not be released yet."""
        assert self._unpruned is not None
        is_away = self._is_for_a_while and self.frees_memory
        away = [self._unpruned[index] for index in self.plan.removed_layers if is_away]
        try:
            for layer in away:
                layer.to(self.model.device)
            yield self._unpruned
        finally:
            for layer in away:
                layer.to("cpu")

    def _remove(self) -> None:
        layers, plan = self._decoder.layers, self.plan
        removed = sum(count_parameters(layers[index]) for index in plan.removed_layers)
        self._hold(patched_layers([*layers], plan, self.patch), plan.kept_layers)
        self._removed_parameters, self.parameters_after = removed, count_parameters(self.model)
        assert self.patch or self.parameters_before - self.parameters_after == removed
        del layers
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def for_a_while(self) -> Iterator[None]:
        """Prune the model for the block; move removed layers to the host if `frees_memory`."""
        layers, types, device = list(self._decoder.layers), self._layer_types, self.model.device
        removed = self.plan.removed_layers if self.frees_memory else ()
        self._unpruned, self._is_for_a_while = layers, True
        try:
            for index in removed:
                layers[index].to("cpu")
            self._remove()
            yield
        finally:
            self._unpruned, self._is_for_a_while = None, False
            for index in removed:
                layers[index].to(device)
            self._hold(layers, range(len(layers)), types)

    @property
    def frees_memory(self) -> bool:
        """Whether `for_a_while` makes room on the device; layers placed by accelerate stay."""
        return self.model.device.type == "cuda" and not hasattr(self.model, "hf_device_map")

    def _hold(
        self, layers: list[nn.Module], indices: Iterable[int], types: list[str] | None = None
    ) -> None:
        """Set the model's layers; `indices` are their places in `types` (default: the model's)."""
        config: Any = self.model.config
        types = types or self._layer_types
        self._decoder.layers = nn.ModuleList(layers)
        for index, layer in enumerate(layers):
            attention: Any = layer.self_attn
            attention.layer_idx = index
        config.num_hidden_layers = len(layers)
        if types:
            config.layer_types = [types[index] for index in indices]

    @property
    def _layer_types(self) -> list[str] | None:
        return getattr(self.model.config, "layer_types", None)

    def report(self) -> str:
        """Return a line about the removed layers: original indices and parameters."""
        plan = self.plan
        if not plan.removed_layers:
            return f"{plan.approach}: all {plan.original_layers} layers kept"
        before, removed = self.parameters_before, self._removed_parameters
        added = self.parameters_after - (before - removed)
        line = (
            f"{plan.approach}: removed {len(plan.removed_layers)} of {plan.original_layers} layers "
            f"{spans(plan.removed_layers)}; parameters {before:,} - {removed:,} "
            + (f"+ {added:,} " if added else "")
            + f"= {self.parameters_after:,}"
        )
        return f"{line}; {self.patch.report()}" if self.patch else line

    def draft_with(self, draft_plan: PrunePlan | None, patch: Patch | None = None) -> None:
        """Let the layers draft that both plans keep; None: no plan decides.

        The model is pruned, and its removed layers are not released yet. A patch stands for all
        layers of the unpruned model that do not draft; `drafting_plan` is the plan that it fits.
        """
        self.draft_plan, self.draft_layers = draft_plan, None
        if draft_plan is None:
            return
        assert self._unpruned is not None
        assert (draft_plan.patch is None) == (patch is None), "a patched drafter needs its patch"
        drafting = drafting_plan(self.plan, draft_plan)
        if patch:
            self.draft_layers = tuple(patched_layers(self._unpruned, drafting, patch))
            return
        held = dict(zip(self.plan.kept_layers, self._decoder.layers, strict=True))
        self.draft_layers = tuple(held[index] for index in drafting.kept_layers)

    def draft_report(self) -> str:
        """Return a line about the layers that draft: original indices."""
        assert self.draft_plan is not None
        layers = drafting_plan(self.plan, self.draft_plan).kept_layers
        return (
            f"drafter {self.draft_plan.approach}: {len(layers)} of {len(self.plan.kept_layers)} "
            f"layers draft {spans(layers)}"
        )

    def save(self, tokenizer: Any, folder: str, fingerprint: str | None = None) -> None:
        """Write model, tokenizer and plan as an ordinary checkpoint, whole or not at all.

        The plan's file also holds the fingerprint of the unpruned model, and the names of maps that
        only this project reads. The folder appears only after its files were read back and compared
        with the model. Raises `UsageError` on failure.
        """
        target, maps = Path(folder), patch_weights(self.model)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_folder(target) as partial:
                origin = self.plan.to_dict() | {"model_fingerprint": fingerprint}
                if maps:
                    origin[PATCH_WEIGHTS] = maps
                write_checkpoint(self.model, tokenizer, partial, {PLAN_FILE: origin})
        except (OSError, SafetensorError) as error:
            reject("save_pruned", folder, f"cannot be written ({error})")
        if maps:
            others = "this project reads; plain transformers would leave it out without an error"
            warn(f"--save_pruned {folder}: holds a linear patch, which {others}")


def draft_bytes_ratio(
    model: Llama, layers: Iterable[nn.Module], vocabulary: Sized | None = None
) -> float:
    """Return the bytes that a draft step reads over those of a full step: layers, norm and head.

    `vocabulary` are the only tokens whose rows of the head a draft reads.
    """
    decoder = decoder_of(model)
    norm, head = weight_bytes(decoder.norm), weight_bytes(model.lm_head)
    share = 1.0 if vocabulary is None else len(vocabulary) / model.lm_head.out_features
    draft, full = (weight_bytes(nn.ModuleList(some)) for some in (layers, decoder.layers))
    return (draft + norm + share * head) / (full + norm + head)


def is_saved(folder: str, plan: PrunePlan, fingerprint: str) -> bool:
    """Whether the folder holds this model pruned by this plan; raise `UsageError` for another."""
    if not Path(folder).exists():
        return False
    try:
        found = read_settings(Path(folder) / PLAN_FILE)
        key, origin = PrunePlan.from_dict(found).key, found["model_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        key, origin = None, None
    if (key, origin) != (plan.key, fingerprint):
        reject("save_pruned", folder, "exists already; name a new folder")
    return True


def make_plan(arguments: PruneArguments, measured: Measurements) -> PrunePlan:
    """Return the plan of `--prune_method`, the same in all processes.

    Raises `UsageError` for a number of layers that cannot be removed.
    """
    plan, ranks = CRITERIA[arguments.prune_method](arguments, measured), measured.ranks
    if ranks.count > 1:
        # Machines that differ might measure differently.
        plan = PrunePlan.from_dict(ranks.first(plan.to_dict()))
    if arguments.prune_patch == "none":
        return plan
    width = state_width(measured.model)
    return with_patch(plan, arguments.prune_patch, measured.prompts, width)


def count_parameters(module: HasParameters) -> int:
    """Return the number of parameters; a tensor shared between modules counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def weight_bytes(module: HasParameters) -> int:
    """Return the bytes of all parameters; a tensor shared between modules counts once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


CRITERIA: dict[str, Callable[[PruneArguments, Measurements], PrunePlan]] = {
    "base": criteria.base,
    "angular": criteria.angular,
    "random": criteria.random_layers,
    "last": criteria.last,
    "layers": criteria.named,
    "block_influence": criteria.block_influence,
    "perplexity": criteria.perplexity,
    "taylor": criteria.taylor,
    "magnitude": criteria.magnitude,
}
