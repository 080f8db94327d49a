"""Which layers to remove, decided first; their removal, second."""

import math
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from arguments.pruning import PLAN_FILE, PruneArguments
from command_line.errors import UsageError, reject
from files.reading import read_settings
from models.saved import write_checkpoint
from processes.ranks import ALONE, Ranks
from self_speculation.offloading import forget_offloaded, input_device


@dataclass(frozen=True)
class PrunePlan:
    """Which layers of a model stay, and why: frozen data that can be logged and obeyed.

    `kept_layers` are 0-based indices of the original model, ascending. `scores` are what the
    criterion decided by; `calibration` tells on what they were measured.
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
        """The plan in a word: base, angular n=2, random p=0.1 seed=0."""
        if self.method == "angular":
            return f"angular n={self.prune_n}"
        if self.method == "random":
            return f"random p={self.dropout_threshold} seed={self.prune_seed}"
        return self.method

    def kept_exit_layer(self, exit_layer: int) -> int | None:
        """Return how many kept layers are among the first `exit_layer` of the original model.

        None for -1, which is no exit layer. Raises `UsageError` if no layer is left to draft with,
        or none to verify with.
        """
        if exit_layer == -1:
            return None
        if exit_layer >= self.original_layers:
            reject("exit_layer", exit_layer, f"must be 1 to {self.original_layers - 1}")
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
        """The plan that `to_dict` wrote; what is derived from its fields is left aside.

        Raises ValueError for values that are no plan's.
        """
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
    """Removes from a model the layers that a plan does not keep, and proves it.

    The layers go for good: they run no more, hold no memory and need no cache, and the model
    saves and loads as an ordinary checkpoint.
    """

    def __init__(self, model: nn.Module, plan: PrunePlan) -> None:
        if model.config.num_hidden_layers != plan.original_layers:
            raise UsageError(
                f"a plan for {plan.original_layers} layers cannot prune a model of "
                f"{model.config.num_hidden_layers}"
            )
        self.model = model
        self.plan = plan
        self.parameters_before = count_parameters(model)
        self.parameters_after = self.parameters_before

    def prune(self) -> None:
        """Drops the layers, renumbers the kept ones and frees the memory."""
        forget_offloaded(self.model.model.layers[index] for index in self.plan.removed_layers)
        self._remove()

    def _remove(self) -> None:
        layers = list(self.model.model.layers)
        removed = [layers[index] for index in self.plan.removed_layers]
        self._hold([layers[index] for index in self.plan.kept_layers], self.plan.kept_layers)
        self.parameters_after = count_parameters(self.model)
        self._verify(layers, sum(count_parameters(layer) for layer in removed))
        del layers, removed
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def for_a_while(self) -> Iterator[None]:
        """Prunes, and makes the model whole again at the end.

        Meanwhile the removed layers wait in the host's memory: `frees_memory` says whether that
        is another than the model's.
        """
        layers, types = list(self.model.model.layers), self._layer_types()
        removed = [layers[index] for index in self.plan.removed_layers]
        device, moves = self.model.device, self.frees_memory
        try:
            for layer in removed if moves else []:
                layer.to("cpu")
            self._remove()
            yield
        finally:
            for layer in removed if moves else []:
                layer.to(device)
            self._hold(layers, range(len(layers)), types)

    @property
    def frees_memory(self) -> bool:
        """Whether layers that are removed for a while make room on the model's device.

        Layers that accelerate has placed stay where they are.
        """
        return self.model.device.type == "cuda" and not hasattr(self.model, "hf_device_map")

    def _hold(
        self, layers: list[nn.Module], indices: Iterable[int], types: list[str] | None = None
    ) -> None:
        """Makes the model consist of these layers, `indices` of those whose `types` it has."""
        config = self.model.config
        types = types or self._layer_types()
        self.model.model.layers = nn.ModuleList(layers)
        for index, layer in enumerate(layers):
            layer.self_attn.layer_idx = index
        config.num_hidden_layers = len(layers)
        if types:
            config.layer_types = [types[index] for index in indices]

    def _layer_types(self) -> list[str] | None:
        return getattr(self.model.config, "layer_types", None)

    def report(self) -> str:
        """Which layers went, by original index and parameter count."""
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
        """Writes model, tokenizer and plan as an ordinary checkpoint, whole or not at all.

        Beside the plan stands the fingerprint of the model that was pruned. The checkpoint appears
        once it was read back and found equal to the model.
        """
        target = Path(folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                checkpoint = Path(scratch) / target.name
                origin = self.plan.to_dict() | {"model_fingerprint": fingerprint}
                write_checkpoint(self.model, tokenizer, checkpoint, {PLAN_FILE: origin})
                checkpoint.rename(target)
        except (OSError, SafetensorError) as error:
            reject("save_pruned", folder, f"cannot be written ({error})")

    def _verify(self, before: list[nn.Module], removed_parameters: int) -> None:
        after = list(self.model.model.layers)
        expected = [before[index] for index in self.plan.kept_layers]
        assert len(after) == len(expected)
        assert all(one is other for one, other in zip(after, expected, strict=True))
        assert self.parameters_before - self.parameters_after == removed_parameters


def is_saved(folder: str, plan: PrunePlan, fingerprint: str) -> bool:
    """Whether the folder holds this model pruned by this plan already.

    Raises `UsageError` where it holds something else.
    """
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
    model: nn.Module,
    calibration: Callable[[], list[Tensor]],
    ranks: Ranks = ALONE,
) -> PrunePlan:
    """The plan of `--prune_method`, the same in all processes, which share its measurements.

    `calibration` yields token ids, (1, T) each; it is called only by a criterion that measures.
    """
    plan = CRITERIA[arguments.prune_method](arguments, model, calibration, ranks)
    # Where machines differ, so might what they measured.
    return plan if ranks.count == 1 else PrunePlan.from_dict(ranks.first(plan.to_dict()))


def check_prune_n(flag: str, count: int, layers: int) -> None:
    """Refuses a number of layers that the criterion cannot remove from a model with so many."""
    if not 1 <= count <= layers - 2:
        reject(flag, count, f"must be 1 to {layers - 2}; the model has {layers} layers")


def with_prune_n(plan: PrunePlan, count: int) -> PrunePlan:
    """The angular plan for another number of layers, by the distances that this one measured."""
    rows = plan.scores["distances"]
    known = [[math.nan if value is None else value for value in row] for row in rows]
    return _least_distance(torch.tensor(known, dtype=torch.float64), count, plan.calibration)


def angular_distances(model: nn.Module, prompts: list[Tensor], ranks: Ranks = ALONE) -> Tensor:
    """d(l, n) for all l and n at once, float64 of shape (L + 1, L + 1); NaN where l + n > L.

    d(l, n) = arccos(cos_sim(x(l), x(l + n))) / pi, averaged over prompts, where x(l) is the
    residual stream before layer l at the prompt's last token and x(L) the one after the last
    layer (Gromov et al. 2024, arXiv 2403.17887). Each prompt costs one forward pass without the
    LM head, and leaves nothing behind but the distances of its last token's L + 1 states. Each
    process measures its share of the prompts; the sum is in the prompts' order.
    """
    layers = model.config.num_hidden_layers
    total = torch.zeros(layers + 1, layers + 1, dtype=torch.float64)
    measured = [_distances_of(model, prompt) for prompt in ranks.share(prompts)]
    shares = ranks.gather(torch.stack(measured) if measured else total[None, :0])
    for of_prompt in ranks.in_order(shares):
        total += of_prompt
    distances = torch.full_like(total, math.nan)
    for first in range(layers + 1):
        distances[first, : layers + 1 - first] = total[first, first:] / len(prompts)
    return distances


def count_parameters(module: nn.Module) -> int:
    """Parameters, those shared between modules counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters, those shared between modules counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _distances_of(model: nn.Module, prompt: Tensor) -> Tensor:
    unit = nn.functional.normalize(_last_token_states(model, prompt), dim=-1)
    return (unit @ unit.T).clamp(-1, 1).arccos() / math.pi


