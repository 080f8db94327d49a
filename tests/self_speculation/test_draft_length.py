"""Lengths follow what drafts yield and cost, and a gate bounds what they lose."""

import random

import pytest

from self_speculation.draft_length import Acceptance, DraftLengths, RoundCosts, draft_lengths
from self_speculation.drafter import Drafting

GATE = Drafting("lookup", never_slower=True)
ADAPTIVE = Drafting("lookup", adaptive=True)
BOTH = Drafting("lookup", adaptive=True, never_slower=True)


def decode(drafting, share, costs, tokens=4000, kind="lookup 4", most=8, seed=0):
    """Decode with drafts of which each is accepted with this probability; return all rounds.

    `costs` gives the seconds of a round by the number of its drafts.
    """
    lengths, draws = DraftLengths(drafting, most), random.Random(seed)
    lengths.begin()
    rounds, done = [], 0
    while done < tokens:
        count = lengths.choose(kind, most, done)
        accepted = next((i for i in range(count) if draws.random() >= share), count)
        lengths.add(kind, count, accepted, costs(count))
        rounds.append((count, accepted))
        done += accepted + 1
    return lengths, rounds


def speed(rounds, costs):
    """Return tokens per second, where a plain step takes one."""
    return sum(accepted + 1 for _, accepted in rounds) / sum(costs(count) for count, _ in rounds)


def cheap(count):
    return 1 + 0.05 * count


def dear(count):
    return 1 + 0.5 * count


def test_lengths_to_choose_from_halve():
    assert draft_lengths(8) == [1, 2, 4, 8]
    assert draft_lengths(5) == [1, 2, 5]
    assert draft_lengths(1) == [1]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("costs", [cheap, dear])
def test_the_chosen_length_is_nearly_the_best(share, costs):
    def rate(count):
        return sum(share**place for place in range(count + 1)) / costs(count)

    _, rounds = decode(ADAPTIVE, share, costs)
    assert speed(rounds, costs) > 0.95 * max(rate(count) for count in draft_lengths(8))


@pytest.mark.parametrize("drafting", [GATE, BOTH])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("costs", [cheap, dear])
def test_the_gate_is_never_slower(drafting, share, costs):
    lengths, rounds = decode(drafting, share, costs)
    found = speed(rounds, costs)
    assert found >= 0.97
    free = sum(share**place for place in range(9)) / costs(8)
    if free > 1.2:
        assert found > 0.97 * free
    if free < 0.8 and drafting is GATE:
        assert any(not switch.drafts for switch in lengths.switches)


def test_every_switch_tells_what_drafts_had_cost():
    lengths, rounds = decode(GATE, 0.0, dear)
    first, *others = lengths.switches
    assert (first.drafts, first.is_trial, first.kind) == (False, False, "lookup 4")
    assert first.plain_ms == pytest.approx(1000)
    assert first.drafting_ms > first.plain_ms
    drafted = [count for count, _ in rounds[: first.token] if count]
    assert first.lost_ms == pytest.approx(1000 * sum(dear(count) - 1 for count in drafted))
    assert others
    assert all(switch.is_trial for switch in others)
    waits = [b.token - a.token for a, b in zip(others, others[1:], strict=False)]
    assert waits == sorted(waits)


def test_drafts_that_win_again_are_made_again():
    lengths = DraftLengths(GATE, 4)
    lengths.begin()

    def after(rounds, accepted):
        drafted = 0
        for token in range(rounds):
            count = lengths.choose("lookup 4", 4, token)
            lengths.add("lookup 4", count, min(accepted, count), cheap(count))
            drafted += count > 0
        return drafted

    assert after(400, 0) < 60
    assert after(2000, 4) > 1000


