"""Performs the runs of a sweep with one model, loaded once and pruned plan by plan."""

import dataclasses
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from arguments.run import RunArguments
from command_line.errors import (
    BusyError,
    FailedError,
    InterruptedRunError,
    LostError,
    UsageError,
    is_out_of_memory,
    reject,
)
from files.error_lines import error_line
from files.writing import held_folder
from models.checkpoint import find_checkpoint
from models.loading import LoadedModel, load_model
from models.runtime import start
from processes.ranks import Ranks
from pruned_model import PruneModel
from pruning.plan import PrunePlan, check_prune_n
from runs.definition import RunDefinition, run_definer
from runs.experiment import Prepare, perform_run
from runs.plan_group import PlanGroup, plan_groups
from runs.record import RunRecord
from runs.sweep_grid import GridArguments, SweepArguments
from runs.sweep_outcome import Outcome
from runs.sweep_planner import Planner
from runs.sweep_states import Pace, RunState, Visit, state_of, visits
from runs.sweep_tries import MOST_TRIES, Tries, ends_the_device
from runs.writer import lock_name

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Study:
    """One plan on one data set: the run of its quality if there is one, the baseline, the drafts.

    `skipped` holds a line for each exit layer of the grid that cannot draft.
    """

    plan: PrunePlan
    runs: list[RunDefinition]
    skipped: list[str]

    @property
    def drafts(self) -> bool:
        """Whether a run decodes speculatively."""
        return any(run.arguments.generation.exit_layer != -1 for run in self.runs)

    @property
    def name(self) -> str:
        return f"{self.runs[0].arguments.data.dataset}, {self.plan.approach}"


