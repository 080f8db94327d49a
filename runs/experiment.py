"""One run: plan, prompts and decoder in, samples and a log out."""

import dataclasses
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from command_line.errors import FailedError, reject
from models.loading import LoadedModel, load_model
from pruned_model import PruneModel, is_saved
from runs.calibration_texts import measurements
from runs.definition import RunDefinition
from runs.encoding import EncodedExample, encode_examples
from runs.forced_runs import PlainTextJob, measure_references
from runs.loop import Job, Turn, fill_log
from runs.measuring import measurement
from runs.plan_group import PlanGroup, Values
from runs.preparation import (
    check_batches,
    check_stop_token_ids,
    decide_plans,
    draft_vocabulary,
    fit_as_planned,
    prune,
    report,
    save_as_asked,
)
from runs.record import RUN, LogKind, RunRecord, SampleRecord
from runs.writer import LogWriter, claimed, done_indices, resume

Prepare = Callable[[RunDefinition, RunRecord | None], tuple[LoadedModel, PruneModel]]
# Reads the indices of the examples that the log has; all processes call it together.
Done = Callable[[], Collection[int]]
Begin = Callable[[LoadedModel, PruneModel, list[EncodedExample], Done], Job]


def perform_run(
    definition: RunDefinition,
    command: str,
    prepare: Prepare | None = None,
    turn: Turn | None = None,
    group: PlanGroup | None = None,
) -> tuple[RunRecord, Path]:
    """Load, prune, decode, measure and log; return the run's record and its file.

    `prepare` returns the model; by default the run loads its own. `turn` says which passes over
    the prompts to do; by default all. `group` are the plans of a sweep whose references are
    measured together. Raises `UsageError` for a run that is complete with fewer passes than
    `--repeats`.
    """
    turn = turn or Turn(definition.arguments.measure.repeats)

    def begin(
        loaded: LoadedModel,
        pruned: PruneModel,
        encoded: list[EncodedExample],
        done: Done,
    ) -> Job:
        def forced() -> dict[int, Values]:
            return measure_references(definition, loaded, pruned, encoded, done(), group)

        job = _begin(definition, command, loaded, pruned, encoded, forced)
        return dataclasses.replace(job, turn=turn)

    check_left = partial(check_repeats, definition)
    return work_once(definition, RUN, prepare or load_and_prune, begin, check_left)


def check_repeats(definition: RunDefinition, left: RunRecord) -> None:
    """Raise `UsageError` if the run is complete with fewer passes than the flags ask for.

    Passes that are added on another day would not tell how much the speed varies on one.
    """
    asked = definition.arguments.measure.repeats
    if left.is_complete and left.passes < asked:
        passes = "1 pass" if left.passes == 1 else f"{left.passes} passes"
        allowed = f"run {left.run_id} was finished with {passes}; use another --output_dir"
        reject("repeats", asked, allowed)


def _begin(
    definition: RunDefinition,
    command: str,
    loaded: LoadedModel,
    pruned: PruneModel,
    encoded: list[EncodedExample],
    measure: Callable[[], dict[int, Values]],
) -> Job[SampleRecord]:
    """Return the run's job, after the teacher-forced passes that need the unpruned model.

    `measure` makes these passes.
    """
    arguments = definition.arguments
    if arguments.is_plain_text:
        return PlainTextJob(definition, command, loaded, pruned, encoded).job()
    forced = None
    if arguments.is_teacher_forced:
        # Refuse flags that decoding would refuse before these passes take their time.
        check_stop_token_ids(arguments.generation, loaded.config.vocab_size)
        check_batches(arguments.measure.at_once, loaded)
        forced = measure()
        pruned.release()
    return measurement(definition, command, loaded, pruned, encoded, forced)


def work_once(
    definition: RunDefinition,
    kind: LogKind,
    prepare: Prepare,
    begin: Begin,
    check_left: Callable[[RunRecord], None] | None = None,
) -> tuple[RunRecord, Path]:
    """Prepare the model, begin the job, obey `--save_pruned`, and fill the job's log.

    Returns the log's record and its file. A log that an earlier start left is continued, and
    `begin` can read the indices of its lines; a complete log is returned as it is. Several
    processes share the examples, and an error in one is raised in all. `check_left` raises for a
    log that this start must not continue.
    """
    ranks, output_dir = definition.runtime.ranks, definition.arguments.log.output_dir
    with ranks.together():
        check_alike(definition)
        with claimed(output_dir, definition.run_id, ranks, kind) as found:
            left = found[0] if found else None
            if left:
                # They are equal, except that JSON readers round integers beyond 64 bits (a seed).
                left.identity = definition.identity
            if left and check_left:
                check_left(left)
            if found and ranks.first(ranks.leads and _is_over(definition, found[0])):
                print(f"run {definition.run_id} is complete; another --output_dir runs it again")
                return found
            loaded, pruned = prepare(definition, left)
            encoded = encode_examples(definition)

            def done() -> list[int]:
                return ranks.first(done_indices(found[1], kind) if found and ranks.leads else [])

            job = begin(loaded, pruned, encoded, done)  # refuses flags that do not fit the model
            save_as_asked(definition.arguments.prune, loaded, pruned, ranks)
            record = resume(left, job.record, job.turn.continues) if left else job.record
            definition.runtime.reset_peak_memory()
            writer: LogWriter = LogWriter(output_dir, record, ranks, kind)
            fill_log(writer, ranks, len(encoded), job)
            return writer.record, writer.path


def check_alike(definition: RunDefinition) -> None:
    """Raise `FailedError` if processes are about to run different things."""
    first, *others = definition.runtime.ranks.exchange(definition.identity)
    for rank, other in enumerate(others, start=1):
        names = [name for name in first | other if first.get(name) != other.get(name)]
        if names:
            differ = f"processes 0 and {rank} differ in {', '.join(names)}"
            raise FailedError(f"torchrun: {differ}; all machines need the same files and devices")


def _is_over(definition: RunDefinition, left: RunRecord) -> bool:
    """Return whether an earlier start has done all that the flags ask for."""
    if not left.is_complete:
        return False
    folder = definition.arguments.prune.save_pruned
    return folder is None or is_saved(folder, left.prune_plan(), definition.checkpoint.fingerprint)


def load_and_prune(
    definition: RunDefinition, left: RunRecord | None
) -> tuple[LoadedModel, PruneModel]:
    """Return the run's model with its layers removed; a run that is resumed keeps its plans."""
    arguments = definition.arguments
    loaded = load_model(arguments.model, definition.runtime, definition.checkpoint)
    releases = not arguments.is_teacher_forced
    measured = measurements(
        arguments.calibrating, loaded, definition.calibration_ids, definition.runtime.ranks
    )
    if left:
        plans = left.prune_plan(), left.drafter_plan()
    else:
        plans = decide_plans(arguments.prune, arguments.drafting, measured)
    vocabulary = draft_vocabulary(arguments.draft, loaded, measured)
    fit = partial(fit_as_planned, measured)
    pruned = prune(arguments.prune, arguments.generation, loaded, plans, fit, releases)
    pruned.draft_vocabulary = vocabulary
    print(report(pruned))
    return loaded, pruned
