"""PrunePlan: the layers that stay in a model. Nothing here imports torch."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from arguments.pruning import named_layers
from command_line.errors import reject

# Kept layers, kind of patch, and fingerprint of the texts that the patch is fitted to.
PlanKey = tuple[tuple[int, ...], str | None, str | None]


@dataclass(frozen=True)
class PrunePlan:
    """The layers that stay in a model and the reason: frozen data for the log and for surgery.

    `kept_layers` are ascending 0-based indices of the original model. `scores` are the criterion's
    measurements; `calibration` counts the prompts and tokens that they were measured on. `patch` is
    the kind of map that replaces the removed layers, if any.
    """

    method: str
    original_layers: int
    kept_layers: tuple[int, ...]
    prune_n: int | None = None
    dropout_threshold: float | None = None
    prune_seed: int | None = None
    scores: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    patch: str | None = None

    @property
    def removed_layers(self) -> tuple[int, ...]:
        return tuple(sorted(set(range(self.original_layers)) - set(self.kept_layers)))

    @property
    def key(self) -> PlanKey:
        """Kept layers and patch, which decide the pruned model; a patch depends on its texts."""
        return self.kept_layers, self.patch, self.patch_texts

    @property
    def patch_texts(self) -> str | None:
        """The fingerprint of the texts that the patch is fitted to; None without a patch."""
        facts = self.calibration if self.patch else None
        return (facts or {}).get("fingerprint")

    @property
    def approach(self) -> str:
        """A name of the plan: angular n=2, random p=0.1 seed=0, layers [3, 20-25] + linear."""
        words = [self.method]
        if self.method == "layers":
            words.append(spans(self.removed_layers))
        if self.prune_n is not None:
            words.append(f"n={self.prune_n}")
        if self.dropout_threshold is not None:
            words.append(f"p={self.dropout_threshold}")
        if self.method == "random":
            words.append(f"seed={self.prune_seed}")
        if self.patch:
            words.append(f"+ {self.patch}")
        return " ".join(words)

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
            known = {item.name for item in fields(cls)} & values.keys()  # older logs have fewer
            plan = cls(**{name: values[name] for name in known})
            plan = replace(plan, kept_layers=tuple(plan.kept_layers))
            layers = [layer for layer in range(plan.original_layers) if layer in plan.kept_layers]
        except KeyError as error:
            raise ValueError(f"its plan lacks {error}") from error
        except TypeError as error:
            raise ValueError(f"its plan is none ({error})") from error
        if not layers or layers != list(plan.kept_layers):
            raise ValueError(f"its plan keeps layers {plan.kept_layers} of {plan.original_layers}")
        return plan


def drafting_plan(plan: PrunePlan, drafter: PrunePlan) -> PrunePlan:
    """Return the drafter's plan without the layers that the model lacks.

    Raises `UsageError` if no layer is left, or all layers of the model are.
    """
    layers = tuple(layer for layer in plan.kept_layers if layer in drafter.kept_layers)
    if layers == plan.kept_layers:
        allowed = f"{drafter.approach} drafts with all layers; nothing would be gained"
        reject("draft_prune_method", drafter.method, allowed)
    if not layers:
        allowed = f"{drafter.approach} keeps no layer that {plan.approach} keeps"
        reject("draft_prune_method", drafter.method, allowed)
    return replace(drafter, kept_layers=layers)


def cuts(kept_layers: tuple[int, ...], layers: int) -> list[range]:
    """Return the runs of removed layers between kept layers, front to back."""
    ends = zip([-1, *kept_layers], [*kept_layers, layers], strict=True)
    return [range(before + 1, after) for before, after in ends if before + 1 < after]


def check_exit_layer(flag: str, exit_layer: int, layers: int) -> None:
    """Refuse an exit layer that leaves no layer of the whole model to verify with."""
    if exit_layer >= layers:
        reject(flag, exit_layer, f"must be 1 to {layers - 1}")


def check_prune_n(flag: str, count: int | None, layers: int) -> int:
    """Return the number of layers to remove; refuse a number that the criterion cannot remove."""
    if count is None or not 1 <= count <= layers - 2:
        reject(flag, count, f"must be 1 to {layers - 2}; the model has {layers} layers")
    return count


def check_prune_layers(text: str, layers: int) -> tuple[int, ...]:
    """Return the layers to remove; refuse those that the model lacks, and all of its layers."""
    removed = named_layers("prune_layers", text)
    if removed[-1] >= layers:
        allowed = f"layers are 0 to {layers - 1}; the model has {layers}"
        reject("prune_layers", text, f"names layer {removed[-1]}, and {allowed}")
    if len(removed) == layers:
        reject("prune_layers", text, "removes all layers of the model")
    return removed


def spans(layers: tuple[int, ...]) -> str:
    """Return the indices with runs shortened, as in [3, 20-25]."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return "[" + ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in spans) + "]"
