"""Laws of the search for the longest repeated end of a text."""

from hypothesis import given
from hypothesis import strategies as st

from self_speculation.lookup_drafter import AnswerHistory
from self_speculation.suffix_automaton import SuffixAutomaton, continuation
from tests.fuzzing import FIXED

TEXTS = st.integers(1, 4).flatmap(lambda size: st.lists(st.integers(0, size), max_size=40))


def ends_before(text: list[int], length: int) -> list[int]:
    """Return the places of earlier occurrences of the text's last tokens."""
    end = text[len(text) - length :]
    return [place for place in range(length, len(text)) if text[place - length : place] == end]


def read(tokens: list[int]) -> SuffixAutomaton:
    automaton = SuffixAutomaton()
    for token in tokens:
        automaton.add(token)
    return automaton


@FIXED
@given(TEXTS)
def test_the_repeat_is_the_longest_and_lies_where_it_says(text):
    automaton = SuffixAutomaton()
    for size, token in enumerate(text, 1):
        automaton.add(token)
        length, place = automaton.repeat
        so_far = text[:size]
        longest = max(known for known in range(size) if not known or ends_before(so_far, known))
        assert length == longest
        assert not length or place in ends_before(so_far, length)


@FIXED
@given(TEXTS, TEXTS)
def test_another_text_is_followed_by_its_longest_match(text, other):
    automaton, state, length = read(text), 0, 0
    for size, token in enumerate(other, 1):
        state, length = automaton.follow(state, length, token)
        ends = [other[size - known : size] for known in range(size + 1)]
        parts = {tuple(text[i:j]) for i in range(len(text) + 1) for j in range(i, len(text) + 1)}
        assert length == max(len(end) for end in ends if tuple(end) in parts)
        place = automaton.place(state)
        part = other[size - length : size]
        followed = [text[i : i + length] == part for i in range(len(text) - length)]
        assert (place is None) == (not any(followed))
        assert place is None or text[place - length : place] == part


def test_the_latest_of_several_occurrences_is_found():
    automaton = read([1, 2, 3, 1, 2, 4, 1, 2])
    assert automaton.repeat == (2, 5)
    assert continuation(automaton.tokens, 5, 3) == [4, 1, 2]


@FIXED
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 20))
def test_a_text_that_repeats_itself_goes_on_so(period, count):
    text = period * 3
    length, place = read(text).repeat
    assert length >= 2 * len(period)
    assert continuation(text, place, count) == (period * (count + 1))[:count]


@FIXED
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), max_size=6), TEXTS)
def test_an_earlier_answer_is_followed_to_its_end_only(answers, text):
    history = AnswerHistory()
    for answer in answers:
        history.add(answer)
    history.follow(text)
    length, found = history.longest_match(), history.continuation(5)
    assert bool(length) == bool(found)
    match = text[len(text) - length :]
    assert not length or found in [
        answer[place : place + 5]
        for answer in answers
        for place in range(length, len(answer))
        if answer[place - length : place] == match
    ]


def test_a_match_at_the_end_of_an_answer_gives_way_to_another():
    history = AnswerHistory()
    for answer in ([7, 2, 5], [1, 2, 6], [0, 1, 2]):
        history.add(answer)
    history.follow([9, 1, 2])
    assert (history.longest_match(), history.continuation(3)) == (2, [6])
    history.begin()
    history.follow([0, 1, 2])
    assert (history.longest_match(), history.continuation(3)) == (2, [6])


def test_the_older_half_of_many_answers_is_forgotten():
    history = AnswerHistory(most=20)
    for first in range(0, 60, 6):
        history.add(list(range(first, first + 6)))
    history.begin()
    history.follow([54, 55, 56])
    assert (history.longest_match(), history.continuation(9)) == (3, [57, 58, 59])
    history.begin()
    history.follow([0, 1, 2])
    assert history.longest_match() == 0
