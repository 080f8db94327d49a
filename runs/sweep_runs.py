"""Runs the runs of a sweep with one model, loaded once and pruned plan by plan."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from arguments.run import RunArguments
from command_line.errors import (
    BusyError,
    FailedError,
    InterruptedRunError,
    LostError,
    UsageError,
    reject,
)
from command_line.messages import print_error
from files.hashes import tokens_hash
from models.loading import LoadedModel, load_model
from pruned_model import PruneModel, PrunePlan, check_prune_n, with_prune_n
from runs.definition import RunDefinition, run_definer
from runs.experiment import perform_run
from runs.preparation import decide_plan
from runs.record import RunRecord
from runs.sweep_grid import GridArguments, SweepArguments


@dataclass(frozen=True)
class Study:
    """One plan on one data set: its baseline, and the points of the grid that it allows.

    `skipped` says of every other exit layer why it cannot draft.
    """

    baseline: RunDefinition
    plan: PrunePlan
    speculative: list[RunArguments]
    skipped: list[str]

    @property
    def name(self) -> str:
        return f"{self.baseline.arguments.data.dataset}, {self.plan.approach}"


@dataclass
class Outcome:
    """The files of the runs that are complete, and what became of the others.

    Of complete ones, `short_of_memory` counts those that lack prompts for it.
    """

    paths: list[Path] = field(default_factory=list)
    failed: list[UsageError] = field(default_factory=list)
    short_of_memory: int = 0
    interrupted: bool = False


class SweepRunner:
    """The studies of a sweep, decided before the first is run."""

    def __init__(self, arguments: SweepArguments) -> None:
        self._arguments = arguments
        self._define_run = run_definer()
        baselines = [self._define_run(one) for one in arguments.baselines()]
        first = baselines[0]
        _check_grid(arguments.grid, first.checkpoint.config.num_hidden_layers)
        self._measured: dict[str, PrunePlan] = {}
        self._loaded = load_model(first.arguments.model, first.runtime, first.checkpoint)
        self.studies = [self._study(one) for one in baselines]
        if not any(study.speculative for study in self.studies):
            grid = arguments.grid
            reject("exit_layer_first", grid.exit_layer_first, self.studies[0].skipped[0])

    @property
    def count(self) -> int:
        return sum(1 + len(study.speculative) for study in self.studies)

    def run(self, command: str) -> Outcome:
        """Runs all runs that are not complete yet; a run that cannot run stops no other."""
        outcome = Outcome()
        for number, (name, run) in enumerate(self._cells(command), start=1):
            print(f"run {number} of {self.count}: {name}")
            try:
                record, path = run()
            except (InterruptedRunError, LostError):
                raise  # not all processes will go on
            except UsageError as error:
                print_error(error)
                outcome.failed.append(error)
                continue
            if record.status != "complete":
                outcome.interrupted = True
                break
            outcome.paths.append(path)
            outcome.short_of_memory += record.failed_prompts > 0
        return outcome

    def _study(self, baseline: RunDefinition) -> Study:
        arguments, model = baseline.arguments, self._loaded.model
        plan = self._plan(baseline)
        speculative, skipped = [], []
        for exit_layer in self._arguments.grid.exit_layers(model.config.num_hidden_layers):
            try:
                plan.kept_exit_layer(exit_layer)
            except UsageError as error:
                skipped.append(str(error))
                continue
            for drafts in self._arguments.grid.draft_lengths():
                speculative.append(self._arguments.speculative(arguments, exit_layer, drafts))
        return Study(baseline, plan, speculative, skipped)

    def _plan(self, baseline: RunDefinition) -> PrunePlan:
        """The plan of a run; texts that have calibrated one plan are not measured for another."""
        pruning, ids = baseline.arguments.prune, baseline.calibration_ids
        tokens = ids and tokens_hash(ids)
        if tokens in self._measured:
            return with_prune_n(self._measured[tokens], pruning.prune_n)
        plan = decide_plan(pruning, self._loaded, ids, baseline.runtime.ranks)
        if tokens:
            self._measured[tokens] = plan
        return plan

    def _cells(self, command: str) -> Iterator[tuple[str, Callable]]:
        """Every run with its name, while the model is pruned for it."""
        for study in self.studies:
            pruned = PruneModel(self._loaded.model, study.plan)
            with pruned.for_a_while():
                print(pruned.report())

                def prepare(
                    definition: RunDefinition, left: RunRecord | None, pruned: PruneModel = pruned
                ) -> tuple[LoadedModel, PruneModel]:
                    _check_same_plan(definition, left, pruned.plan)
                    return self._loaded, pruned

                for arguments in [study.baseline.arguments, *study.speculative]:
                    definition = self._placed(self._define_run(arguments), pruned)
                    yield (
                        _name(study, arguments),
                        lambda c=definition, p=prepare: perform_run(c, command, p),
                    )

    def _placed(self, definition: RunDefinition, pruned: PruneModel) -> RunDefinition:
        """The run, knowing whether removed layers still share the memory of its model."""
        holds_more = bool(pruned.plan.removed_layers) and not pruned.frees_memory
        runtime = dataclasses.replace(definition.runtime, holds_more=holds_more)
        return dataclasses.replace(definition, runtime=runtime)


def _check_same_plan(definition: RunDefinition, left: RunRecord | None, plan: PrunePlan) -> None:
    """Refuses to go on with a run that another plan began, as distances that tie may decide."""
    began = PrunePlan.from_dict(left.plan) if left else plan
    if began.kept_layers != plan.kept_layers:
        reject(
            "output_dir",
            definition.arguments.log.output_dir,
            f"run {left.run_id} was begun with layers {list(began.removed_layers)} removed, "
            f"where now {list(plan.removed_layers)} are; move its two files away to begin anew",
        )


def _check_grid(grid: GridArguments, layers: int) -> None:
    """Refuses what a model with so many layers has not, before its weights are read."""
    if not grid.exit_layers(layers):
        first = grid.exit_layer_first
        reject("exit_layer_first", first, f"must be 1 to {layers - 1}; the model has {layers}")
    for count in grid.prune_ns:
        check_prune_n("prune_ns", count, layers)


def _name(study: Study, arguments: RunArguments) -> str:
    flags = arguments.generation
    if flags.exit_layer == -1:
        return f"{study.name}, autoregressive"
    return f"{study.name}, exit layer {flags.exit_layer}, {flags.num_speculations} drafts"


def exit_code(outcome: Outcome) -> int:
    """That of the worst run: one that failed, one that lacks prompts, one that is held."""
    other = [error for error in outcome.failed if not isinstance(error, BusyError)]
    if other:
        return other[0].exit_code
    if outcome.short_of_memory:
        return FailedError.exit_code
    return BusyError.exit_code if outcome.failed else 0
