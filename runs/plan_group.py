"""PlanGroup: the plans of a sweep whose runs measure the same references."""

from collections import defaultdict
from collections.abc import Collection, Iterable

from pruning.patch import Patches
from pruning.plan import PlanKey, PrunePlan
from runs.definition import RunDefinition

Values = dict[str, float]


class PlanGroup:
    """Plans of one model whose runs, with the same flags, measure the same references.

    The first run that asks measures for all plans, so that the unpruned model and layers that plans
    share read each text once. Plans with the same key count as one. `patches` holds those of
    patched plans.
    """

    def __init__(self, plans: Iterable[PrunePlan], patches: Patches | None = None) -> None:
        self.patches = patches or {}
        self._waiting = {plan.key: plan for plan in plans}
        self._found: dict[PlanKey, dict[int, Values | None]] = {}

    def begin(self, plan: PrunePlan) -> list[PrunePlan]:
        """Note that a plan's run has begun; return its plan, and those whose runs have not."""
        self._waiting.pop(plan.key, None)
        return [plan, *self._waiting.values()]

    def add(self, plan: PrunePlan, values: dict[int, Values | None]) -> None:
        """Add what was measured, by the example's index; None where memory did not suffice."""
        self._found.setdefault(plan.key, {}).update(values)

    def known(self, plan: PrunePlan, indices: Collection[int]) -> dict[int, Values | None]:
        """Return what is known of a plan, for those of the examples of which anything is."""
        found = self._found.get(plan.key, {})
        return {index: found[index] for index in indices if index in found}


def plan_groups(
    runs: Iterable[tuple[RunDefinition, PrunePlan]], patches: Patches
) -> dict[str, PlanGroup]:
    """Return the group of each run that measures references, by the run's id.

    Runs on the same examples and prompts have one group.
    """
    members: dict[tuple[str, str], list[tuple[str, PrunePlan]]] = defaultdict(list)
    for run, plan in runs:
        if run.arguments.measure.teacher_forced:
            names = ("data_fingerprint", "prompt_tokens_fingerprint")
            data, prompts = (run.identity[name] for name in names)
            members[data, prompts].append((run.run_id, plan))
    groups: dict[str, PlanGroup] = {}
    for found in members.values():
        group = PlanGroup((plan for _, plan in found), patches)
        groups |= dict.fromkeys((run_id for run_id, _ in found), group)
    return groups
