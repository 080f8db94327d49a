"""Planner: the plans of a sweep's runs."""

from collections import defaultdict
from collections.abc import Iterable

from arguments.pruning import PruneArguments
from files.hashes import tokens_hash
from models.loading import LoadedModel
from processes.ranks import Ranks
from pruned_model import make_plan
from pruning.measurements import Measurements
from pruning.plan import PrunePlan
from runs.calibration_texts import measurements
from runs.definition import RunDefinition

_Texts = tuple[str | None, str, int | None]


class Planner:
    """Decides the plans of runs for a loaded model, and measures the same texts once for all."""

    def __init__(self, loaded: LoadedModel, ranks: Ranks, runs: Iterable[RunDefinition]) -> None:
        self._loaded, self._ranks = loaded, ranks
        self._measured: dict[_Texts, Measurements] = {}
        self._needed: dict[_Texts, set[str]] = defaultdict(set)
        for run in runs:
            pruning = run.arguments.prune
            self._needed[_texts(pruning, run.calibration_ids)].add(pruning.prune_method)

    def plan(self, run: RunDefinition) -> PrunePlan:
        pruning, ids = run.arguments.prune, run.calibration_ids
        texts = _texts(pruning, ids)
        if texts not in self._measured:
            needed = self._needed[texts]
            found = measurements(pruning, self._loaded, ids, self._ranks, needed)
            self._measured[texts] = found
        return make_plan(pruning, self._measured[texts])


def _texts(pruning: PruneArguments, ids: list[list[int]] | None) -> _Texts:
    """Return what decides the calibration texts."""
    tokens = None if ids is None else tokens_hash(ids)
    return tokens, pruning.calibration_text, pruning.calibration_steps