class Sweep:
    """The runs of a grid, defined before the weights are read.

    Raises `UsageError` where the model has no such grid, or no run can be defined.
    """

    def __init__(self, arguments: SweepArguments, ranks: Ranks) -> None:
        self._arguments, self._ranks = arguments, ranks
        self._outcome, self._tries = Outcome(), Tries(writes=False)
        self._begun: set[str] = set()  # runs that this process will visit again
        self._over: set[str] = set()  # runs that it will not
        with ranks.together():
            start(arguments.model, parallel=True)
            self._layers = find_checkpoint(arguments.model).config.num_hidden_layers
            _check_grid(arguments.grid, self._layers)
        self._define_run = run_definer()
        runs = ((run, run) for run in arguments.first_runs())
        self._first_runs = self._each(runs, self._defined)

    def _defined(self, run: RunArguments) -> RunDefinition:
        self._arguments.check_run(run)
        return self._define_run(run)

    def states(self) -> list[RunState]:
        """Return what is left of each run. The plans come from logs: no weights are read."""
        failed = self._outcome.failed
        return self._all_states() + [
            RunState(name, "error", [], remark=str(error)) for name, error in failed
        ]

    def run(self, command: str) -> Outcome:
        """Perform each run that is not complete yet; a run that fails stops no other.

        Raises `FailedError` for a device error, after which this process can perform no run.
        """
        with self._ranks.together():  # all have read the file of tries before a run begins
            self._tries = Tries(self._ranks.leads)
            states = self._all_states()
            is_over = self._ranks.first(all(state.state == "complete" for state in states))
            if not is_over:
                self._check_free(states)
        if is_over:
            self._take(states)
            print("no run is left; another --output_dir performs them again")
            return self._outcome
        try:
            first = self._first_runs[0]
            with self._ranks.together():
                loaded = load_model(first.arguments.model, first.runtime, first.checkpoint)
            studies = self._studies(Planner(loaded, self._ranks, self._first_runs))
            self._perform_all(loaded, studies, command)
        except Exception as error:
            if not ends_the_device(error):
                raise
            rest = "the device is lost to this process; run_tests goes on with the rest"
            raise FailedError(f"{error_line(error)}: {rest}") from error
        return self._outcome

    def _check_free(self, states: list[RunState]) -> None:
        """Raise `BusyError` before the weights take memory, if `run_tests` would wait anyway."""
        if not (self._tries.counts and self._ranks.leads):
            return
        first = next((one for one in states if one.state in ("missing", "partial")), None)
        if first and first.run_id:
            folder = self._arguments.log.output_dir
            with held_folder(folder, lock_name(first.run_id), f"is at work on {first.run_id}"):
                pass

    def _take(self, states: list[RunState]) -> None:
        """Make the outcome that of runs which are all complete."""
        for state in states:
            if state.record:
                self._outcome.add(state.record, Path(state.remark))
        self._outcome.count = len(states) + len(self._outcome.failed)

    def _all_states(self) -> list[RunState]:
        return [state for one in self._first_runs for state in self._states(one)]

    def _states(self, first: RunDefinition) -> list[RunState]:
        """Return the states of a plan's runs; an unknown plan counts as the whole model."""
        state = state_of(first)
        whole = PrunePlan("base", self._layers, tuple(range(self._layers)))
        runs, _ = self._others(first.arguments, state.plan or whole)
        return [state, *map(state_of, runs)]

    def _others(
        self, first: RunArguments, plan: PrunePlan
    ) -> tuple[list[RunDefinition], list[str]]:
        """Return the plan's other runs, and why the other exit layers of the grid cannot draft."""
        skipped: list[str] = []
        baseline = self._arguments.baseline(first)
        if baseline is None:
            return [], skipped
        runs = [] if baseline is first else [self._define_run(baseline)]
        for exit_layer in self._arguments.grid.exit_layers(self._layers):
            try:
                plan.kept_exit_layer(exit_layer)
            except UsageError as error:
                skipped.append(str(error))
                continue
            drafting = self._arguments.speculative(baseline, exit_layer)
            runs += map(self._define_run, drafting)
        return runs, skipped

    def _studies(self, planner: Planner) -> list[Study]:
        def study(first: RunDefinition) -> Study:
            if self._tries.exhausted(first.run_id):
                raise _given_up()
            self._tries.begin(first.run_id)
            plan = planner.plan(first)
            self._tries.end()
            runs, skipped = self._others(first.arguments, plan)
            return Study(plan, [first, *runs], skipped)

        studies = self._each(((one.arguments, one) for one in self._first_runs), study)
        for one in studies:
            for reason in one.skipped:
                print(f"skipped: {one.name}, {reason}")
        skipped = [reason for one in studies for reason in one.skipped]
        with self._ranks.together():
            if skipped and not any(one.drafts for one in studies):
                first = self._arguments.grid.exit_layer_first
                reject("exit_layer_first", first, skipped[0])
        return studies

    def _each(
        self, items: Iterable[tuple[RunArguments, _Item]], work: Callable[[_Item], _Made]
    ) -> list[_Made]:
        """Return the results of all items that succeed, and note the errors of the others.

        Raises the first error where no item succeeds.
        """
        results = []
        for run, item in items:
            try:
                with self._ranks.together():
                    result = work(item)
            except (InterruptedRunError, LostError):
                raise  # not all processes will go on
            except Exception as error:
                self._note(run, error)
            else:
                results.append(result)
        if not results:
            raise self._outcome.failed[0][1]
        return results

    def _perform_all(self, loaded: LoadedModel, studies: list[Study], command: str) -> None:
        visits_of = self._visits(studies)
        count = sum(len(study.runs) for study in studies)
        self._outcome.count = count + len(self._outcome.failed)
        pace = Pace(count, sum(visit.left for one in visits_of for visit in one))
        groups = self._groups(studies, visits_of)
        for study, to_do in zip(studies, visits_of, strict=True):
            pruned = PruneModel(loaded.model, study.plan)

            def prepare(
                run: RunDefinition, left: RunRecord | None, pruned: PruneModel = pruned
            ) -> tuple[LoadedModel, PruneModel]:
                _check_same_plan(run, left, pruned.plan)
                return loaded, pruned

            with pruned.for_a_while():
                print(pruned.report())
                for visit in to_do:
                    if visit.run.run_id in self._over:
                        pace.skip(visit)
                        continue
                    with pace.told(visit):
                        placed = dataclasses.replace(visit, run=_placed(visit.run, pruned))
                        self._perform(placed, prepare, command, groups)
                    if self._outcome.interrupted:
                        return

    def _visits(self, studies: list[Study]) -> list[list[Visit]]:
        """Return the visits to the runs of each study, the same in all processes."""
        runs = [run for study in studies for run in study.runs]
        with self._ranks.together():
            left = self._ranks.first([state_of(run).left_by_pass for run in runs])
        found, first = [], 0
        for study in studies:
            end = first + len(study.runs)
            found.append(list(visits(study.runs, left[first:end], first)))
            first = end
        return found

    def _groups(self, studies: list[Study], visits_of: list[list[Visit]]) -> dict[str, PlanGroup]:
        """Return the plans that are measured together, by the ids of their runs.

        A run that ended its process is measured alone: it must not end other runs' process again.
        """
        pairs = zip(studies, visits_of, strict=True)
        beginning = (
            (visit.run, study.plan) for study, to_do in pairs for visit in to_do if visit.begins
        )
        return plan_groups(pair for pair in beginning if not self._tries.lost(pair[0].run_id))

    def _perform(
        self,
        visit: Visit,
        prepare: Prepare,
        command: str,
        groups: dict[str, PlanGroup],
    ) -> None:
        run = visit.run
        if self._tries.exhausted(run.run_id):
            self._over.add(run.run_id)
            self._outcome.fail(run.arguments, _given_up())
            return
        turn = dataclasses.replace(visit.turn, continues=run.run_id in self._begun)
        self._tries.begin(run.run_id)
        try:
            record, path = perform_run(run, command, prepare, turn, groups.get(run.run_id))
        except (InterruptedRunError, LostError):
            raise  # not all processes will go on
        except Exception as error:
            self._over.add(run.run_id)
            self._note(run.arguments, error)
            print(f"failed: {self._outcome.failed[-1][1]}")
        else:
            self._tries.end()
            if record.status == "running":
                self._begun.add(run.run_id)
            else:
                self._over.add(run.run_id)
                self._outcome.add(record, path)

    def _note(self, run: RunArguments, error: Exception) -> None:
        """Note that a run failed, or raise an error after which no other run can go on."""
        if ends_the_device(error) or (self._ranks.count > 1 and not isinstance(error, UsageError)):
            raise error
        self._tries.end()
        if isinstance(error, BusyError) and self._tries.counts:
            raise error  # run_tests waits: two runs at a time would spoil each other's speed
        self._outcome.fail(run, _in_one_line(error))


