"""Planner: the plans of a sweep's runs."""

from collections import defaultdict
from collections.abc import Iterable

from arguments.pruning import PruneArguments
from files.hashes import tokens_hash
from models.loading import LoadedModel
from processes.ranks import Ranks
from pruned_model import make_plan
from pruning.measurements import Measurements
from pruning.patch import Patches
from pruning.plan import PrunePlan
from runs.calibration_texts import measurements
from runs.definition import RunDefinition
from runs.preparation import draft_vocabulary, fit_as_planned

_Texts = tuple[str | None, str, int | None]


class Planner:
    """Decides the plans of runs for a loaded model, and measures the same texts once for all.

    `patches` holds the patches fitted so far, by their plans' keys, and `vocabularies` the draft
    vocabularies chosen so far, by the ids of their runs.
    """

    def __init__(self, loaded: LoadedModel, ranks: Ranks, runs: Iterable[RunDefinition]) -> None:
        self._loaded, self._ranks = loaded, ranks
        self.patches: Patches = {}
        self.vocabularies: dict[str, tuple[int, ...]] = {}
        self._measured: dict[_Texts, Measurements] = {}
        self._needed: dict[_Texts, set[str]] = defaultdict(set)
        for run in runs:
            pruning = run.arguments.prune
            self._needed[_texts(pruning, run.calibration_ids)].add(pruning.prune_method)

    def plan(self, run: RunDefinition) -> PrunePlan:
        return make_plan(run.arguments.prune, self._measurements(run))

    def fit(self, run: RunDefinition, plan: PrunePlan) -> None:
        """Fit the plan's patch, unless it has none or a plan with the same key has it."""
        if plan.patch and plan.key not in self.patches:
            found = fit_as_planned(self._measurements(run), plan)
            assert found
            self.patches[plan.key] = found

    def choose_vocabulary(self, run: RunDefinition) -> None:
        """Choose the draft vocabulary of a run with `--draft_vocab`."""
        measured = self._measurements(run, run.arguments.calibrating)
        found = draft_vocabulary(run.arguments.draft, self._loaded, measured)
        assert found
        self.vocabularies[run.run_id] = found

    def _measurements(
        self, run: RunDefinition, pruning: PruneArguments | None = None
    ) -> Measurements:
        pruning, ids = pruning or run.arguments.prune, run.calibration_ids
        texts = _texts(pruning, ids)
        if texts not in self._measured:
            needed = self._needed[texts]
            found = measurements(pruning, self._loaded, ids, self._ranks, needed)
            self._measured[texts] = found
        return self._measured[texts]


def _texts(pruning: PruneArguments, ids: list[list[int]] | None) -> _Texts:
    """Return what decides the calibration texts."""
    tokens = None if ids is None else tokens_hash(ids)
    return tokens, pruning.calibration_text, pruning.calibration_steps
