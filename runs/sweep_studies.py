"""The runs of each plan of a sweep on each data set."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from arguments.run import RunArguments
from command_line.errors import UsageError, reject
from pruning.plan import PrunePlan, check_prune_layers, check_prune_n
from runs.definition import RunDefinition
from runs.sweep_flags import GridArguments
from runs.sweep_grid import SweepArguments


@dataclass(frozen=True)
class Planned:
    """The first run of a plan on a data set, and the plan; None where no log knows it yet."""

    run: RunDefinition
    plan: PrunePlan | None


@dataclass(frozen=True)
class Study:
    """One plan on one data set: the run of its quality if there is one, the baseline, the drafts.

    `skipped` holds a line for each drafter of the grid that cannot draft. `draft_plans` are the
    plans of pruned drafters, by the ids of their runs.
    """

    plan: PrunePlan
    runs: list[RunDefinition]
    skipped: list[str] = field(default_factory=list)
    draft_plans: dict[str, PrunePlan] = field(default_factory=dict)

    @property
    def drafts(self) -> bool:
        """Whether a run decodes speculatively."""
        flags = (run.arguments.generation for run in self.runs)
        return any(one.generation_strategy == "self_speculative" for one in flags)

    @property
    def name(self) -> str:
        return f"{self.runs[0].arguments.data.dataset}, {self.plan.approach}"


class Studies:
    """Makes the studies of a grid for a model with so many layers."""

    def __init__(
        self,
        arguments: SweepArguments,
        layers: int,
        define: Callable[[RunArguments], RunDefinition],
    ) -> None:
        self._arguments, self._layers, self._define = arguments, layers, define

    def study(self, first: Planned, all_planned: Iterable[Planned]) -> Study:
        """Return the runs of a plan that follow from its first run.

        An unknown plan counts as the whole model. The unpruned model also drafts with every plan of
        its data set among `all_planned`.
        """
        arguments = first.run.arguments
        plan = first.plan or PrunePlan("base", self._layers, tuple(range(self._layers)))
        study = Study(plan, [first.run])
        baseline = self._arguments.baseline(arguments)
        if baseline is None:
            return study
        if baseline is not arguments:
            study.runs.append(self._define(baseline))
        study.runs.extend(map(self._define, self._arguments.layerless(baseline)))
        if self._arguments.has_drafter("exit_layer"):
            self._add_early_exits(study, baseline)
        if self._arguments.has_drafter("plan") and arguments.prune.prune_method == "base":
            for other in all_planned:
                if other.run.arguments.data.dataset == arguments.data.dataset:
                    self._add_pruned_drafts(study, baseline, other)
        return study

    def _add_early_exits(self, study: Study, baseline: RunArguments) -> None:
        for exit_layer in self._arguments.grid.exit_layers(self._layers):
            try:
                study.plan.kept_exit_layer(exit_layer)
            except UsageError as error:
                study.skipped.append(str(error))
                continue
            study.runs.extend(map(self._define, self._arguments.speculative(baseline, exit_layer)))

    def _add_pruned_drafts(self, study: Study, baseline: RunArguments, drafter: Planned) -> None:
        pruning, plan = drafter.run.arguments.prune, drafter.plan
        own = self._arguments.baseline(drafter.run.arguments)
        if pruning.prune_method == "base" or own is None:
            return
        if plan and not plan.removed_layers:
            study.skipped.append(f"pruned draft {plan.approach}: keeps every layer")
            return
        for run in map(self._define, self._arguments.pruned_drafts(baseline, own.prune)):
            study.runs.append(run)
            if plan:
                study.draft_plans[run.run_id] = plan


def check_grid(grid: GridArguments, layers: int) -> None:
    """Refuse a grid that a model with so many layers does not have."""
    if not any(layer < layers for layer in grid.exit_layers(layers)):
        first = grid.exit_layer_first
        reject("exit_layer_first", first, f"must be 1 to {layers - 1}; the model has {layers}")
    for count in grid.prune_ns:
        check_prune_n("prune_ns", count, layers)
    for text in grid.prune_layers:
        check_prune_layers(text, layers)


def skipped_lines(studies: Iterable[Study]) -> Iterator[str]:
    """Yield a line for each drafter that cannot draft."""
    for one in studies:
        for reason in one.skipped:
            yield f"skipped: {one.name}, {reason}"
