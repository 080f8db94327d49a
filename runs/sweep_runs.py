"""Performs the runs of a sweep with one model, loaded once and pruned plan by plan."""

import dataclasses
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import chain
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
from pruning.patch import Patches
from pruning.plan import PlanKey, PrunePlan
from runs.definition import RunDefinition, run_definer
from runs.experiment import Prepare, perform_run
from runs.plan_group import PlanGroup, plan_groups
from runs.record import RunRecord
from runs.sweep_grid import SweepArguments
from runs.sweep_outcome import Outcome
from runs.sweep_planner import Planner
from runs.sweep_states import Pace, RunState, Visit, state_of, visits
from runs.sweep_studies import Planned, Studies, Study, check_grid, skipped_lines
from runs.sweep_tries import MOST_TRIES, Tries, ends_the_device
from runs.writer import lock_name

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


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
            layers = find_checkpoint(arguments.model).config.num_hidden_layers
            check_grid(arguments.grid, layers)
        self._define_run = run_definer()
        self._make = Studies(arguments, layers, self._define_run)
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
            planner = Planner(loaded, self._ranks, self._first_runs)
            studies = self._studies(planner)
            with self._ranks.together():
                self._count_tokens(planner, studies)
            self._perform_all(loaded, studies, planner, command)
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
        """Return the states of all runs; a plan that no log knows counts as the whole model."""
        firsts = [state_of(first) for first in self._first_runs]
        pairs = zip(self._first_runs, firsts, strict=True)
        planned = [Planned(first, state.plan) for first, state in pairs]
        states = []
        for one, first in zip(planned, firsts, strict=True):
            states += [first, *map(state_of, self._make.study(one, planned).runs[1:])]
        return states

    def _studies(self, planner: Planner) -> list[Study]:
        """Return the studies of all plans that can be decided; a failure is noted."""

        def planned(first: RunDefinition) -> Planned:
            if self._tries.exhausted(first.run_id):
                raise _given_up()
            self._tries.begin(first.run_id)
            plan = planner.plan(first)
            self._tries.end()
            return Planned(first, plan)

        decided = self._each(((one.arguments, one) for one in self._first_runs), planned)
        decided = self._fitted(planner, decided)
        studies = self._each(
            ((one.run.arguments, one) for one in decided),
            lambda one: self._make.study(one, decided),
        )
        for line in skipped_lines(studies):
            print(line)
        skipped = [reason for one in studies for reason in one.skipped]
        with self._ranks.together():
            exits = self._arguments.has_drafter("exit_layer")
            if skipped and exits and not any(study.drafts for study in studies):
                reject("exit_layer_first", self._arguments.grid.exit_layer_first, skipped[0])
        return studies

    def _fitted(self, planner: Planner, decided: list[Planned]) -> list[Planned]:
        """Fit the patches of plans that a run still needs; return the plans without a failure."""
        with self._ranks.together():
            needed = self._ranks.first(self._needed_patches(decided) if self._ranks.leads else [])

        def fitted(one: Planned) -> Planned:
            if one.run.run_id in needed and one.plan:
                self._tries.begin(one.run.run_id)
                planner.fit(one.run, one.plan)
                self._tries.end()
            return one

        return self._each(((one.run.arguments, one) for one in decided), fitted)

    def _needed_patches(self, decided: list[Planned]) -> list[str]:
        """Return the first runs of patched plans by which an incomplete run decodes or drafts."""
        patched = [one for one in decided if one.plan and one.plan.patch]
        if not patched:
            return []
        keys: set[PlanKey] = set()
        for study in (self._make.study(one, decided) for one in decided):
            for run in study.runs:
                if state_of(run).state != "complete":
                    plans = study.plan, study.draft_plans.get(run.run_id)
                    keys |= {plan.key for plan in plans if plan}
        return [one.run.run_id for one in patched if one.plan and one.plan.key in keys]

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

    def _count_tokens(self, planner: Planner, studies: list[Study]) -> None:
        """Decide the draft vocabularies of runs that are not complete, while the model is whole."""
        runs = [run for study in studies for run in study.runs]
        counting = [run for run in runs if run.arguments.draft.draft_vocab is not None]
        left = [run.run_id for run in counting if state_of(run).state != "complete"]
        needed = self._ranks.first(left if self._ranks.leads else [])
        for run in counting:
            if run.run_id in needed:
                planner.choose_vocabulary(run)

    def _perform_all(
        self, loaded: LoadedModel, studies: list[Study], planner: Planner, command: str
    ) -> None:
        patches = planner.patches
        visits_of = self._visits(studies)
        count = sum(len(study.runs) for study in studies)
        self._outcome.count = count + len(self._outcome.failed)
        pace = Pace(count, chain.from_iterable(visits_of))
        groups = self._groups(studies, visits_of, patches)
        for study, to_do in zip(studies, visits_of, strict=True):
            pruned = PruneModel(loaded.model, study.plan, patches.get(study.plan.key))

            def prepare(
                run: RunDefinition,
                left: RunRecord | None,
                pruned: PruneModel = pruned,
                drafters: dict[str, PrunePlan] = study.draft_plans,
            ) -> tuple[LoadedModel, PruneModel]:
                drafter = drafters.get(run.run_id)
                pruned.draft_with(drafter, patches.get(drafter.key) if drafter else None)
                pruned.draft_vocabulary = planner.vocabularies.get(run.run_id)
                _check_same_plans(run, left, pruned)
                return loaded, pruned

            # Without its patch, a plan has only runs that are complete and need no model.
            needs_model = study.plan.patch is None or pruned.patch is not None
            with pruned.for_a_while() if needs_model else nullcontext():
                if needs_model:
                    print(pruned.report())
                for visit in to_do:
                    if visit.run.run_id in self._over:
                        pace.skip(visit)
                        continue
                    pace.begin(visit)
                    placed = dataclasses.replace(visit, run=_placed(visit.run, pruned))
                    pace.end(visit, self._perform(placed, prepare, command, groups))
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

    def _groups(
        self, studies: list[Study], visits_of: list[list[Visit]], patches: Patches
    ) -> dict[str, PlanGroup]:
        """Return the plans that are measured together, by the ids of their runs.

        A run that ended its process is measured alone: it must not end other runs' process again.
        """
        pairs = zip(studies, visits_of, strict=True)
        beginning = (
            (visit.run, study.plan) for study, to_do in pairs for visit in to_do if visit.begins
        )
        left = (pair for pair in beginning if not self._tries.lost(pair[0].run_id))
        return plan_groups(left, patches)

    def _perform(
        self,
        visit: Visit,
        prepare: Prepare,
        command: str,
        groups: dict[str, PlanGroup],
    ) -> bool:
        """Perform a visit and note how it ended; return whether it did without an error."""
        run = visit.run
        if self._tries.exhausted(run.run_id):
            self._over.add(run.run_id)
            self._outcome.fail(run.arguments, _given_up())
            return False
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
            return False
        self._tries.end()
        if record.status == "running":
            self._begun.add(run.run_id)
        else:
            self._over.add(run.run_id)
            self._outcome.add(record, path)
        return True

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


def _check_same_plans(run: RunDefinition, left: RunRecord | None, pruned: PruneModel) -> None:
    """Refuse to go on with a run that other plans began, as distances that tie may decide."""
    if left is None:
        return
    pairs = (left.prune_plan(), pruned.plan), (left.drafter_plan(), pruned.draft_plan)
    for began, plan in pairs:
        if began and plan and began.key != plan.key:
            reject(
                "output_dir",
                run.arguments.log.output_dir,
                f"run {left.run_id} was begun with layers {list(began.removed_layers)} removed, "
                f"where now {list(plan.removed_layers)} are, or with another patch; move its two "
                "files away to begin anew",
            )
