"""Counts output tokens that a lookup in the prompt could have drafted."""

SHORTEST_MATCH = 3


def copied_tokens(prompt_ids: list[int], output_ids: list[int]) -> int:
    """Return how many output tokens lie in a run of 3 or more that occurs in the prompt.

    Every longer run is covered by its runs of 3, so that only those are looked up.
    """
    known = set(_runs(prompt_ids))
    copied = {
        place
        for start, run in enumerate(_runs(output_ids))
        if run in known
        for place in range(start, start + SHORTEST_MATCH)
    }
    return len(copied)


def _runs(ids: list[int]) -> list[tuple[int, ...]]:
    """Return all runs of tokens of the shortest length, in order."""
    return list(zip(*(ids[start:] for start in range(SHORTEST_MATCH)), strict=False))
