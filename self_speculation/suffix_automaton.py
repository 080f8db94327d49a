"""SuffixAutomaton: all parts of a growing text, searched in constant time per token.

Blumer et al. 1985, doi 10.1016/0304-3975(85)90157-4: the smallest automaton that reads all parts of
a text. A state stands for parts that end at the same places.
"""

# States whose place is brought up to date when a token is added. The others stand for shorter
# parts, and keep the place of an earlier occurrence.
_MOST_UPDATED = 16


class SuffixAutomaton:
    """The parts of a text, whose tokens are added one by one.

    A place is an index of `tokens`: of the token that follows an occurrence, or would follow it.
    `repeat` is the longest end of the text that occurred before, as its length and the place of a
    late earlier occurrence; its length is 0 if the last token is new.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.repeat = (0, 0)
        self._edges: list[dict[int, int]] = [{}]
        self._lengths, self._links, self._places = [0], [-1], [0]
        self._last = 0

    def add(self, token: int) -> None:
        """Append a token to the text."""
        edges, links = self._edges, self._links
        self.tokens.append(token)
        before = self._last
        self._last = self._new_state(self._lengths[before] + 1, {}, len(self.tokens))
        while before >= 0 and token not in edges[before]:
            edges[before][token] = self._last
            before = links[before]
        repeated = links[self._last] = self._split(before, token) if before >= 0 else 0
        self.repeat = self._lengths[repeated], self._places[repeated]
        self._update_places(repeated)

    def follow(self, state: int, length: int, token: int) -> tuple[int, int]:
        """Return the longest part that ends with the token, as its state and length.

        `state` and `length` give the part found at the token before; 0 and 0 at the beginning.
        """
        while state and token not in self._edges[state]:
            state = self._links[state]
            length = self._lengths[state]
        following = self._edges[state].get(token)
        return (0, 0) if following is None else (following, length + 1)

    def place(self, state: int) -> int | None:
        """Return the place of an occurrence of the state's parts that a token from 0 on follows.

        None if there is no such occurrence.
        """
        place = self._places[state]
        if place < len(self.tokens) and self.tokens[place] >= 0:
            return place
        following = [after for token, after in self._edges[state].items() if token >= 0]
        return max((self._places[after] - 1 for after in following), default=None)

    def shorter(self, state: int) -> tuple[int, int]:
        """Return the longest shorter end of a state's parts that has more occurrences."""
        link = self._links[state]
        return link, self._lengths[link]

    def _new_state(self, length: int, edges: dict[int, int], place: int) -> int:
        self._edges.append(edges)
        self._lengths.append(length)
        self._links.append(0)
        self._places.append(place)
        return len(self._edges) - 1

    def _split(self, before: int, token: int) -> int:
        """Return the state of the parts of `before` with the token; divide it from longer parts."""
        edges, links, lengths = self._edges, self._links, self._lengths
        mixed = edges[before][token]
        if lengths[mixed] == lengths[before] + 1:
            return mixed
        state = self._new_state(lengths[before] + 1, dict(edges[mixed]), self._places[mixed])
        links[state], links[mixed] = links[mixed], state
        while before >= 0 and edges[before].get(token) == mixed:
            edges[before][token] = state
            before = links[before]
        return state

    def _update_places(self, state: int) -> None:
        for _ in range(_MOST_UPDATED):
            if not state:
                return
            self._places[state] = len(self.tokens)
            state = self._links[state]


def continuation(tokens: list[int], place: int, count: int) -> list[int]:
    """Return up to `count` tokens from a place on; a text that ends goes on as it began there."""
    found = tokens[place : place + count]
    period = len(found)
    while found and len(found) < count:
        found.append(found[-period])
    return found
