"""The flags of pruning."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arguments.prompts import DEFAULT_DATASET
from command_line.errors import reject
from command_line.flags import check_least, check_new_folder, flag
from prompts.dataset_table import DATASETS


@dataclass(frozen=True)
class Method:
    """The flags that a criterion takes.

    `needs` names flags of which it takes exactly one. `calibrates`: it measures examples.
    """

    needs: tuple[str, ...] = ()
    calibrates: bool = False


_BY_NUMBER = ("prune_n",)
METHODS = {
    "base": Method(),
    "angular": Method(_BY_NUMBER, calibrates=True),
    "random": Method(("dropout_threshold", "prune_n")),
    "last": Method(_BY_NUMBER),
    "layers": Method(("prune_layers",)),
    "block_influence": Method(_BY_NUMBER, calibrates=True),
    "perplexity": Method(_BY_NUMBER, calibrates=True),
    "taylor": Method(_BY_NUMBER, calibrates=True),
    "magnitude": Method(_BY_NUMBER),
}
PRUNE_METHODS = tuple(METHODS)
PATCHES = ("none", "linear", "folded")
CALIBRATION_TEXTS = ("prompts", "generated")
PLAN_FILE = "prune_plan.json"  # beside the weights of a pruned checkpoint
_PLAN_FLAGS = ("prune_n", "dropout_threshold", "prune_layers")
_CALIBRATING = ", ".join(name for name, method in METHODS.items() if method.calibrates)


@dataclass(frozen=True)
class CalibrationArguments:
    """Seed and calibration examples of a plan."""

    prune_seed: int = flag(
        42, "seed of the plan: draws the layers to drop, or the examples to calibrate on"
    )
    calibration_samples: int = flag(
        32, "number of examples to calibrate on, none of them evaluated"
    )
    calibration_dataset: str | None = flag(
        None,
        "data set to calibrate on (default: the evaluated data set, its training split if it has "
        f"one; {DEFAULT_DATASET} if nothing is evaluated)",
        tuple(DATASETS),
    )
    calibration_path: str | None = flag(
        None, "file or folder of calibration rows, like --data_path"
    )
    calibration_excludes: int | None = flag(
        None,
        "calibrate on none of the first so many examples of the evaluation's order, so that runs "
        "on fewer examples share a plan (default: those evaluated)",
    )
    calibration_text: str = flag(
        "prompts",
        "generated: calibrate on prompts with the model's own greedy continuations",
        CALIBRATION_TEXTS,
    )
    calibration_steps: int | None = flag(
        None, "with --calibration_text generated: most tokens of a continuation (default: 128)"
    )

    def check(self) -> None:
        check_least(self, calibration_samples=1, calibration_excludes=1, calibration_steps=1)
        if self.calibration_path == "":
            reject("calibration_path", "''", "must not be empty")
        if self.calibration_steps is not None and self.calibration_text != "generated":
            allowed = "only with --calibration_text generated"
            reject("calibration_steps", self.calibration_steps, allowed)

    def names_calibration(self) -> bool:
        """Return whether calibration has a source of its own, other than the evaluated data."""
        return (self.calibration_dataset or self.calibration_path) is not None

    def check_unused(self) -> None:
        """Refuse flags of calibration, for plans that measure nothing."""
        for name in (
            "calibration_dataset",
            "calibration_path",
            "calibration_excludes",
            "calibration_text",
        ):
            value = getattr(self, name)
            if value not in (None, "prompts"):
                allowed = f"only with criteria that measure ({_CALIBRATING}), a patch or"
                reject(name, value, f"{allowed} --draft_vocab")


@dataclass(frozen=True)
class PruneArguments(CalibrationArguments):
    """Which layers are removed before decoding."""

    prune_method: str = flag("base", "criterion; base removes nothing", PRUNE_METHODS)
    prune_n: int | None = flag(None, "number of layers to remove, 1 to L - 2")
    dropout_threshold: float | None = flag(
        None, "random: probability that a layer is removed, in [0, 1); or give --prune_n"
    )
    prune_layers: str | None = flag(
        None, "layers: the layers to remove, of the original model, as in 21,22,25"
    )
    prune_patch: str = flag(
        "none",
        "replace the layers removed at each cut by a least-squares map of the calibration texts: "
        "linear: of the states, as a small linear layer; folded: of the last MLP before the cut, "
        "folded into its weights",
        PATCHES,
    )
    save_pruned: str | None = flag(None, "folder for the pruned model, an ordinary checkpoint")

    def check(self) -> None:
        super().check()
        check_plan_flags(self)
        if self.save_pruned is not None:
            # A pruned checkpoint may exist already: its plan is compared once this plan is known.
            check_new_folder("save_pruned", self.save_pruned, may_exist=True)
            folder = Path(self.save_pruned)
            if folder.exists() and not (folder / PLAN_FILE).exists():
                reject("save_pruned", self.save_pruned, "exists already; name a new folder")

    def calibrates(self) -> bool:
        """Return whether the criterion or the patch measures something on examples."""
        return METHODS[self.prune_method].calibrates or self.prune_patch != "none"


def check_plan_flags(flags: Any, prefix: str = "") -> None:
    """Check the flags that decide a plan; their names begin with the prefix."""

    def value_of(name: str) -> Any:
        return getattr(flags, prefix + name)

    name = value_of("prune_method")
    needs = METHODS[name].needs
    given = [flag_name for flag_name in _PLAN_FLAGS if value_of(flag_name) is not None]
    if needs and not set(given) & set(needs):
        which = " or ".join(f"--{prefix}{need}" for need in needs)
        reject(f"{prefix}prune_method", name, f"needs {which}")
    for flag_name in given:
        if flag_name not in needs:
            takers = [method for method, known in METHODS.items() if flag_name in known.needs]
            allowed = f"only with --{prefix}prune_method {_either(takers)}"
            reject(prefix + flag_name, value_of(flag_name), allowed)
    if len(given) > 1:
        value = value_of(given[0])
        reject(prefix + given[0], value, f"contradicts --{prefix}{given[1]}")
    count, threshold = value_of("prune_n"), value_of("dropout_threshold")
    if count is not None and count < 1:
        reject(f"{prefix}prune_n", count, "must be 1 to L - 2 for a model of L layers")
    if threshold is not None and not 0 <= threshold < 1:
        reject(f"{prefix}dropout_threshold", threshold, "must be in [0, 1)")
    if value_of("prune_layers") is not None:
        named_layers(f"{prefix}prune_layers", value_of("prune_layers"))
    if name == "base" and value_of("prune_patch") != "none":
        allowed = "removes nothing that a patch could replace"
        reject(f"{prefix}prune_patch", value_of("prune_patch"), f"--prune_method base {allowed}")


def named_layers(flag_name: str, text: str) -> tuple[int, ...]:
    """Return the layers that a text such as 21,22,25 names, in ascending order."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        reject(flag_name, repr(text), "must be layers with commas between them, as in 21,22,25")
    layers = sorted(map(int, parts))
    for layer, following in zip(layers, layers[1:], strict=False):
        if layer == following:
            reject(flag_name, text, f"names layer {layer} twice")
    return tuple(layers)


def _either(names: list[str]) -> str:
    """Return the names as a choice: a, b or c."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
