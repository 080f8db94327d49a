"""Planner: the plans of a sweep's runs."""

from files.hashes import tokens_hash
from models.loading import LoadedModel
from processes.ranks import Ranks
from pruned_model import with_prune_n
from pruning.plan import PrunePlan
from runs.definition import RunDefinition
from runs.preparation import decide_plan


class Planner:
    """Decides plans for a loaded model, and measures the same calibration texts once."""

    def __init__(self, loaded: LoadedModel, ranks: Ranks) -> None:
        self._loaded, self._ranks = loaded, ranks
        self._measured: dict[str, PrunePlan] = {}

    def plan(self, run: RunDefinition) -> PrunePlan:
        pruning, ids = run.arguments.prune, run.calibration_ids
        if not ids or pruning.prune_n is None:
            return decide_plan(pruning, self._loaded, ids, self._ranks)
        tokens = tokens_hash(ids)
        if tokens in self._measured:
            return with_prune_n(self._measured[tokens], pruning.prune_n)
        plan = decide_plan(pruning, self._loaded, ids, self._ranks)
        self._measured[tokens] = plan
        return plan
