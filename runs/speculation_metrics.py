"""How many drafted tokens the verifier accepted.

A round drafts K tokens and verifies them in one pass, which adds a token of its own. A round is
kept as (drafted, accepted).
"""

import statistics
from collections import Counter
from typing import Any

from runs.record import DoneSample
from runs.speed_metrics import ratio, spread

Rounds = Counter[tuple[int, int]]


def acceptance_rate(done: list[DoneSample]) -> dict[str, Any]:
    """Return accepted / drafted tokens of examples that are done; None without drafts.

    `by_position` is the share of j-th drafts that were accepted, for j = 1, 2, ..., which needs
    all drafts before it accepted. `conditional_by_position` is the share of j-th drafts that were
    accepted, among the rounds that accepted all drafts before it; None where no round did.
    """
    drafting = [sample for sample in done if sample.drafted_tokens]
    accepted = sum(s.accepted_tokens for s in drafting)
    rounds = Counter((drafted, held) for sample in drafting for drafted, held in sample.rounds)
    return spread(s.accepted_tokens / s.drafted_tokens for s in drafting) | {
        "token_weighted": ratio(accepted, sum(s.drafted_tokens for s in drafting)),
        "by_position": _by_position(rounds, conditional=False),
        "conditional_by_position": _by_position(rounds, conditional=True),
    }


def acceptance_length(done: list[DoneSample]) -> dict[str, float | None]:
    """Return the tokens per verification: the mean over rounds of accepted + 1.

    Spec-Bench (Xia et al. 2024) calls it mean accepted tokens. `mean` averages the examples' own
    values; `token_weighted` averages all rounds.
    """
    verified = [sample for sample in done if sample.rounds]
    rounds = sum(len(sample.rounds) for sample in verified)
    accepted = sum(sample.accepted_tokens for sample in verified)
    lengths = [sample.accepted_tokens / len(sample.rounds) + 1 for sample in verified]
    return {
        "mean": statistics.fmean(lengths) if lengths else None,
        "token_weighted": ratio(accepted + rounds, rounds),
    }


def drafts_by(done: list[DoneSample]) -> dict[str, dict[str, float | None]]:
    """Return rounds, drafted and accepted tokens of each drafter of a hybrid; empty for others."""
    totals: dict[str, Counter[str]] = {}
    for sample in done:
        for name, (drafted, accepted) in zip(sample.drafters, sample.rounds, strict=False):
            if name:
                total = totals.setdefault(name, Counter())
                total.update(rounds=1, drafted=drafted, accepted=accepted)
    return {
        name: dict(total) | {"rate": ratio(total["accepted"], total["drafted"])}
        for name, total in sorted(totals.items())
    }


def plain_rounds(done: list[DoneSample]) -> dict[str, float | None]:
    """Return how often speculation drafted nothing: without an idea, or because drafts would lose.

    `rate` is the share of rounds. `switches` counts changes between drafting and plain steps,
    `trials` the rounds that tried drafts again, and `lost_ms` the milliseconds that drafts had cost
    beyond plain steps when drafting ended; negative if they won.
    """
    rounds = [pair for sample in done for pair in sample.rounds]
    plain = sum(not drafted for drafted, _ in rounds)
    switches = [switch for sample in done for switch in sample.switches]
    return {
        "count": plain,
        "rate": ratio(plain, len(rounds)),
        "switches": sum(not one["is_trial"] for one in switches),
        "trials": sum(one["is_trial"] for one in switches),
        "lost_ms": sum(one["lost_ms"] for one in switches) if switches else None,
    }


def _by_position(rounds: Rounds, conditional: bool) -> list[float | None] | None:
    longest = max((drafted for drafted, _ in rounds), default=0)
    shares = []
    for position in range(1, longest + 1):
        needed = position - 1 if conditional else 0
        tried = sum(
            count
            for (drafted, accepted), count in rounds.items()
            if drafted >= position and accepted >= needed
        )
        held = sum(count for (_, accepted), count in rounds.items() if accepted >= position)
        shares.append(ratio(held, tried))
    return shares or None
