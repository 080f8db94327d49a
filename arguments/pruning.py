"""The flags of pruning."""

from dataclasses import dataclass
from pathlib import Path

from arguments.prompts import DEFAULT_DATASET
from command_line.errors import reject
from command_line.flags import check_least, check_new_folder, flag
from prompts.dataset_table import DATASETS

PRUNE_METHODS = ("base", "angular", "random")
PLAN_FILE = "prune_plan.json"  # beside the weights of a pruned checkpoint


@dataclass(frozen=True)
class CalibrationArguments:
    """Seed and calibration examples of a plan."""

    prune_seed: int = flag(
        42, "seed of the plan: draws the layers to drop, or the examples to calibrate on"
    )
    calibration_samples: int = flag(
        32, "angular: number of examples to calibrate on, none of them evaluated"
    )
    calibration_dataset: str | None = flag(
        None,
        "angular: data set to calibrate on (default: the evaluated data set, its training split "
        f"if it has one; {DEFAULT_DATASET} if nothing is evaluated)",
        tuple(DATASETS),
    )
    calibration_path: str | None = flag(
        None, "angular: file or folder of calibration rows, like --data_path"
    )
    calibration_excludes: int | None = flag(
        None,
        "angular: calibrate on none of the first so many examples of the evaluation's order, so "
        "that runs on fewer examples share a plan (default: those evaluated)",
    )

    def check(self) -> None:
        check_least(self, calibration_samples=1, calibration_excludes=1)
        if self.calibration_path == "":
            reject("calibration_path", "''", "must not be empty")

    def names_calibration(self) -> bool:
        """Return whether calibration has a source of its own, other than the evaluated data."""
        return (self.calibration_dataset or self.calibration_path) is not None


@dataclass(frozen=True)
class PruneArguments(CalibrationArguments):
    """Which layers are removed before decoding."""

    prune_method: str = flag("base", "base removes nothing", PRUNE_METHODS)
    prune_n: int | None = flag(None, "angular: number of consecutive layers to remove, 1 to L - 2")
    dropout_threshold: float | None = flag(
        None, "random: probability that a layer is removed, in [0, 1)"
    )
    save_pruned: str | None = flag(None, "folder for the pruned model, an ordinary checkpoint")

    def check(self) -> None:
        super().check()
        self._check_needed("prune_n", "angular")
        self._check_needed("dropout_threshold", "random")
        self._check_belongs("calibration_dataset", "angular")
        self._check_belongs("calibration_path", "angular")
        self._check_belongs("calibration_excludes", "angular")
        if self.prune_n is not None and self.prune_n < 1:
            reject("prune_n", self.prune_n, "must be 1 to L - 2 for a model of L layers")
        if self.dropout_threshold is not None and not 0 <= self.dropout_threshold < 1:
            reject("dropout_threshold", self.dropout_threshold, "must be in [0, 1)")
        if self.save_pruned is not None:
            # A pruned checkpoint may exist already: its plan is compared once this plan is known.
            check_new_folder("save_pruned", self.save_pruned, may_exist=True)
            folder = Path(self.save_pruned)
            if folder.exists() and not (folder / PLAN_FILE).exists():
                reject("save_pruned", self.save_pruned, "exists already; name a new folder")

    def calibrates(self) -> bool:
        """Return whether the method measures something on examples."""
        return self.prune_method == "angular"

    def _check_needed(self, name: str, method: str) -> None:
        if self.prune_method == method and getattr(self, name) is None:
            reject("prune_method", method, f"needs --{name}")
        self._check_belongs(name, method)

    def _check_belongs(self, name: str, method: str) -> None:
        value = getattr(self, name)
        if self.prune_method != method and value is not None:
            reject(name, value, f"only with --prune_method {method}")
