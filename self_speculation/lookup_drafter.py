"""LookupDrafter: drafts what followed when the latest tokens occurred before.

Prompt lookup (Saxena 2023), with the longest match instead of an n-gram of fixed size.
"""

from collections import deque

from self_speculation.drafter import Draft, Drafter, DraftSetting, Pick, looked_up
from self_speculation.suffix_automaton import SuffixAutomaton, continuation

_MOST_REMEMBERED = 1 << 17  # tokens of earlier answers
_LONGEST_KIND = 16


class LookupDrafter(Drafter):
    """Searches prompt, output, and with `history` the earlier answers of this process.

    The longest match decides, the current text before earlier answers. A draft ends with a token
    that ends the output.
    """

    def __init__(self, setting: DraftSetting) -> None:
        self._device, self._ends, self._name = setting.engine.device, setting.ends, setting.drafter
        self._history = AnswerHistory() if setting.drafting.history else None
        self._text = SuffixAutomaton()

    def begin(self, prompt_ids: list[int], pick: Pick) -> None:
        self._text = SuffixAutomaton()
        self._read(prompt_ids)
        if self._history:
            self._history.begin()

    def match(self, tokens: list[int]) -> int:
        """Return how many of the latest tokens occurred before."""
        new = tokens[len(self._text.tokens) :]
        self._read(new)
        if self._history:
            self._history.follow(new)
            return max(self._text.repeat[0], self._history.longest_match())
        return self._text.repeat[0]

    def outlook(self, tokens: list[int]) -> str | None:
        length = self.match(tokens)
        return f"lookup {_rounded(length)}" if length else None

    def propose(self, tokens: list[int], count: int) -> Draft:
        length, place = self._text.repeat
        if self._history and self._history.longest_match() > length:
            found = self._history.continuation(count)
        else:
            found = continuation(self._text.tokens, place, count)
        ends = (place for place, token in enumerate(found, 1) if token in self._ends)
        return looked_up(found[: next(ends, count)], self._device)

    def end(self, output_ids: list[int]) -> None:
        if self._history:
            self._history.add(output_ids)

    def _read(self, tokens: list[int]) -> None:
        for token in tokens:
            self._text.add(token)


class AnswerHistory:
    """Earlier answers, in which the latest tokens of the current output are looked up.

    When the answers are too many, the older half is forgotten.
    """

    def __init__(self, most: int = _MOST_REMEMBERED) -> None:
        self._most = most
        self._answers: deque[list[int]] = deque()
        self._index = SuffixAutomaton()
        self.begin()

    def begin(self) -> None:
        """Begin an output: nothing matches yet."""
        self._state = self._length = 0

    def follow(self, tokens: list[int]) -> None:
        """Go on with the tokens of the current output."""
        for token in tokens:
            self._state, self._length = self._index.follow(self._state, self._length, token)

    def longest_match(self) -> int:
        """Return the length of the longest match that does not end an answer."""
        return self._found()[0]

    def continuation(self, count: int) -> list[int]:
        """Return up to `count` tokens that followed the longest match in the same answer."""
        length, place = self._found()
        found = self._index.tokens[place : place + count] if length else []
        ends = (place for place, token in enumerate(found) if token < 0)
        return found[: next(ends, count)]

    def _found(self) -> tuple[int, int]:
        """Return the length of the longest match, and the place that follows it."""
        state, length = self._state, self._length
        while length:
            place = self._index.place(state)
            if place is not None:
                return length, place
            state, length = self._index.shorter(state)
        return 0, 0

    def add(self, answer: list[int]) -> None:
        """Remember an answer."""
        self._answers.append(answer)
        self._append(answer)
        if len(self._index.tokens) > self._most:
            self._index = SuffixAutomaton()
            while sum(map(len, self._answers)) > self._most // 2:
                self._answers.popleft()
            for kept in self._answers:
                self._append(kept)

    def _append(self, answer: list[int]) -> None:
        for token in answer:
            self._index.add(token)
        # A token that is unique parts the answers: no match goes from one into the next.
        self._index.add(-len(self._index.tokens) - 1)


def _rounded(length: int) -> int:
    """Return the largest power of two that does not exceed a length, up to the longest kind."""
    return min(_LONGEST_KIND, 1 << (length.bit_length() - 1))
