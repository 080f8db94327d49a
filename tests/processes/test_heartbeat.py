"""A process that vanishes is missed by all others, and one that leaves by none."""

import threading
import time

import pytest
import torch.distributed

from command_line.errors import LostError
from processes import heartbeat, ranks
from processes.heartbeat import Heartbeat
from processes.ranks import Ranks


@pytest.fixture
def ring(monkeypatch):
    """Three processes that beat often, and what each has been told of the others."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    store, told = torch.distributed.HashStore(), {}
    beating = [
        Heartbeat(store, rank, 3, lambda lost, rank=rank: told.setdefault(rank, lost))
        for rank in range(3)
    ]
    for one in beating:
        one.start()
    yield beating, told
    for one in beating:
        one.stop()
        one.join(timeout=10)


def wait_until(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_all_others_hear_of_one_that_vanishes(ring, lost):
    beating, told = ring
    beating[lost].fall_silent()
    others = {0, 1, 2} - {lost}
    wait_until(lambda: set(told) == others)
    assert set(told.values()) == {lost}


def test_one_that_has_not_begun_yet_is_waited_for(monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    store, told = torch.distributed.HashStore(), []
    early = Heartbeat(store, 0, 2, told.append)
    early.start()
    time.sleep(0.01 * heartbeat.PATIENCE * 3)
    assert told == []
    monkeypatch.setattr(heartbeat, "_FIRST_PATIENCE", 5)
    wait_until(lambda: told == [1])
    early.stop()


def test_two_that_vanish_together_are_missed(ring):
    beating, told = ring
    for rank in (1, 2):
        beating[rank].fall_silent()
    wait_until(lambda: told)
    assert told == {0: 1}


def test_one_that_leaves_is_not_missed(ring):
    beating, told = ring
    beating[1].stop()
    time.sleep(0.01 * heartbeat.PATIENCE * 3)
    assert told == {}


def test_a_store_that_is_gone_is_told_of(monkeypatch):
    class Gone:
        def add(self, *_):
            raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    told = []
    alone = Heartbeat(Gone(), 0, 2, told.append)
    alone.start()
    alone.join(timeout=10)
    assert told == [None]


@pytest.mark.parametrize(("lost", "who"), [(3, "process 3"), (None, "the other processes")])
def test_what_a_process_is_at_ends_with_the_cause(monkeypatch, lost, who):
    monkeypatch.setattr(ranks._thread, "interrupt_main", lambda _: interrupted.set())
    interrupted = threading.Event()
    mine = Ranks(0, 4, store=torch.distributed.HashStore())
    with pytest.raises(LostError, match=f"{who} cannot be reached any more"), mine.together():
        mine.lose(lost)
        assert interrupted.is_set()
        raise KeyboardInterrupt
    with pytest.raises(LostError, match=who), mine.together():
        raise AssertionError("nothing more is begun")
    with pytest.raises(LostError, match=who):
        mine.check()
