"""Copied tokens equal those that a search for every run of every length finds."""

from hypothesis import given, settings
from hypothesis import strategies as st

from runs.copied_tokens import copied_tokens

IDS = st.lists(st.integers(0, 3), max_size=12)


def searched(prompt, output):
    """Mark the tokens of each run of 3 and more that occurs in the prompt."""
    marked = set()
    for start in range(len(output)):
        for end in range(start + 3, len(output) + 1):
            run = output[start:end]
            if any(prompt[at : at + len(run)] == run for at in range(len(prompt))):
                marked |= set(range(start, end))
    return len(marked)


@settings(deadline=None)
@given(IDS, IDS)
def test_copied_tokens_lie_in_runs_of_the_prompt(prompt, output):
    assert copied_tokens(prompt, output) == searched(prompt, output)


def test_by_hand():
    prompt = [1, 2, 3, 4, 5, 6]
    assert copied_tokens(prompt, [9, 2, 3, 4, 9]) == 3
    assert copied_tokens(prompt, [2, 3, 4, 5, 9, 1, 2, 3]) == 7
    assert copied_tokens(prompt, [2, 3, 9, 4, 5]) == 0
    assert copied_tokens(prompt, [3, 2, 1]) == 0
    assert copied_tokens([1, 1, 1], [1, 1, 1, 1, 1]) == 5
    assert copied_tokens([1, 2], [1, 2]) == copied_tokens([], []) == 0