@pytest.mark.parametrize("slow", [0, 8])
def test_a_slow_first_round_decides_nothing(slow):
    """A step that compiles, or that another program held up, is no measure of its length."""
    seen = []

    def costs(count):
        seen.append(count)
        return 50.0 if seen.count(count) == 1 and count == slow else dear(count)

    _, losing = decode(GATE, 0.0, costs)
    assert speed(losing[20:], dear) > 0.95
    seen.clear()
    _, winning = decode(GATE, 0.95, costs)
    assert speed(winning[20:], dear) > 0.95 * speed(decode(GATE, 0.95, dear)[1], dear)


def test_plain_steps_are_measured_again_while_drafts_win():
    """Otherwise a plain step that was slow at first would justify drafts for ever."""
    lengths = DraftLengths(GATE, 4)
    lengths.begin()
    for _ in range(2):
        assert lengths.choose("early_exit", 4, 0) == 0
        lengths.add("early_exit", 0, 0, 9.0)
    rounds = []
    for token in range(1000):
        count = lengths.choose("early_exit", 4, token)
        rounds.append(count)
        lengths.add("early_exit", count, 0, 2.0 if count else 1.0)
    assert rounds[500:].count(0) > 450


def test_drafts_that_end_early_are_judged_by_what_they_yield():
    """The drafter stops after two tokens, whatever it is asked for."""
    lengths = DraftLengths(GATE, 8)
    lengths.begin()
    asked = []
    for token in range(400):
        asked.append(lengths.choose("early_exit", 8, token))
        drafted = min(2, asked[-1])
        lengths.add("early_exit", asked[-1], drafted, 1 + 1.5 * drafted)
    assert asked[100:].count(0) > 250
    assert lengths.switches


def test_a_shortened_draft_at_the_end_of_an_output_switches_nothing():
    lengths, _ = decode(GATE, 0.0, dear, tokens=200)
    before = len(lengths.switches)
    assert lengths.choose("lookup 4", 2, 0) == 0
    assert len(lengths.switches) == before


def test_what_outputs_taught_can_be_forgotten_without_the_costs():
    lengths, _ = decode(GATE, 0.0, dear)
    lengths.forget_acceptance()
    assert lengths.choose("lookup 4", 2, 0) == 2
    assert lengths.costs.seconds("lookup", 8) == pytest.approx(dear(8), rel=0.1)


def test_kinds_are_judged_apart():
    lengths = DraftLengths(BOTH, 8)
    lengths.begin()
    for _ in range(300):
        for kind, accepted in (("lookup 1", 0), ("lookup 16", 8)):
            count = lengths.choose(kind, 8, 0)
            lengths.add(kind, count, min(accepted, count), cheap(count))
    assert lengths.choose("lookup 16", 8, 0) == 8
    assert lengths.choose("lookup 1", 8, 0) == 0


def test_without_a_choice_drafts_have_the_full_length():
    lengths = DraftLengths(Drafting("lookup"), 6)
    lengths.add("lookup 1", 6, 0, 9.0)
    assert [lengths.choose("lookup 1", most, 0) for most in (6, 2)] == [6, 2]


def test_costs_follow_a_context_that_grows_and_forget_accidents():
    costs = RoundCosts()
    for _ in range(5):
        costs.add("lookup", 4, 1.2)
        costs.add("lookup", 0, 1.0)
    for _ in range(40):
        costs.add("lookup", 4, 2.4)  # plain steps were not taken meanwhile
    assert costs.seconds("lookup", 0) > 1.6
    costs.add("lookup", 4, 100.0)
    assert costs.seconds("lookup", 4) == pytest.approx(2.4, rel=0.2)
    assert costs.seconds("other", 0) == costs.seconds("lookup", 0)
    assert costs.seconds("lookup", 3) == costs.seconds("lookup", 4)
    assert costs.seconds("other", 3) is None


def test_a_position_that_was_never_tried_resembles_the_one_before():
    known = Acceptance()
    for _ in range(50):
        known.add(asked=2, accepted=2)
    tokens = known.tokens([0, 1, 2, 8])
    assert tokens[0] == 1
    assert tokens[2] == pytest.approx(3, abs=0.1)
    assert tokens[8] > 8
