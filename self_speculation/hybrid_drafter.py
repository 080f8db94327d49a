"""HybridDrafter: looks up where the match is long enough, and otherwise asks another drafter."""

import dataclasses

from self_speculation.drafter import Draft, Drafter, DraftSetting, Pick
from self_speculation.lookup_drafter import LookupDrafter


class HybridDrafter(Drafter):
    """Lookup for a match of at least `least_match` tokens, else `other`, else a shorter match."""

    def __init__(self, setting: DraftSetting) -> None:
        assert setting.drafting.other, "a hybrid without another drafter"
        self._least = setting.drafting.least_match
        self._lookup = LookupDrafter(dataclasses.replace(setting, drafter="lookup"))
        self._other = dataclasses.replace(setting, drafter=setting.drafting.other).make()
        self._asked: Drafter = self._lookup
        self.learns = self._other.learns

    def begin(self, prompt_ids: list[int], pick: Pick) -> None:
        self._lookup.begin(prompt_ids, pick)
        self._other.begin(prompt_ids, pick)

    def outlook(self, tokens: list[int]) -> str | None:
        self._asked = self._lookup
        if self._lookup.match(tokens) < self._least:
            found = self._other.outlook(tokens)
            if found is not None:
                self._asked = self._other
                return found
        return self._lookup.outlook(tokens)

    def propose(self, tokens: list[int], count: int) -> Draft:
        return self._asked.propose(tokens, count)

    def learn(self, block_ids: list[int], successors: list[int]) -> None:
        self._other.learn(block_ids, successors)

    def end(self, output_ids: list[int]) -> None:
        self._lookup.end(output_ids)
        self._other.end(output_ids)
