"""Planner: the plans of a sweep's runs."""

from files.hashes import tokens_hash
from models.loading import LoadedModel
from processes.ranks import Ranks
from pruned_model import with_prune_n
from pruning.patch import Patches, state_width, with_patch
from pruning.plan import PrunePlan
from runs.definition import RunDefinition
from runs.preparation import calibration_prompts, decide_plan, fit_as_planned


class Planner:
    """Decides plans for a loaded model, and measures the same calibration texts once.

    `patches` holds the patches fitted so far, by their plans' keys.
    """

    def __init__(self, loaded: LoadedModel, ranks: Ranks) -> None:
        self._loaded, self._ranks = loaded, ranks
        self._measured: dict[str, PrunePlan] = {}
        self.patches: Patches = {}

    def plan(self, run: RunDefinition) -> PrunePlan:
        pruning, ids = run.arguments.prune, run.calibration_ids
        if not ids or pruning.prune_n is None or pruning.prune_method != "angular":
            return decide_plan(pruning, self._loaded, ids, self._ranks)
        tokens = tokens_hash(ids)
        if tokens in self._measured:
            plan = with_prune_n(self._measured[tokens], pruning.prune_n)
            return self._patched(plan, pruning.prune_patch, ids)
        plan = decide_plan(pruning, self._loaded, ids, self._ranks)
        self._measured[tokens] = plan
        return plan

    def fit(self, run: RunDefinition, plan: PrunePlan) -> None:
        """Fit the plan's patch, unless it has none or a plan with the same key has it."""
        if plan.patch and plan.key not in self.patches:
            found = fit_as_planned(self._loaded, plan, run.calibration_ids, self._ranks)
            assert found
            self.patches[plan.key] = found

    def _patched(self, plan: PrunePlan, kind: str, ids: list[list[int]]) -> PrunePlan:
        if kind == "none":
            return plan
        prompts = calibration_prompts(self._loaded, ids)
        return with_patch(plan, kind, prompts, state_width(self._loaded.model))
