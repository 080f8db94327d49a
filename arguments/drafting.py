"""The flags that say who drafts, and how much."""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

from arguments.generation import GenerationArguments
from arguments.pruning import (
    PATCHES,
    PRUNE_METHODS,
    CalibrationArguments,
    PruneArguments,
    check_plan_flags,
)
from command_line.errors import UsageError, reject
from command_line.flags import check_least, flag
from self_speculation.drafters import DRAFTERS, LEAST_MATCH

DRAFTER_NAMES = tuple(DRAFTERS)
DRAFT_STOPS = ("length", "confidence", "adaptive")
_PLAN_FLAGS = re.compile(r"--(prune_(?:method|n|layers|patch)|dropout_threshold)\b")
_METHODS = tuple(name for name in PRUNE_METHODS if name != "base")
_OTHERS = tuple(name for name, entry in DRAFTERS.items() if not entry.combines)
# Drafters that the exit layer, or the drafter's plan, tells from others in a run's identity.
_IN_OTHER_KEYS = ("early_exit", "pruned")


@dataclass(frozen=True)
class DraftOptions:
    """How drafters draft: the flags that several drafters share."""

    hybrid_drafter: str | None = flag(
        None, "with --drafter hybrid: who drafts where the lookup matches too little", _OTHERS
    )
    hybrid_match: int | None = flag(
        None,
        "with --drafter hybrid: fewest matching tokens with which the lookup drafts "
        f"(default: {LEAST_MATCH})",
    )
    lookup_history: bool = flag(
        False,
        "lookup, recycling, hybrid: also use the run's earlier answers of the same process; "
        "tokens do not depend on them, only speed does",
    )
    draft_vocab: int | None = flag(
        None,
        "drafting layers: compute the logits of only so many tokens, the most frequent ones of the "
        "calibration texts",
    )
    draft_stop: str = flag(
        "length",
        "length: draft --num_speculations tokens; confidence: until a token's own probability is "
        "below --draft_threshold; adaptive: as many as estimates of acceptance and cost favour",
        DRAFT_STOPS,
    )
    draft_threshold: float | None = flag(
        None, "with --draft_stop confidence: a probability, in (0, 1)"
    )
    never_slower: bool = flag(
        False, "decode without drafts wherever measured costs say that drafts would lose"
    )

    def check(self) -> None:
        check_least(self, hybrid_match=1, draft_vocab=1)
        if self.hybrid_drafter == "lookup":
            reject("hybrid_drafter", "lookup", "a hybrid of lookup with itself is --drafter lookup")
        threshold, stop = self.draft_threshold, self.draft_stop
        if stop == "confidence" and threshold is None:
            reject("draft_stop", stop, "needs --draft_threshold")
        if threshold is not None and stop != "confidence":
            reject("draft_threshold", threshold, "only with --draft_stop confidence")
        if threshold is not None and not 0 < threshold < 1:
            reject("draft_threshold", threshold, "must be in (0, 1)")

    def unused_with(self, drafter: str) -> Iterator[tuple[str, str]]:
        """Yield each option in use that the drafter does not take, and the drafters that take it.

        A hybrid takes the options of both of its drafters.
        """
        if not DRAFTERS[drafter].combines:
            yield from self._in_use("hybrid", "hybrid_drafter", "hybrid_match")
        if DRAFTERS[drafter].layers:
            takers = ", ".join(name for name, entry in DRAFTERS.items() if not entry.layers)
            yield from self._in_use(takers, "lookup_history")
        if layers_of(drafter, self) is None:
            takers = ", ".join(name for name, entry in DRAFTERS.items() if entry.layers)
            yield from self._in_use(takers, "draft_vocab", "draft_threshold")

    def _in_use(self, takers: str, *names: str) -> Iterator[tuple[str, str]]:
        unset = DraftOptions()
        for name in names:
            if getattr(self, name) != getattr(unset, name):
                yield name, takers


