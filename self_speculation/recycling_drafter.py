"""RecyclingDrafter: drafts the successors that the verifier gave to the same tokens before.

Token Recycling (Luo et al. 2024, arXiv 2408.08696), as a chain instead of a tree.
"""

from self_speculation.drafter import Draft, Drafter, DraftSetting, Pick, looked_up

_LONGEST_KIND = 4


class RecyclingDrafter(Drafter):
    """Keeps the likeliest successor of each token, also of tokens that were drafted and rejected.

    With `history` the successors stay from one output to the next. A draft ends with a token that
    ends the output, or has no successor.
    """

    learns = True

    def __init__(self, setting: DraftSetting) -> None:
        self._device, self._ends = setting.engine.device, setting.ends
        self._keeps = setting.drafting.history
        # Each token's successor, and how many times in a row the verifier gave it.
        self._successors: dict[int, tuple[int, int]] = {}

    def begin(self, prompt_ids: list[int], pick: Pick) -> None:
        if not self._keeps:
            self._successors = {}

    def outlook(self, tokens: list[int]) -> str | None:
        known = self._successors.get(tokens[-1])
        return f"recycling {min(known[1], _LONGEST_KIND)}" if known else None

    def propose(self, tokens: list[int], count: int) -> Draft:
        found: list[int] = []
        token = tokens[-1]
        while len(found) < count and token in self._successors:
            token, _ = self._successors[token]
            found.append(token)
            if token in self._ends:
                break
        return looked_up(found, self._device)

    def learn(self, block_ids: list[int], successors: list[int]) -> None:
        for token, successor in zip(block_ids, successors, strict=True):
            known, times = self._successors.get(token, (None, 0))
            self._successors[token] = successor, times + 1 if known == successor else 1
