"""CRITERIA decide which layers stay; PruneModel removes the others."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from arguments.pruning import PLAN_FILE, PruneArguments
from command_line.errors import UsageError, reject
from files.reading import read_settings
from files.writing import whole_folder
from models.saved import write_checkpoint
from pruning import criteria
from pruning.measurements import Measurements
from pruning.plan import PrunePlan, spans
from self_speculation.model_protocol import HasParameters, decoder_of
from self_speculation.offloading import forget_offloaded


class PruneModel:
    """Removes the layers that a plan does not keep.

    The pruned model has no passes, memory or cache for them, and saves and loads as an ordinary
    checkpoint. Raises `UsageError` for the plan of a model with another number of layers.
    """

    def __init__(self, model: PreTrainedModel, plan: PrunePlan) -> None:
        layers, planned = model.config.num_hidden_layers, plan.original_layers
        if layers != planned:
            raise UsageError(f"a plan for {planned} layers cannot prune a model of {layers}")
        self.model = model
        self.plan = plan
        self._decoder = decoder_of(model)
        self.parameters_before = count_parameters(model)
        self.parameters_after = self.parameters_before
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
        self._hold([layers[index] for index in plan.kept_layers], plan.kept_layers)
        self.parameters_after = count_parameters(self.model)
        assert self.parameters_before - self.parameters_after == removed
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
        removed = self.parameters_before - self.parameters_after
        return (
            f"{plan.approach}: removed {len(plan.removed_layers)} of {plan.original_layers} layers "
            f"{spans(plan.removed_layers)}; parameters {self.parameters_before:,} - {removed:,} = "
            f"{self.parameters_after:,}"
        )

    def save(self, tokenizer: Any, folder: str, fingerprint: str | None = None) -> None:
        """Write model, tokenizer and plan as an ordinary checkpoint, whole or not at all.

        The plan's file also holds the fingerprint of the unpruned model. The folder appears only
        after its files were read back and compared with the model. Raises `UsageError` on failure.
        """
        target = Path(folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_folder(target) as partial:
                origin = self.plan.to_dict() | {"model_fingerprint": fingerprint}
                write_checkpoint(self.model, tokenizer, partial, {PLAN_FILE: origin})
        except (OSError, SafetensorError) as error:
            reject("save_pruned", folder, f"cannot be written ({error})")


def is_saved(folder: str, plan: PrunePlan, fingerprint: str) -> bool:
    """Whether the folder holds this model pruned by this plan; raise `UsageError` for another."""
    if not Path(folder).exists():
        return False
    try:
        found = read_settings(Path(folder) / PLAN_FILE)
        kept, origin = tuple(found["kept_layers"]), found["model_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        kept, origin = None, None
    if (kept, origin) != (plan.kept_layers, fingerprint):
        reject("save_pruned", folder, "exists already; name a new folder")
    return True


def make_plan(arguments: PruneArguments, measured: Measurements) -> PrunePlan:
    """Return the plan of `--prune_method`, the same in all processes.

    Raises `UsageError` for a number of layers that cannot be removed.
    """
    plan, ranks = CRITERIA[arguments.prune_method](arguments, measured), measured.ranks
    # Machines that differ might measure differently.
    return plan if ranks.count == 1 else PrunePlan.from_dict(ranks.first(plan.to_dict()))


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
