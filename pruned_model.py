"""PrunePlan decides which layers stay; PruneModel removes the others."""

import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from arguments.pruning import PLAN_FILE, PruneArguments
from command_line.errors import UsageError, reject
from files.reading import read_settings
from files.writing import whole_folder
from models.saved import write_checkpoint
from processes.ranks import ALONE, Ranks
from self_speculation.model_protocol import HasParameters, Llama, decoder_of
from self_speculation.offloading import forget_offloaded, input_device


@dataclass(frozen=True)
class PrunePlan:
    """The layers that stay in a model and the reason: frozen data for the log and for surgery.

    `kept_layers` are ascending 0-based indices of the original model. `scores` are the criterion's
    measurements; `calibration` counts the prompts and tokens that they were measured on.
    """

    method: str
    original_layers: int
    kept_layers: tuple[int, ...]
    prune_n: int | None = None
    dropout_threshold: float | None = None
    prune_seed: int | None = None
    scores: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None

    @property
    def removed_layers(self) -> tuple[int, ...]:
        return tuple(sorted(set(range(self.original_layers)) - set(self.kept_layers)))

    @property
    def approach(self) -> str:
        """A name of the plan: base, angular n=2, random p=0.1 seed=0."""
        if self.method == "angular":
            return f"angular n={self.prune_n}"
        if self.method == "random":
            return f"random p={self.dropout_threshold} seed={self.prune_seed}"
        return self.method

    def kept_exit_layer(self, exit_layer: int) -> int | None:
        """Return how many of the first `exit_layer` original layers are kept; None for -1.

        Raises `UsageError` if no layer is left to draft with, or none to verify with.
        """
        if exit_layer == -1:
            return None
        check_exit_layer("exit_layer", exit_layer, self.original_layers)
        count = sum(layer < exit_layer for layer in self.kept_layers)
        if count == 0:
            reject("exit_layer", exit_layer, f"{self.approach} keeps no layer below it")
        if count == len(self.kept_layers):
            reject("exit_layer", exit_layer, f"{self.approach} keeps no layer from it on")
        return count

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"removed_layers": self.removed_layers, "approach": self.approach}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PrunePlan":
        """Return the plan that `to_dict` wrote; raise ValueError for values that are no plan."""
        try:
            plan = cls(**{item.name: values[item.name] for item in fields(cls)})
            plan = replace(plan, kept_layers=tuple(plan.kept_layers))
            layers = [layer for layer in range(plan.original_layers) if layer in plan.kept_layers]
        except KeyError as error:
            raise ValueError(f"its plan lacks {error}") from error
        except TypeError as error:
            raise ValueError(f"its plan is none ({error})") from error
        if not layers or layers != list(plan.kept_layers):
            raise ValueError(f"its plan keeps layers {plan.kept_layers} of {plan.original_layers}")
        return plan


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
            f"{_spans(plan.removed_layers)}; parameters {self.parameters_before:,} - {removed:,} = "
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


def make_plan(
    arguments: PruneArguments,
    model: Llama,
    calibration: Callable[[], list[Tensor]],
    ranks: Ranks = ALONE,
) -> PrunePlan:
    """Return the plan of `--prune_method`; processes share the measurements and get the same plan.

    `calibration` returns token ids, (1, T) each; only a criterion that measures calls it. Raises
    `UsageError` for a number of layers that cannot be removed.
    """
    plan = CRITERIA[arguments.prune_method](arguments, model, calibration, ranks)
    # Machines that differ might measure differently.
    return plan if ranks.count == 1 else PrunePlan.from_dict(ranks.first(plan.to_dict()))


def check_exit_layer(flag: str, exit_layer: int, layers: int) -> None:
    """Refuse an exit layer that leaves no layer of the whole model to verify with."""
    if exit_layer >= layers:
        reject(flag, exit_layer, f"must be 1 to {layers - 1}")


def check_prune_n(flag: str, count: int | None, layers: int) -> int:
    """Return the number of layers to remove; refuse a number that the criterion cannot remove."""
    if count is None or not 1 <= count <= layers - 2:
        reject(flag, count, f"must be 1 to {layers - 2}; the model has {layers} layers")
    return count


def with_prune_n(plan: PrunePlan, count: int) -> PrunePlan:
    """Return the angular plan for another number of layers, from the same measurements."""
    assert plan.scores is not None  # an angular plan holds its distances
    rows = [[math.nan if d is None else d for d in row] for row in plan.scores["distances"]]
    check_prune_n("prune_n", count, plan.original_layers)
    return _least_distance(torch.tensor(rows, dtype=torch.float64), count, plan.calibration)