@dataclass(frozen=True)
class DraftArguments(DraftOptions):
    """The drafter of self-speculative decoding."""

    drafter: str = flag(
        "early_exit",
        "early_exit: the first --exit_layer layers; pruned: the layers that a plan keeps, which "
        "--draft_prune_method decides; lookup: what followed the latest tokens before; recycling: "
        "the successors that the model gave to a token before; hybrid: lookup, or another one",
        DRAFTER_NAMES,
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
        super().check()
        check_options(self, [self.drafter], "drafter")
        if self.runs_plan:
            if self.draft_prune_method is None:
                reject("drafter", self.drafter, "needs --draft_prune_method")
            check_plan_flags(self, "draft_")
            return
        for name, value in self._plan_flags().items():
            if value != getattr(EARLY_EXIT, name):
                reject(name, value, "only with --drafter pruned, or a hybrid with it")

    @property
    def layers(self) -> str | None:
        """Which layers draft: `exit_layer`, `plan` or None."""
        return layers_of(self.drafter, self)

    @property
    def runs_plan(self) -> bool:
        """Whether a plan decides which layers draft."""
        return self.layers == "plan"

    @property
    def least_match(self) -> int:
        return self.hybrid_match or LEAST_MATCH

    def pruning(self, calibration: CalibrationArguments) -> PruneArguments | None:
        """Return the flags of the drafter's plan; None for another drafter.

        The drafter calibrates with the flags, and on the examples, of the model's own plan.
        """
        if not self.runs_plan:
            return None
        own = {name.removeprefix("draft_"): value for name, value in self._plan_flags().items()}
        return PruneArguments(**_shared(calibration), **own)

    def identity(self) -> dict[str, Any]:
        """Return what defines the drafts of a run, apart from its plan and calibration.

        Flags at their defaults are left out, so that the ids of earlier runs stay the same.
        """
        chosen = {item.name: getattr(self, item.name) for item in fields(DraftOptions)}
        unset = DraftOptions()
        found = {name: value for name, value in chosen.items() if value != getattr(unset, name)}
        if self.hybrid_match == LEAST_MATCH:
            del found["hybrid_match"]
        if self.drafter not in _IN_OTHER_KEYS:
            found["drafter"] = self.drafter
        return found

    def _plan_flags(self) -> dict[str, Any]:
        own = {item.name for item in fields(DraftArguments)} - {"drafter"}
        shared = {item.name for item in fields(DraftOptions)}
        return {name: value for name, value in asdict(self).items() if name in own - shared}


EARLY_EXIT = DraftArguments()


def layers_of(drafter: str, options: DraftOptions) -> str | None:
    """Return which layers a drafter runs, itself or as a hybrid: `exit_layer`, `plan` or None."""
    entry = DRAFTERS[drafter]
    other = DRAFTERS[options.hybrid_drafter] if entry.combines and options.hybrid_drafter else None
    return entry.layers or (other.layers if other else None)


def check_options(
    options: DraftOptions, drafters: Collection[str], named_by: str = "drafters"
) -> None:
    """Refuse options that none of several drafters takes, and a hybrid without another drafter.

    `named_by` is the flag that names the drafters.
    """
    if options.hybrid_drafter is None:
        for name in drafters:
            if DRAFTERS[name].combines:
                reject(named_by, name, "needs --hybrid_drafter")
    unused = [dict(options.unused_with(name)) for name in drafters]
    for name, takers in unused[0].items():
        if all(name in one for one in unused):
            allowed = f"only with drafters {takers}, or a hybrid of them"
            reject(name, getattr(options, name), allowed)


@dataclass(frozen=True)
class CountingArguments(PruneArguments):
    """The flags of calibration texts whose tokens are counted, for a draft vocabulary."""

    def calibrates(self) -> bool:
        return True


def calibrating(prune: PruneArguments, draft: DraftArguments = EARLY_EXIT) -> PruneArguments:
    """Return the flags that decide which examples calibrate: the model's plan, or the drafter's."""
    drafting = draft.pruning(prune)
    if prune.calibrates():
        return prune
    if drafting is not None and drafting.calibrates():
        return drafting
    return prune if draft.draft_vocab is None else CountingArguments(**_shared(prune))


def check_drafts(generation: GenerationArguments, draft: DraftArguments = EARLY_EXIT) -> None:
    """Refuse self-speculation without layers that draft, or with two choices of them."""
    exit_layer, layers = generation.exit_layer, draft.layers
    if layers == "exit_layer":
        if generation.speculates and exit_layer == -1:
            reject("exit_layer", -1, "--generation_strategy self_speculative needs one, 1 to L - 1")
    elif exit_layer != -1 and generation.speculates:
        drafts = "whose plan drafts" if layers else "which runs no layer"
        named = f"--drafter {draft.drafter}"
        reject("exit_layer", exit_layer, f"contradicts {named}, {drafts}")


def check_together(
    prune: PruneArguments, generation: GenerationArguments, draft: DraftArguments = EARLY_EXIT
) -> None:
    """Refuse flags of plans, decoder and drafter that contradict each other."""
    check_drafts(generation, draft)
    if not generation.speculates:
        for item in fields(draft):
            value = getattr(draft, item.name)
            if value != getattr(EARLY_EXIT, item.name):
                reject(item.name, value, "needs --generation_strategy self_speculative")
    if not calibrating(prune, draft).calibrates():
        prune.check_unused()


def drafting_name(options: Mapping[str, Any]) -> str:
    """Return what a log's identity says of its drafts, in a few words; empty for the default.

    `options` are those of `DraftArguments.identity`.
    """
    words = []
    drafter = options.get("drafter")
    if drafter in DRAFTERS and DRAFTERS[drafter].combines:
        least = options.get("hybrid_match")
        longest = f" from {least} tokens" if least else ""
        words.append(f"lookup{longest} or {options['hybrid_drafter']}")
    elif drafter is not None:
        words.append(str(drafter))
    if options.get("lookup_history"):
        words.append("history")
    if "draft_vocab" in options:
        words.append(f"vocabulary {options['draft_vocab']}")
    if options.get("draft_stop") == "confidence":
        words.append(f"confidence {options['draft_threshold']}")
    elif "draft_stop" in options:
        words.append(str(options["draft_stop"]))
    if options.get("never_slower"):
        words.append("gate")
    return " + ".join(words)


@contextmanager
def errors_of_drafter() -> Iterator[None]:
    """Let errors name the drafter's flags instead of those of the model's plan."""
    try:
        yield
    except UsageError as error:
        raise type(error)(_PLAN_FLAGS.sub(r"--draft_\1", str(error))) from error


def _shared(calibration: CalibrationArguments) -> dict[str, Any]:
    return {item.name: getattr(calibration, item.name) for item in fields(CalibrationArguments)}
