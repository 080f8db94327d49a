"""The states of a sweep's runs in an output folder, and the prompts that are left."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy

from arguments.drafting import drafting_name
from arguments.pruning import PruneArguments, named_layers
from arguments.run import RunArguments
from command_line.errors import UsageError
from pruning.plan import PrunePlan
from runs.definition import RunDefinition
from runs.experiment import check_repeats
from runs.loop import Turn
from runs.reader import read_record, read_samples
from runs.record import RunRecord
from runs.writer import find_run

_Kind = tuple[int, str, bool, str]


@dataclass(frozen=True)
class RunState:
    """A run of the grid: complete, partial, missing or error, and the prompts left in each pass.

    `remark` is the run's file, or the error. `plan` and `record` are those of the file.
    """

    name: str
    state: str
    left_by_pass: list[int]
    run_id: str | None = None
    remark: str = ""
    plan: PrunePlan | None = None
    record: RunRecord | None = None

    @property
    def left(self) -> int:
        """Prompts that are left; each counts once per pass."""
        return sum(self.left_by_pass)


def run_name(run: RunArguments) -> str:
    """Return data set, plan and decoder in words."""
    flags, drafter = run.generation, run.draft.pruning(run.prune)
    words = [drafting_name(run.draft.identity())]
    if drafter:
        words.insert(0, f"pruned draft {plan_name(drafter)}")
    elif flags.exit_layer != -1:
        words.insert(0, f"exit layer {flags.exit_layer}")
    decoder = ", ".join([*filter(None, words), f"{flags.num_speculations} drafts"])
    if flags.generation_strategy == "autoregressive":
        decoder = "autoregressive"
        if run.measure.at_once > 1:
            decoder += f", {run.measure.at_once} at a time"
    return f"{run.data.dataset}, {plan_name(run.prune)}, {decoder}"


def plan_name(flags: PruneArguments) -> str:
    """Return the name of the plan that these flags ask for, as in a log."""
    text = flags.prune_layers
    removed = named_layers("prune_layers", text) if text is not None else ()
    layers = max(removed, default=0) + 2
    kept = tuple(layer for layer in range(layers) if layer not in removed)
    asked = (flags.prune_n, flags.dropout_threshold, flags.prune_seed)
    patch = flags.prune_patch if flags.prune_patch != "none" else None
    return PrunePlan(flags.prune_method, layers, kept, *asked, patch=patch).approach


def state_of(run: RunDefinition) -> RunState:
    """Return what the run's output folder holds of it."""
    state = partial(RunState, run_name(run.arguments), run_id=run.run_id)
    count, repeats = len(run.evaluated.examples), run.arguments.measure.repeats
    nothing = [0] * repeats
    path = find_run(run.arguments.log.output_dir, run.run_id)
    if path is None:
        return state("missing", [count] * repeats)
    try:
        record = read_record(path)
        plan = record.prune_plan()
        check_repeats(run, record)
        if record.is_complete:
            return state("complete", nothing, remark=str(path), plan=plan, record=record)
        done = Counter(sample.repeat for sample in read_samples(path))
    except UsageError as error:
        return state("error", nothing, remark=str(error), plan=plan)
    except (OSError, ValueError) as error:
        return state("error", nothing, remark=f"{path}: {error}")
    left = [count - done[repeat] for repeat in range(repeats)]
    return state("partial", left, remark=str(path), plan=plan, record=record)


def listing(states: list[RunState]) -> Iterator[str]:
    """Yield a line for each run, and the sum."""
    for number, one in enumerate(states, start=1):
        place = f"{number:{len(str(len(states)))}}/{len(states)}"
        yield f"{place}  {one.state:9} {one.name}" + (f": {one.remark}" if one.remark else "")
    left = [one for one in states if one.state != "complete"]
    yield f"{len(left)} of {len(states)} runs and {sum(one.left for one in left)} prompts are left"


@dataclass(frozen=True)
class Visit:
    """A visit to a run for one of its passes. `number` counts the sweep's runs from 0."""

    number: int
    run: RunDefinition
    turn: Turn
    left: int  # prompts of this pass

    @property
    def begins(self) -> bool:
        """Whether prompts of the first pass are left."""
        return self.turn.passes == 1 and self.left > 0


def visits(runs: list[RunDefinition], left: list[list[int]], first: int) -> Iterator[Visit]:
    """Yield the visits to these runs, whose first number is `first`, pass by pass.

    Each pass goes through all runs before the next begins, and every second one backwards: a
    machine that grows slower or faster then slows all of them alike. A run may have fewer passes
    than others. `left` holds the prompts left of each run and pass. A pass without any is left out,
    except the last, which completes the run.
    """
    for repeat in range(max(map(len, left))):
        order = [place for place, passes in enumerate(left) if repeat < len(passes)]
        for place in reversed(order) if repeat % 2 else order:
            turn = Turn(repeat + 1, is_last=repeat == len(left[place]) - 1)
            if turn.is_last or left[place][repeat]:
                yield Visit(first + place, runs[place], turn, left[place][repeat])


class Pace:
    """Tells before each visit how many prompts are left of those of `to_do`, and for how long."""

    def __init__(self, runs: int, to_do: Iterable[Visit]) -> None:
        self._runs = runs
        self._left: Counter[_Kind] = Counter()
        for visit in to_do:
            self._left[_kind(visit)] += visit.left
        self._done: list[tuple[_Kind, float, int]] = []  # seconds per prompt, and prompts

    def begin(self, visit: Visit) -> None:
        """Print the line before the visit."""
        measure = visit.run.arguments.measure
        place = f"run {visit.number + 1} of {self._runs}"
        if measure.repeats > 1:
            place += f", pass {visit.turn.passes} of {measure.repeats}"
        line = f"{place}: {run_name(visit.run.arguments)}; {self._left.total()} prompts left"
        if self._done:
            seconds = sum(left * self._pace(kind) for kind, left in self._left.items())
            hours, minutes = divmod(round(seconds / 60), 60)
            line += f", about {hours}:{minutes:02} h"
        print(line)
        self._began = time.monotonic()

    def end(self, visit: Visit, succeeded: bool) -> None:
        """Measure the visit that was begun, if it succeeded."""
        self.skip(visit)
        if succeeded and visit.left:
            pace = (time.monotonic() - self._began) / visit.left
            self._done.append((_kind(visit), pace, visit.left))

    def skip(self, visit: Visit) -> None:
        """Count the prompts of the visit as left no more."""
        self._left[_kind(visit)] -= visit.left

    def _pace(self, kind: _Kind) -> float:
        """Return the median seconds per prompt of this kind, or of the most similar ones.

        A mean would not do: the first visit of a data set may read references for all plans.
        """
        for shared in range(len(kind), -1, -1):
            found = [one for one in self._done if one[0][:shared] == kind[:shared]]
            if found:
                _, paces, prompts = zip(*found, strict=True)
                half = numpy.quantile(paces, 0.5, weights=prompts, method="inverted_cdf")
                return float(half)
        raise ValueError("no visit has been measured")


def _kind(visit: Visit) -> _Kind:
    """Return what decides how long a prompt takes, the greatest differences first."""
    run = visit.run.arguments
    decoder = run.measure.at_once, run.generation.generation_strategy
    return *decoder, run.is_teacher_forced, run.data.dataset