def angular_distances(model: Llama, prompts: list[Tensor], ranks: Ranks = ALONE) -> Tensor:
    """Return d(l, n) for all l and n, float64 (L + 1, L + 1); NaN for l + n > L.

    d(l, n) = arccos(cos_sim(x(l), x(l + n))) / pi, averaged over prompts, where x(l) is the
    residual stream before layer l at the prompt's last token, and x(L) that after the last layer
    (Gromov et al. 2024, arXiv 2403.17887). Each prompt costs one forward pass without the LM head.
    Each process measures its share of the prompts; they are added up in the order of the prompts.
    """
    layers = model.config.num_hidden_layers
    total = torch.zeros(layers + 1, layers + 1, dtype=torch.float64)
    measured = [_distances_of(model, prompt) for prompt in ranks.share(prompts)]
    shares = ranks.gather(torch.stack(measured) if measured else total[None][:0])
    for distances_of_prompt in ranks.in_order([share.unbind() for share in shares]):
        total += distances_of_prompt
    distances = torch.full_like(total, math.nan)
    for first in range(layers + 1):
        distances[first, : layers + 1 - first] = total[first, first:] / len(prompts)
    return distances


def count_parameters(module: HasParameters) -> int:
    """Return the number of parameters; a tensor shared between modules counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def weight_bytes(module: HasParameters) -> int:
    """Return the bytes of all parameters; a tensor shared between modules counts once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _distances_of(model: Llama, prompt: Tensor) -> Tensor:
    unit = nn.functional.normalize(_last_token_states(model, prompt), dim=-1)
    return (unit @ unit.T).clamp(-1, 1).arccos() / math.pi


@torch.inference_mode()
def _last_token_states(model: Llama, prompt: Tensor) -> Tensor:
    """Return x(0) .. x(L) at the last token, float64 (L + 1, D)."""
    states: list[Tensor] = []

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        states.append(inputs[0][0, -1].clone())  # a view would hold every position

    decoder = decoder_of(model)
    modules = [*decoder.layers, decoder.norm]
    hooks = [module.register_forward_pre_hook(keep_input) for module in modules]
    try:
        decoder(input_ids=prompt.to(input_device(model)), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([state.cpu().double() for state in states])


def _base(arguments: PruneArguments, model: Llama, *_: Any) -> PrunePlan:
    layers = model.config.num_hidden_layers
    return PrunePlan("base", layers, tuple(range(layers)))


def _angular(
    arguments: PruneArguments,
    model: Llama,
    calibration: Callable[[], list[Tensor]],
    ranks: Ranks,
) -> PrunePlan:
    count = check_prune_n("prune_n", arguments.prune_n, model.config.num_hidden_layers)
    prompts = calibration()
    facts = {"prompts": len(prompts), "tokens": sum(prompt.shape[1] for prompt in prompts)}
    return _least_distance(angular_distances(model, prompts, ranks), count, facts)


def _least_distance(distances: Tensor, count: int, calibration: dict[str, Any] | None) -> PrunePlan:
    """Return the plan without the `count` layers across which the states turn least."""
    layers = len(distances) - 1
    # l + n <= L - 1: the last layer always stays.
    candidates = distances[: layers - count, count]
    if not candidates.isfinite().all():
        raise UsageError(
            "--prune_method angular: hidden states of the calibration prompts are not finite; "
            "try another --dtype"
        )
    first = int(candidates.argmin())
    kept = tuple(index for index in range(layers) if not first <= index < first + count)
    scores = {
        "first_removed_layer": first,
        "distance": float(candidates[first]),
        "distances": [[d if math.isfinite(d) else None for d in row] for row in distances.tolist()],
    }
    return PrunePlan("angular", layers, kept, prune_n=count, scores=scores, calibration=calibration)


def _random(arguments: PruneArguments, model: Llama, *_: Any) -> PrunePlan:
    """Drop each layer independently: LayerDrop at inference (Fan et al. 2020, arXiv 1909.11556)."""
    layers, threshold = model.config.num_hidden_layers, arguments.dropout_threshold
    if threshold is None:
        reject("prune_method", "random", "needs --dropout_threshold")
    draws = random.Random(arguments.prune_seed)
    kept = tuple(index for index in range(layers) if draws.random() >= threshold)
    if not kept:
        raise UsageError(
            f"--dropout_threshold {threshold}: with --prune_seed {arguments.prune_seed} it keeps "
            f"no layer of {layers}; lower it or change the seed"
        )
    return PrunePlan(
        "random", layers, kept, dropout_threshold=threshold, prune_seed=arguments.prune_seed
    )


def _spans(layers: tuple[int, ...]) -> str:
    """Return the indices with runs shortened, as in [3, 20-25]."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return "[" + ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in spans) + "]"


CRITERIA: dict[str, Callable[..., PrunePlan]] = {
    "base": _base,
    "angular": _angular,
    "random": _random,
}
