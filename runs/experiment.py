"""One run: plan, prompts and decoder in, samples and a log out."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from command_line.errors import FailedError
from models.loading import LoadedModel, load_model
from pruned_model import PruneModel, PrunePlan, is_saved
from runs.definition import RunDefinition
from runs.encoding import encode_examples
from runs.measuring import generator_for, make_record, measure
from runs.preparation import (
    decide_plan,
    prune,
    save_as_asked,
)
from runs.record import RunRecord
from runs.writer import RunWriter, claimed, find_run, resume

_Made = TypeVar("_Made")


Prepare = Callable[[RunDefinition, RunRecord | None], tuple[LoadedModel, PruneModel]]


def perform_run(
    definition: RunDefinition, command: str, prepare: Prepare | None = None
) -> tuple[RunRecord, Path]:
    """Loads, prunes, decodes, measures and logs; returns the run and its file.

    A run that an earlier start broke off goes on where it stopped, and one that is complete is
    returned as it is. `prepare` yields the model where it is not loaded for this run alone.
    Of several processes, each does its share of the examples, and what goes wrong in one is raised
    in all.
    """
    ranks = definition.runtime.ranks
    with ranks.together():
        check_alike(definition)
        output_dir = definition.arguments.log.output_dir
        with claimed(output_dir, definition.run_id, ranks) as left:
            if ranks.first(ranks.leads and _is_over(definition, left)):
                print(f"run {left.run_id} is complete; another --output_dir runs it again")
                found = ranks.first(ranks.leads and str(find_run(output_dir, definition.run_id)))
                return left, Path(found)
            loaded, pruned = (prepare or load_and_prune)(definition, left)
            writer = _measured(definition, loaded, pruned, left, command)
            return writer.record, writer.path


def check_alike(definition: RunDefinition) -> None:
    """Raises `FailedError` where processes are about to run different things."""
    first, *others = definition.runtime.ranks.exchange(definition.identity)
    for rank, other in enumerate(others, start=1):
        names = [name for name in first | other if first.get(name) != other.get(name)]
        if names:
            differ = f"processes 0 and {rank} differ in {', '.join(names)}"
            raise FailedError(f"torchrun: {differ}; all machines need the same files and devices")


def _is_over(definition: RunDefinition, left: RunRecord | None) -> bool:
    """Whether an earlier start has done all that is asked for."""
    if left is None or left.status != "complete":
        return False
    folder = definition.arguments.prune.save_pruned
    plan = PrunePlan.from_dict(left.plan)
    return folder is None or is_saved(folder, plan, definition.checkpoint.fingerprint)


def _measured(
    definition: RunDefinition,
    loaded: LoadedModel,
    pruned: PruneModel,
    left: RunRecord | None,
    command: str,
) -> RunWriter:
    encoded = encode_examples(definition)
    generator = generator_for(definition, loaded, pruned.plan, encoded)
    if definition.runtime.ranks.leads:
        save_as_asked(definition.arguments.prune, loaded, pruned)
    record = make_record(definition, loaded, pruned.plan, command)
    record.runtime["compile_seconds"] = generator.engine.compile_seconds
    return measure(definition, generator, encoded, resume(left, record) if left else record)


def load_and_prune(
    definition: RunDefinition, left: RunRecord | None = None
) -> tuple[LoadedModel, PruneModel]:
    """Return the run's model with its layers removed; a run that is resumed keeps its plan."""
    arguments = definition.arguments
    loaded = load_model(arguments.model, definition.runtime, definition.checkpoint)
    if left:
        plan = PrunePlan.from_dict(left.plan)
    else:
        ranks = definition.runtime.ranks
        plan = decide_plan(arguments.prune, loaded, definition.calibration_ids, ranks)
    pruned = prune(arguments.prune, arguments.generation, loaded, plan)
    print(pruned.report())
    return loaded, pruned
