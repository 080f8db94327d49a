"""All other processes notice one that vanishes, and none misses one that leaves."""

import threading
import time
from functools import partial

import pytest
from torch.distributed import HashStore

from command_line.errors import LostError
from processes import heartbeat, ranks
from processes.heartbeat import Heartbeat
from processes.ranks import Ranks

OFTEN = 0.01  # seconds


@pytest.fixture
def ring():
    """Three processes, all of which beat, and the lost process that each has heard of."""
    store, heard = HashStore(), {}
    beating = [Heartbeat(store, n, 3, partial(heard.setdefault, n), OFTEN) for n in range(3)]
    for each in beating:
        each.start()
    wait_until(lambda: all(each._latest for each in beating))
    yield beating, heard
    for each in beating:
        each.stop()
        each.join(timeout=10)


def wait_until(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(OFTEN)


@pytest.mark.parametrize(("vanish", "lost"), [([0], 0), ([1], 1), ([2], 2), ([1, 2], 1)], ids=str)
def test_all_others_hear_of_one_that_vanishes(ring, vanish, lost):
    beating, heard = ring
    for rank in vanish:
        beating[rank].over.set()
    others = {0, 1, 2} - set(vanish)
    wait_until(lambda: set(heard) >= others)
    assert {heard[rank] for rank in others} == {lost}


def test_one_that_has_not_begun_yet_is_waited_for(monkeypatch):
    heard = []
    early = Heartbeat(HashStore(), 0, 2, heard.append, OFTEN)
    early.start()
    wait_until(lambda: early._silence > 2 * heartbeat.PATIENCE)
    assert heard == []
    monkeypatch.setattr(heartbeat, "FIRST_PATIENCE", 0)
    wait_until(lambda: heard == [1])


def test_one_that_leaves_is_not_missed(ring):
    beating, heard = ring
    beating[1].stop()
    time.sleep(OFTEN * heartbeat.PATIENCE * 3)
    assert heard == {}


def test_a_store_that_is_gone_is_reported():
    class Gone:
        def add(self, *_):
            raise RuntimeError("Connection reset by peer")

    heard = []
    Heartbeat(Gone(), 0, 2, heard.append, OFTEN).run()
    assert heard == [None]


@pytest.mark.parametrize(("lost", "who"), [(3, "process 3"), (None, "the other processes")])
def test_the_main_thread_ends_with_the_cause(monkeypatch, lost, who):
    monkeypatch.setattr(ranks._thread, "interrupt_main", lambda _: interrupted.set())
    interrupted = threading.Event()
    mine = Ranks(0, 4, store=HashStore())
    with pytest.raises(LostError, match=f"{who} cannot be reached any more"), mine.together():
        mine.lose(lost)
        assert interrupted.is_set()
        raise KeyboardInterrupt
    with pytest.raises(LostError, match=who), mine.together():
        raise AssertionError("nothing more is begun")
    with pytest.raises(LostError, match=who):
        mine.check()