def _given_up() -> FailedError:
    return FailedError(f"given up: its process died with it {MOST_TRIES} times")


def _in_one_line(error: Exception) -> UsageError:
    """Return the error as a user's; show the frames of an unexpected error."""
    if isinstance(error, UsageError):
        return error
    if is_out_of_memory(error):
        return FailedError(f"out of memory ({error_line(error)})")
    traceback.print_exception(error)
    return FailedError(error_line(error))


def _placed(run: RunDefinition, pruned: PruneModel) -> RunDefinition:
    """Return the run, marked where removed layers still share the memory of its model."""
    holds_more = bool(pruned.plan.removed_layers) and not pruned.frees_memory
    runtime = dataclasses.replace(run.runtime, holds_more=holds_more)
    return dataclasses.replace(run, runtime=runtime)


def _check_same_plan(run: RunDefinition, left: RunRecord | None, plan: PrunePlan) -> None:
    """Refuse to go on with a run that another plan began, as distances that tie may decide."""
    if left is None:
        return
    began = left.prune_plan()
    if began.kept_layers != plan.kept_layers:
        reject(
            "output_dir",
            run.arguments.log.output_dir,
            f"run {left.run_id} was begun with layers {list(began.removed_layers)} removed, "
            f"where now {list(plan.removed_layers)} are; move its two files away to begin anew",
        )


def _check_grid(grid: GridArguments, layers: int) -> None:
    """Refuse a grid that a model with so many layers does not have."""
    if not any(layer < layers for layer in grid.exit_layers(layers)):
        first = grid.exit_layer_first
        reject("exit_layer_first", first, f"must be 1 to {layers - 1}; the model has {layers}")
    for count in grid.prune_ns:
        check_prune_n("prune_ns", count, layers)
