"""The processes that torchrun started for one run: which one this is, and how they agree.

What they tell each other is small (verdicts, plans, finished examples) and goes through the store
that torchrun keeps for them. Collectives would not do: a wait for another process may take as long
as its share of the examples, has to end when a signal arrives or when another process fails, and
should hold no device meanwhile.
"""

import _thread
import functools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed import PrefixStore, rendezvous

from command_line.errors import FailedError, InterruptedRunError, LostError, UsageError, error_named
from command_line.messages import process_count
from command_line.script import at_success
from processes.heartbeat import Heartbeat

_Item = TypeVar("_Item")

_START_LIMIT = timedelta(minutes=10)
_SHORTEST_NAP, _LONGEST_NAP = 0.005, 0.2  # seconds between two looks at the store
_FAREWELL_SECONDS = 5
# Of what is stored under one key; TCPStore takes 8 MiB at most.
_CHUNK = 4 << 20


@dataclass(eq=False)
class Ranks:
    """The processes of a run; this one is `rank` of `count`, and `local_rank` of its machine.

    Every process calls the same methods in the same order. A process alone waits for nobody.
    `lost` tells of one that has vanished.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    store: Any = None
    lost: str | None = None
    _section: int = field(default=0, init=False)
    _round: int = field(default=0, init=False)
    _last_keys: list[str] = field(default_factory=list, init=False)
    _counters: int = field(default=0, init=False)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes the run's files and speaks for all."""
        return self.rank == 0

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """The items that are this process's to do: every `count`-th."""
        return items[self.rank :: self.count]

    @staticmethod
    def in_order(shares: Sequence[Sequence[_Item]]) -> list[_Item]:
        """The items of which these are the shares, in the order of ranks, as they were before."""
        count = len(shares)
        items = range(sum(map(len, shares)))
        return [shares[index % count][index // count] for index in items]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done inside fails in all processes, with one error, if it fails in any.

        The error that came first is raised everywhere; where it is another process's, it is
        marked as `told`, so that one process alone shows it.
        """
        if self.count == 1:
            yield
            return
        self._section, self._round, self._counters = self._section + 1, 0, 0
        try:
            self._check_lost()
            yield
            self.exchange(None)
        except BaseException as error:
            self._check_lost()
            if not getattr(error, "told", False):
                self._fail(error)
            raise

    def exchange(self, value: Any) -> list[Any]:
        """What each process gave, in the order of ranks, once all have reached this point.

        Values are what JSON holds. Raises the error of another process that fails meanwhile.
        """
        return self._exchange(value, range(self.count))

    def first(self, value: Any) -> Any:
        """What the leading process gave."""
        return self._exchange(value if self.leads else None, [0])[0]

    def collect(self, value: Any, while_waiting: Callable[[], None] | None = None) -> list[Any]:
        """As `exchange`, for the leading process; the others get nothing."""
        return self._exchange(value, range(self.count) if self.leads else [], while_waiting)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The CPU tensors of all processes, bit by bit."""
        if self.count == 1:
            return [tensor]
        raw = tensor.contiguous().numpy().tobytes().hex()
        return [
            torch.frombuffer(bytearray.fromhex(text), dtype=tensor.dtype).reshape(shape)
            if text
            else tensor.new_empty(shape)
            for shape, text in self.exchange([list(tensor.shape), raw])
        ]

    def check(self) -> None:
        """Raises the error of another process, if one has failed."""
        self._check_lost()
        if self.count > 1 and self._ask("check", [self._key("failed")]):
            message, kind = json.loads(self._ask("get", self._key("failed")))
            error = error_named(kind)(message)
            error.told = True
            raise error

    def counter(self) -> Callable[[int], int]:
        """A number that all processes share: adds to it, and returns what it is then."""
        self._counters += 1
        key = self._key(f"counter {self._counters}")
        return lambda amount: self._ask("add", key, amount)

    def leave(self) -> None:
        """Waits for a moment until all have left: the store may live in the leading process."""
        if self.count == 1:
            return
        left, end = self._ask("add", "left", 1), time.monotonic() + _FAREWELL_SECONDS
        while self.leads and left < self.count and time.monotonic() < end:
            time.sleep(_SHORTEST_NAP)
            left = self._ask("add", "left", 0)

    def lose(self, rank: int | None) -> None:
        """Ends what this process is at: another one is lost, or all are where `rank` is None."""
        who = "the other processes" if rank is None else f"process {rank}"
        self.lost = f"torchrun: {who} cannot be reached any more"
        _thread.interrupt_main(signal.SIGTERM)

    def _check_lost(self) -> None:
        if self.lost:
            raise LostError(self.lost)

    def _exchange(
        self, value: Any, read: Sequence[int], while_waiting: Callable[[], None] | None = None
    ) -> list[Any]:
        if self.count == 1:
            return [value]
        self._round += 1
        keys = [self._key(f"round {self._round} of {rank}") for rank in range(self.count)]
        written = self._put(keys[self.rank], json.dumps(value))
        self._wait(keys, while_waiting)
        found = [json.loads(self._get(keys[rank])) for rank in read]
        # Whoever wrote for this round has read what the last one left.
        for key in self._last_keys:
            self._ask("delete_key", key)
        self._last_keys = written
        return found

    def _put(self, key: str, text: str) -> list[str]:
        """Stores a text of any length; returns the keys that hold it."""
        raw = text.encode()
        chunks = [raw[start : start + _CHUNK] for start in range(0, len(raw), _CHUNK)]
        names = [f"{key} part {number}" for number in range(len(chunks))]
        for name, chunk in zip(names, chunks, strict=True):
            self._ask("set", name, chunk)
        self._ask("set", key, str(len(chunks)))  # last: who finds it finds the parts
        return [*names, key]

    def _get(self, key: str) -> bytes:
        count = int(self._ask("get", key))
        return b"".join(self._ask("get", f"{key} part {number}") for number in range(count))

    def _wait(self, keys: list[str], while_waiting: Callable[[], None] | None) -> None:
        nap = _SHORTEST_NAP
        while not self._ask("check", keys):
            self.check()
            if while_waiting:
                while_waiting()
            time.sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP)

    def _fail(self, error: BaseException) -> None:
        """Tells the others; an error that another process has told first is raised instead."""
        if self._ask("add", self._key("errors"), 1) == 1:
            told = error if isinstance(error, UsageError) else self._ending(error)
            kind = type(told).__name__
            self._ask("set", self._key("failed"), json.dumps([str(told), kind]))
        elif isinstance(error, UsageError | KeyboardInterrupt):
            while True:
                self.check()
                time.sleep(_SHORTEST_NAP)

    def _ending(self, error: BaseException) -> UsageError:
        """What the others are told of an error that is no user's."""
        if isinstance(error, KeyboardInterrupt):
            return InterruptedRunError(f"process {self.rank} was interrupted")
        return LostError(f"process {self.rank} failed ({type(error).__name__}: {error})")

    def _ask(self, operation: str, *values: Any) -> Any:
        try:
            return getattr(self.store, operation)(*values)
        except RuntimeError as error:
            lost = "torchrun: the other processes cannot be reached any more"
            raise LostError(f"{lost} ({_first_line(error)})") from error

    def _key(self, name: str) -> str:
        return f"{self._section} {name}"


ALONE = Ranks()


def joined() -> Ranks:
    """This process among all that torchrun started, which it can reach from now on.

    Raises `UsageError` where what the launcher says makes no sense, and `FailedError` where the
    others cannot be reached.
    """
    return _joined(process_count())


@functools.cache
def _joined(count: int) -> Ranks:
    if count == 1:
        return ALONE
    try:
        store, rank, count = next(rendezvous("env://", timeout=_START_LIMIT))
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        local_count = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    except ValueError as error:
        reason = f"torchrun: the processes cannot find each other ({_first_line(error)})"
        raise UsageError(reason) from error
    except RuntimeError as error:
        reason = f"torchrun: the processes cannot reach each other ({_first_line(error)})"
        raise FailedError(reason) from error
    ranks = Ranks(rank, count, local_rank, local_count, PrefixStore("ranks", store))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        # Then it lives in the leading process, and not in the launcher.
        at_success(ranks.leave)
    if local_count < count:
        # Of a machine's own processes, torchrun itself ends all when one is lost.
        heartbeat = Heartbeat(ranks.store, rank, count, ranks.lose)
        heartbeat.start()
        at_success(heartbeat.stop)  # before the store may go: the last is called first
    return ranks


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
