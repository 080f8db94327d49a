"""The states of a sweep's runs in an output folder, and the prompts that are left."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from arguments.run import RunArguments
from pruned_model import PrunePlan
from runs.definition import RunDefinition
from runs.reader import read_record, read_samples
from runs.record import RunRecord
from runs.writer import find_run


@dataclass(frozen=True)
class RunState:
    """A run of the grid: complete, partial, missing or error, and how many prompts are left.

    `remark` is the run's file, or the error. `plan` and `record` are those of the file.
    """

    name: str
    state: str
    left: int = 0
    run_id: str | None = None
    remark: str = ""
    plan: PrunePlan | None = None
    record: RunRecord | None = None


def run_name(run: RunArguments) -> str:
    """Return data set, plan and decoder in words."""
    pruning, flags = run.prune, run.generation
    asked = (pruning.prune_n, pruning.dropout_threshold, pruning.prune_seed)
    approach = PrunePlan(pruning.prune_method, 1, (0,), *asked).approach
    decoder = f"exit layer {flags.exit_layer}, {flags.num_speculations} drafts"
    if flags.generation_strategy == "autoregressive":
        decoder = "autoregressive"
    return f"{run.data.dataset}, {approach}, {decoder}"


def state_of(run: RunDefinition) -> RunState:
    """Return what the run's output folder holds of it."""
    state = partial(RunState, run_name(run.arguments), run_id=run.run_id)
    count = len(run.evaluated.examples)
    path = find_run(run.arguments.log.output_dir, run.run_id)
    if path is None:
        return state("missing", count)
    try:
        record = read_record(path)
        plan = record.prune_plan()
        is_over = record.status == "complete"
        left = 0 if is_over else count - len(read_samples(path))
    except (OSError, ValueError) as error:
        return state("error", remark=f"{path}: {error}")
    word = "complete" if is_over else "partial"
    return state(word, left, remark=str(path), plan=plan, record=record)


def listing(states: list[RunState]) -> Iterator[str]:
    """Yield a line for each run, and the sum."""
    for number, one in enumerate(states, start=1):
        place = f"{number:{len(str(len(states)))}}/{len(states)}"
        yield f"{place}  {one.state:9} {one.name}" + (f": {one.remark}" if one.remark else "")
    left = [one for one in states if one.state != "complete"]
    yield f"{len(left)} of {len(states)} runs and {sum(one.left for one in left)} prompts are left"


def paced(runs: list[RunDefinition]) -> Iterator[RunDefinition]:
    """Yield each run after a line that tells how many prompts are left, and for how long."""
    left = [state_of(run).left for run in runs]
    prompts, seconds = 0, 0.0
    for number, run in enumerate(runs):
        rest = sum(left[number:])
        line = f"run {number + 1} of {len(runs)}: {run_name(run.arguments)}; {rest} prompts left"
        if prompts:
            hours, minutes = divmod(round(rest * seconds / prompts / 60), 60)
            line += f", about {hours}:{minutes:02} h"
        print(line)
        started = time.monotonic()
        yield run
        if left[number]:
            prompts += left[number]
            seconds += time.monotonic() - started
