"""How many tokens to draft in a round: by what drafts have cost and yielded so far.

A round of k drafts costs t(k) seconds and yields 1 + a1 + a1 a2 + ... tokens, where a_j is the
share of j-th drafts that were accepted after all drafts before them. The length with the most
tokens per second is drafted; length 0 is a plain step.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from self_speculation.drafter import Drafting, drafted_by

_PRIOR_ACCEPTANCE = 0.6  # of a kind of draft that was never tried
_PRIOR_TRIES = 3.0
_KEPT = 0.97  # weight of what was known, after each further round
_PACE_STEP, _COST_STEP, _OLD_COST_STEP = 0.15, 0.05, 0.5
_MOST_CHANGE = 2.0  # times the expected seconds; more may be an accident
_FIRST_SAMPLES = 2  # rounds of a length before it is judged: the first may be slow
_FRESH_PLAIN, _FRESH_DRAFTS = 64, 512  # rounds after which a cost is measured again
_FIRST_PATIENCE, _MOST_PATIENCE = 8, 512  # plain steps before drafts of a kind are tried again


def draft_lengths(most: int) -> list[int]:
    """Return the lengths among which adaptive drafting chooses: `most`, half of it, and so on."""
    lengths = [most]
    while lengths[-1] > 1:
        lengths.append(lengths[-1] // 2)
    return lengths[::-1]


@dataclass(frozen=True)
class Switch:
    """A change between drafting and plain steps, before the output's token number `token`.

    `kind` is the kind of draft that a drafter had to offer. `drafting_ms` and `plain_ms` are the
    expected milliseconds per token of both. `lost_ms` are the milliseconds that drafts of this kind
    have cost, beyond plain steps for the same tokens, since the last change; negative if they won.
    `is_trial`: drafts are tried again, for one round.
    """

    token: int
    kind: str
    drafts: bool
    drafting_ms: float
    plain_ms: float
    lost_ms: float
    is_trial: bool = False


class Acceptance:
    """A running estimate of the share of j-th drafts that are accepted, for drafts of one kind."""

    def __init__(self) -> None:
        self._tries: list[float] = []
        self._hits: list[float] = []

    def add(self, asked: int, accepted: int) -> None:
        """Take the outcome of a round; a draft that ended early yields nothing beyond its end."""
        missing = asked - len(self._tries)
        self._tries += [0.0] * missing
        self._hits += [0.0] * missing
        for place in range(min(accepted + 1, asked)):
            self._tries[place] = self._tries[place] * _KEPT + 1
            self._hits[place] = self._hits[place] * _KEPT + (place < accepted)

    def tokens(self, lengths: Iterable[int]) -> dict[int, float]:
        """Return the tokens that a round of each length is expected to yield, in one pass."""
        wanted = set(lengths)
        share, survival, total = _PRIOR_ACCEPTANCE, 1.0, 1.0
        found = {0: 1.0}
        for place in range(max(wanted)):
            tries = hits = 0.0
            if place < len(self._tries):
                tries, hits = self._tries[place], self._hits[place]
            # A position that was seldom tried resembles the position before it.
            share = (hits + _PRIOR_TRIES * share) / (tries + _PRIOR_TRIES)
            survival *= share
            total += survival
            found[place + 1] = total
        return found


@dataclass
class _Cost:
    """The relative cost of a round, from so many samples, the last of them so many rounds ago."""

    relative: float
    samples: int = 1
    age: int = 0


class RoundCosts:
    """Running estimates of the seconds of a round, by drafter and length asked for.

    An estimate is a relative cost times a pace common to all, so that each round tells of all: the
    context grows, and other programs come and go. A plain step is a round of length 0, whoever
    drafts.
    """

    def __init__(self) -> None:
        self._pace = 1.0
        self._known: dict[tuple[str, int], _Cost] = {}

    def seconds(self, drafter: str, drafts: int) -> float | None:
        """Return the expected seconds of a round; None if nothing is known.

        A length that was never measured costs as the next longer, or else the longest.
        """
        key = self._key(drafter, drafts)
        if key not in self._known:
            lengths = sorted(count for name, count in self._known if name == key[0])
            longer = next((count for count in lengths if count >= drafts), None)
            if longer is None:
                return None
            key = drafter, longer
        return self._pace * self._known[key].relative

    def is_fresh(self, drafter: str, drafts: int) -> bool:
        """Return whether the cost of a round of this length was measured enough, and lately."""
        known = self._known.get(self._key(drafter, drafts))
        limit = _FRESH_DRAFTS if drafts else _FRESH_PLAIN
        return known is not None and known.samples >= _FIRST_SAMPLES and known.age < limit

    def add(self, drafter: str, drafts: int, seconds: float) -> None:
        """Take the seconds of a round."""
        key = self._key(drafter, drafts)
        for one in self._known.values():
            one.age += 1
        known = self._known.get(key)
        if known is None:
            self._known[key] = _Cost(seconds / self._pace)
            return
        is_old = known.age > _FRESH_PLAIN
        known.age, known.samples = 0, known.samples + 1
        if known.samples <= _FIRST_SAMPLES:
            known.relative = min(known.relative, seconds / self._pace)
            return
        off = min(seconds / (self._pace * known.relative), _MOST_CHANGE)
        if is_old:  # other rounds know the pace better
            known.relative *= off**_OLD_COST_STEP
            return
        self._pace *= off**_PACE_STEP
        known.relative *= off**_COST_STEP

    @staticmethod
    def _key(drafter: str, drafts: int) -> tuple[str, int]:
        return (drafter, drafts) if drafts else ("", 0)


@dataclass
class _Kind:
    """The acceptance of one kind of draft, and the state of the gate."""

    acceptance: Acceptance = field(default_factory=Acceptance)
    drafts: bool = True
    waits: int = 0  # plain steps since the last draft
    patience: int = _FIRST_PATIENCE
    lost_seconds: float = 0.0


class DraftLengths:
    """Chooses the length of each draft; the estimates stay from one output to the next.

    Without `adaptive` a draft has the full length, without `never_slower` at least one token.
    """

    def __init__(self, drafting: Drafting, most: int) -> None:
        self._adaptive, self._gated = drafting.adaptive, drafting.never_slower
        self._most = most
        self.costs = RoundCosts()
        self.switches: list[Switch] = []
        self.forget_acceptance()

    def forget_acceptance(self) -> None:
        """Forget what drafts have yielded, and keep what rounds cost."""
        self._kinds: dict[str, _Kind] = defaultdict(_Kind)

    def begin(self) -> None:
        """Begin an output."""
        self.switches = []

    def choose(self, kind: str, most: int, token: int) -> int:
        """Return the number of tokens to draft, 0 to `most`, before the output's token `token`."""
        if not (self._adaptive or self._gated):
            return most
        name, lengths = drafted_by(kind), self._lengths(most)
        if most == self._most:  # at the end of an output there are other lengths
            candidates = [0, *lengths] if self._gated else lengths
            for count in candidates:
                if not self.costs.is_fresh(name, count):
                    return count
        known = self._kinds[kind]
        tokens, seconds = known.acceptance.tokens(lengths), {}
        for count in (0, *lengths):
            cost = self.costs.seconds(name, count)
            if cost is not None:
                seconds[count] = cost / tokens[count]
        best = min(lengths, key=lambda count: seconds.get(count, math.inf))
        if not self._gated or best not in seconds or 0 not in seconds:
            return best
        if most < self._most:
            return best if known.drafts else 0
        return self._gate(kind, best, (token, seconds[best], seconds[0]))

    def add(self, kind: str | None, asked: int, accepted: int, seconds: float) -> None:
        """Take the outcome of a round and its seconds; `kind` is what the drafter had to offer."""
        if not (self._adaptive or self._gated):
            return
        self.costs.add(drafted_by(kind or ""), asked, seconds)
        if kind is None or not asked:
            return
        known = self._kinds[kind]
        known.acceptance.add(asked, accepted)
        plain = self.costs.seconds("", 0)
        if plain is not None:
            lost = seconds - (accepted + 1) * plain
            known.lost_seconds += lost
            if not known.drafts and lost < 0:  # a trial that won: try again at once
                known.patience, known.waits = _FIRST_PATIENCE, _FIRST_PATIENCE

    def _lengths(self, most: int) -> Sequence[int]:
        if not self._adaptive:
            return [most]
        return [count for count in draft_lengths(self._most) if count < most] + [most]

    def _gate(self, kind: str, best: int, expected: tuple[int, float, float]) -> int:
        """Return the length, or 0 where drafts of this kind lose and it is not time for a trial."""
        known = self._kinds[kind]
        _, drafting, plain = expected
        if drafting < plain:
            if not known.drafts:
                known.drafts, known.waits, known.patience = True, 0, _FIRST_PATIENCE
                self._note(kind, expected)
            return best
        if known.drafts:
            known.drafts = False
            self._note(kind, expected)
        known.waits += 1
        if known.waits <= known.patience:
            return 0
        known.waits, known.patience = 0, min(2 * known.patience, _MOST_PATIENCE)
        self._note(kind, expected, is_trial=True)
        return best

    def _note(self, kind: str, expected: tuple[int, float, float], is_trial: bool = False) -> None:
        known = self._kinds[kind]
        token, drafting, plain = expected
        lost, known.lost_seconds = 1e3 * known.lost_seconds, 0.0
        drafts = known.drafts or is_trial
        switch = Switch(token, kind, drafts, 1e3 * drafting, 1e3 * plain, lost, is_trial)
        self.switches.append(switch)