@torch.inference_mode()
def _last_token_states(model: nn.Module, prompt: Tensor) -> Tensor:
    """x(0) .. x(L) at the last token, float64 of shape (L + 1, D)."""
    states: list[Tensor] = []

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        states.append(inputs[0][0, -1].clone())  # a view would hold every position

    def keep_output(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        states.append(output[0, -1].clone())

    decoder = model.model
    hooks = [layer.register_forward_pre_hook(keep_input) for layer in decoder.layers]
    hooks.append(decoder.layers[-1].register_forward_hook(keep_output))
    try:
        decoder(input_ids=prompt.to(input_device(model)), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([state.cpu().double() for state in states])


def _base(arguments: PruneArguments, model: nn.Module, *_: Any) -> PrunePlan:
    layers = model.config.num_hidden_layers
    return PrunePlan("base", layers, tuple(range(layers)))


def _angular(
    arguments: PruneArguments,
    model: nn.Module,
    calibration: Callable[[], list[Tensor]],
    ranks: Ranks,
) -> PrunePlan:
    check_prune_n("prune_n", arguments.prune_n, model.config.num_hidden_layers)
    prompts = calibration()
    facts = {"prompts": len(prompts), "tokens": sum(prompt.shape[1] for prompt in prompts)}
    distances = angular_distances(model, prompts, ranks)
    return _least_distance(distances, arguments.prune_n, facts)


def _least_distance(distances: Tensor, count: int, calibration: dict[str, int]) -> PrunePlan:
    """Removes the `count` layers across which the states turn least."""
    layers = len(distances) - 1
    # l + n <= L - 1: the last layer is never removed.
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
        "distances": [[_finite(value) for value in row] for row in distances.tolist()],
    }
    return PrunePlan("angular", layers, kept, prune_n=count, scores=scores, calibration=calibration)


def _random(arguments: PruneArguments, model: nn.Module, *_: Any) -> PrunePlan:
    """LayerDrop at inference: each layer is dropped independently (Fan et al. 2020)."""
    layers, threshold = model.config.num_hidden_layers, arguments.dropout_threshold
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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _spans(layers: tuple[int, ...]) -> str:
    """Indices with runs shortened, as in [3, 20-25]."""
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
