"""The flags that say which layers draft."""

from dataclasses import asdict, dataclass, fields

from arguments.pruning import (
    PATCHES,
    PRUNE_METHODS,
    CalibrationArguments,
    PruneArguments,
    check_plan_flags,
)
from command_line.errors import reject
from command_line.flags import flag

DRAFTERS = ("early_exit", "pruned")
_METHODS = tuple(name for name in PRUNE_METHODS if name != "base")


@dataclass(frozen=True)
class DraftArguments:
    """What drafts in self-speculative decoding."""

    drafter: str = flag(
        "early_exit",
        "early_exit: the first --exit_layer layers; pruned: the layers that a plan keeps, which "
        "--draft_prune_method decides",
        DRAFTERS,
    )
    draft_prune_method: str | None = flag(
        None, "with --drafter pruned: criterion of the layers that do not draft", _METHODS
    )
    draft_prune_n: int | None = flag(None, "like --prune_n, of the drafter")
    draft_dropout_threshold: float | None = flag(
        None, "like --dropout_threshold, of the drafter; --prune_seed draws the layers"
    )
    draft_prune_layers: str | None = flag(None, "like --prune_layers, of the drafter")
    draft_prune_patch: str = flag("none", "like --prune_patch, of the drafter", PATCHES)

    def check(self) -> None:
        if self.drafter == "pruned":
            if self.draft_prune_method is None:
                reject("drafter", "pruned", "needs --draft_prune_method")
            check_plan_flags(self, "draft_")
            return
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "drafter" and value != item.default:
                reject(item.name, value, "only with --drafter pruned")

    def pruning(self, calibration: CalibrationArguments) -> PruneArguments | None:
        """Return the flags of the drafter's plan; None for another drafter.

        The drafter calibrates with the flags, and on the examples, of the model's own plan.
        """
        if self.drafter != "pruned":
            return None
        shared = {
            item.name: getattr(calibration, item.name) for item in fields(CalibrationArguments)
        }
        own = {
            name.removeprefix("draft_"): value
            for name, value in asdict(self).items()
            if name != "drafter"
        }
        return PruneArguments(**shared, **own)
