"""Processes of one run agree, wait for each other, and fail together."""

import threading
import time

import pytest
import torch

from command_line.errors import BusyError, FailedError, InterruptedRunError, LostError, UsageError
from processes import ranks
from processes.ranks import ALONE, Ranks
from tests.ranked import in_ranks


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_item_is_in_one_share(count):
    shares = [Ranks(rank, count).share(range(7)) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert Ranks.in_order(shares) == list(range(7))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_values_arrive_in_the_order_of_ranks(count):
    def work(ranks):
        with ranks.together():
            time.sleep(0.02 * (count - ranks.rank))  # the leading process comes last
            values = [ranks.exchange({"of": ranks.rank, "turn": turn}) for turn in range(3)]
            return values, ranks.first(ranks.rank + 10), ranks.collect(ranks.rank)

    expected = [[{"of": rank, "turn": turn} for rank in range(count)] for turn in range(3)]
    results = in_ranks(count, work)
    assert [result[:2] for result in results] == [(expected, 10)] * count
    assert [result[2] for result in results] == [list(range(count)), *[[]] * (count - 1)]


def test_values_of_any_length_arrive_and_are_deleted(monkeypatch):
    monkeypatch.setattr(ranks, "_CHUNK", 10)
    stores = []

    def work(ranks):
        stores.append(ranks.store)
        with ranks.together():
            return [ranks.exchange("ünï" * length) for length in (0, 1, 50)]

    assert in_ranks(2, work) == [[["ünï" * length] * 2 for length in (0, 1, 50)]] * 2
    assert stores[0].num_keys() <= 4  # of the last round


def test_tensors_arrive_bit_by_bit():
    values = torch.tensor([[0.1, float("nan")], [-0.0, 1e-320]], dtype=torch.float64)

    def work(ranks):
        with ranks.together():
            return ranks.gather(values[: ranks.rank])

    expected = [values[:count].numpy() for count in range(3)]
    for arrived in in_ranks(3, work):
        assert [each.shape for each in arrived] == [each.shape for each in expected]
        assert [each.numpy().tobytes() for each in arrived] == [e.tobytes() for e in expected]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sums_are_added_in_the_order_of_ranks_and_spread_bit_by_bit(count, dtype):
    shares = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)).to(dtype)[:count]
    expected = shares[0].clone()
    for share in shares[1:]:
        expected += share

    def work(ranks):
        total = ranks.total(shares[ranks.rank])
        assert (total is None) == (ranks.rank > 0)
        return ranks.spread(total)

    for found in in_ranks(count, work):
        assert found.dtype == dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", [UsageError, FailedError, BusyError])
def test_an_error_of_one_is_raised_in_all_and_shown_by_one(kind):
    def work(ranks):
        with ranks.together():
            if ranks.rank == 1:
                raise kind("no luck")
            ranks.exchange(None)

    errors = in_ranks(3, work)
    assert [(type(error), str(error)) for error in errors] == [(kind, "no luck")] * 3
    assert [error.told for error in errors] == [True, False, True]


def test_the_same_error_in_all_is_shown_once():
    def work(ranks):
        with ranks.together():
            raise UsageError("as everywhere")

    errors = in_ranks(3, work)
    assert [str(error) for error in errors] == ["as everywhere"] * 3
    assert sum(not error.told for error in errors) == 1


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (KeyboardInterrupt(), InterruptedRunError, "process 0 was interrupted"),
        (ZeroDivisionError("x / 0"), LostError, r"process 0 failed \(ZeroDivisionError: x / 0\)"),
    ],
)
def test_what_ends_one_without_a_word_ends_the_others(error, kind, message):
    def work(ranks):
        with ranks.together():
            if ranks.leads:
                raise error
            while True:
                ranks.check()
                time.sleep(0.01)

    errors = in_ranks(3, work)
    assert errors[0] is error
    for other in errors[1:]:
        with pytest.raises(kind, match=message):
            raise other


def test_a_signal_that_follows_a_failure_elsewhere_does_not_hide_it():
    """As where a launcher ends the others because of it."""

    def work(ranks):
        with ranks.together():
            if ranks.rank == 1:
                raise FailedError("disk full")
            while not ranks.store.check([ranks._key("failed")]):
                time.sleep(0.005)
            raise KeyboardInterrupt

    errors = in_ranks(2, work)
    assert [(type(error), str(error)) for error in errors] == [(FailedError, "disk full")] * 2
    assert [error.told for error in errors] == [True, False]


def test_an_error_ends_a_wait_for_a_process_that_is_busy():
    """Nor does the failed process wait for the busy one before it reports."""
    is_over = threading.Event()

    def work(ranks):
        try:
            with ranks.together():
                if ranks.rank == 1:
                    raise FailedError("disk full")
                if ranks.rank == 2:
                    assert is_over.wait(timeout=20)
                ranks.exchange(None)
        finally:
            if ranks.leads:
                is_over.set()

    assert [str(error) for error in in_ranks(3, work)] == ["disk full"] * 3


def test_after_a_failure_the_next_section_begins_in_step():
    """Also where it comes after the last exchange."""

    def work(ranks):
        for turn in range(3):
            try:
                with ranks.together():
                    ranks.exchange(turn)
                    if (turn, ranks.rank) == (1, 0):
                        raise UsageError("once")
            except UsageError:
                assert turn == 1
            else:
                assert turn != 1
        with ranks.together():
            return ranks.exchange(ranks.rank), ranks.counter()(1) > 0

    assert in_ranks(3, work) == [([0, 1, 2], True)] * 3


def test_two_counters_of_a_section_are_two():
    def work(ranks):
        with ranks.together():
            first, second = ranks.counter(), ranks.counter()
            first(2)
            ranks.exchange(None)
            return first(0), second(0)

    assert in_ranks(2, work) == [(4, 0)] * 2


def test_a_store_that_is_gone_is_one_clear_error():
    class Gone:
        def check(self, *_):
            raise RuntimeError("Connection reset by peer\nstack")

        set = add = check

    with pytest.raises(LostError, match=r"reached any more \(.*Connection reset by peer\)$"):
        Ranks(0, 2, store=Gone()).exchange(1)


def test_a_launcher_that_makes_no_sense_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="cannot reach each other .*RANK expected"):
        ranks.joined()


def test_one_process_joins_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ranks.joined() is ALONE
    assert ALONE.leads
    ALONE.leave()
