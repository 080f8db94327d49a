"""The flags that say which layers draft."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields

from arguments.generation import GenerationArguments
from arguments.pruning import (
    PATCHES,
    PRUNE_METHODS,
    CalibrationArguments,
    PruneArguments,
    check_plan_flags,
)
from command_line.errors import UsageError, reject
from command_line.flags import flag

DRAFTERS = ("early_exit", "pruned")
_PLAN_FLAGS = re.compile(r"--(prune_(?:method|n|layers|patch)|dropout_threshold)\b")
_METHODS = tuple(name for name in PRUNE_METHODS if name != "base")


@dataclass(frozen=True)
class DraftArguments:
    """The drafter of self-speculative decoding."""

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


EARLY_EXIT = DraftArguments()


def calibrating(prune: PruneArguments, draft: DraftArguments = EARLY_EXIT) -> PruneArguments:
    """Return the flags that decide which examples calibrate: the model's plan, or the drafter's."""
    drafting = draft.pruning(prune)
    if drafting is None or prune.calibrates():
        return prune
    return drafting if drafting.calibrates() else prune


def check_drafts(generation: GenerationArguments, draft: DraftArguments = EARLY_EXIT) -> None:
    """Refuse self-speculation without layers that draft, or with two choices of them."""
    exit_layer = generation.exit_layer
    if draft.drafter == "pruned":
        if exit_layer != -1:
            reject("exit_layer", exit_layer, "contradicts --drafter pruned, whose plan drafts")
    elif generation.speculates and exit_layer == -1:
        reject("exit_layer", -1, "--generation_strategy self_speculative needs one, 1 to L - 1")


def check_together(
    prune: PruneArguments, generation: GenerationArguments, draft: DraftArguments = EARLY_EXIT
) -> None:
    """Refuse flags of plans, decoder and drafter that contradict each other."""
    check_drafts(generation, draft)
    if draft.drafter == "pruned" and not generation.speculates:
        reject("drafter", "pruned", "needs --generation_strategy self_speculative")
    if not calibrating(prune, draft).calibrates():
        prune.check_unused()


@contextmanager
def errors_of_drafter() -> Iterator[None]:
    """Let errors name the drafter's flags instead of those of the model's plan."""
    try:
        yield
    except UsageError as error:
        raise type(error)(_PLAN_FLAGS.sub(r"--draft_\1", str(error))) from error
