"""The processes that torchrun started for one run: which one this is, and how they agree.

They exchange small values (verdicts, plans, finished examples) as JSON through torchrun's store.
Collectives of a gloo group (torch 2.13) were tried instead, and rejected:
- A collective ends only when all processes have joined it, so an error of another process shows
  late. The next collective of a failed process returned wrong values.
- A process that waited for a machine without network had not noticed after 35 minutes, and Ctrl-C
  came through only after the wait.
- Each process adds to the progress bar's count at any time, for which no collective exists.
"""

import _thread
import base64
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
from torch.distributed import HashStore, PrefixStore, Store, rendezvous

from command_line.errors import FailedError, InterruptedRunError, LostError, UsageError, error_named
from command_line.messages import process_count
from command_line.script import at_success
from files.error_lines import error_line
from processes.heartbeat import Heartbeat

_Item = TypeVar("_Item")

_START_LIMIT = timedelta(minutes=10)
_SHORTEST_NAP, _LONGEST_NAP = 0.005, 0.2  # seconds between two looks at the store
_FAREWELL_SECONDS = 5
_CHUNK = 4 << 20  # bytes per key; TCPStore takes 8 MiB at most


@dataclass(eq=False)
class Ranks:
    """The processes of a run; this one is `rank` of `count`, and `local_rank` of its machine.

    Every process calls the same methods in the same order. A process alone has a store in memory,
    and waits for nobody. `lost` names a process that has vanished.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    store: Store = field(default_factory=HashStore)
    lost: str | None = field(default=None, init=False)
    _section: int = field(default=0, init=False)
    _round: int = field(default=0, init=False)
    _last_keys: list[str] = field(default_factory=list, init=False)
    _counters: int = field(default=0, init=False)

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's files and speaks for all."""
        return self.rank == 0

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """Return the items that this process is to do: every `count`-th."""
        return items[self.rank :: self.count]

    @staticmethod
    def in_order(shares: Sequence[Sequence[_Item]]) -> list[_Item]:
        """Return the items of all shares, given in the order of ranks, in their first order."""
        count = len(shares)
        items = range(sum(map(len, shares)))
        return [shares[index % count][index // count] for index in items]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise one error in all processes if this section fails in any.

        All raise the error that came first. Other processes mark it as `told`, so that only the
        process that it came from shows it.
        """
        self._section, self._round, self._counters = self._section + 1, 0, 0
        try:
            self.check()
            yield
            self.exchange(None)
        except BaseException as error:
            self._tell(error)
            raise

    def exchange(self, value: Any) -> list[Any]:
        """Return the value of each process, in the order of ranks, once all have reached this call.

        Values are what JSON holds. Raises the error of another process that fails meanwhile.
        """
        return self._exchange(value, range(self.count))

    def first(self, value: Any) -> Any:
        """Return the leading process's value."""
        return self._exchange(value if self.leads else None, [0])[0]

    def collect(self, value: Any, while_waiting: Callable[[], None] | None = None) -> list[Any]:
        """Return the values to the leading process, as `exchange` does; the others get nothing."""
        return self._exchange(value, range(self.count) if self.leads else [], while_waiting)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the CPU tensors of all processes, bit by bit."""
        return [_unpacked(value) for value in self.exchange(_packed(tensor))]

    def total(self, tensor: Tensor) -> Tensor | None:
        """Return to the leading process the sum of all tensors, added in the order of ranks."""
        if self.count == 1:
            return tensor
        shares = map(_unpacked, self.collect(_packed(tensor)))
        return functools.reduce(torch.add, shares) if self.leads else None

    def spread(self, tensor: Tensor | None) -> Tensor:
        """Return the leading process's CPU tensor, bit by bit; others may pass None."""
        if self.count == 1 and tensor is not None:
            return tensor
        return _unpacked(self.first(None if tensor is None else _packed(tensor)))

    def check(self) -> None:
        """Raise the error of another process, if one has failed or is lost."""
        self._check_lost()
        if self.count > 1 and self._ask("check", [self._key("failed")]):
            raise _told(self._ask("get", self._key("failed")))

    def counter(self) -> Callable[[int], int]:
        """Return a function that adds to a number of all processes, and returns the sum."""
        self._counters += 1
        key = self._key(f"counter {self._counters}")
        return lambda amount: self._ask("add", key, amount)

    def leave(self) -> None:
        """Wait for a moment until all have left: the store may live in the leading process."""
        left, end = self._ask("add", "left", 1), time.monotonic() + _FAREWELL_SECONDS
        while self.leads and left < self.count and time.monotonic() < end:
            time.sleep(_SHORTEST_NAP)
            left = self._ask("add", "left", 0)

    def lose(self, rank: int | None) -> None:
        """End what the main thread does: process `rank` is lost, or all others for None."""
        self.lost = _unreachable("the other processes" if rank is None else f"process {rank}")
        _thread.interrupt_main(signal.SIGTERM)

    def _check_lost(self) -> None:
        if self.lost:
            raise LostError(self.lost)

    def _exchange(
        self, value: Any, read: Sequence[int], while_waiting: Callable[[], None] | None = None
    ) -> list[Any]:
        self._round += 1
        keys = [self._key(f"round {self._round} of {rank}") for rank in range(self.count)]
        written = self._put(keys[self.rank], json.dumps(value))
        nap = _SHORTEST_NAP
        while not self._ask("check", keys):
            self.check()
            if while_waiting:
                while_waiting()
            time.sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP)
        values = [json.loads(self._get(keys[rank])) for rank in read]
        # A process that wrote for this round has read all of the round before.
        for key in self._last_keys:
            self._ask("delete_key", key)
        self._last_keys = written
        return values

    def _put(self, key: str, text: str) -> list[str]:
        """Store a text of any length; return the keys that hold it."""
        raw = text.encode()
        starts = range(0, len(raw), _CHUNK)
        names = [f"{key} part {number}" for number in range(len(starts))]
        for name, start in zip(names, starts, strict=True):
            self._ask("set", name, raw[start : start + _CHUNK])
        self._ask("set", key, str(len(names)))  # last: the parts are there when it is
        return [*names, key]

    def _get(self, key: str) -> bytes:
        count = int(self._ask("get", key))
        return b"".join(self._ask("get", f"{key} part {number}") for number in range(count))

    def _tell(self, error: BaseException) -> None:
        """Tell the others of an error; raise the error that another process told before."""
        self._check_lost()
        if getattr(error, "told", False):
            return
        shown = error if isinstance(error, UsageError) else self._ending(error)
        own = json.dumps([self.rank, type(shown).__name__, str(shown)]).encode()
        first = self._ask("compare_set", self._key("failed"), "", own)
        if first != own and isinstance(error, UsageError | KeyboardInterrupt):
            raise _told(first)

    def _ending(self, error: BaseException) -> UsageError:
        """Return the error that the others raise for one that is not the user's."""
        if isinstance(error, KeyboardInterrupt):
            return InterruptedRunError(f"process {self.rank} was interrupted")
        return LostError(f"process {self.rank} failed ({error_line(error)})")

    def _ask(self, operation: str, *values: Any) -> Any:
        try:
            return getattr(self.store, operation)(*values)
        except RuntimeError as error:
            raise LostError(f"{_unreachable()} ({error_line(error)})") from error

    def _key(self, name: str) -> str:
        return f"{self._section} {name}"


def _packed(tensor: Tensor) -> list[Any]:
    raw = bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return [str(tensor.dtype), list(tensor.shape), base64.b64encode(raw).decode()]


def _unpacked(value: list[Any]) -> Tensor:
    name, shape, text = value
    dtype = getattr(torch, name.removeprefix("torch."))
    if not text:  # torch reads no empty buffer
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype).reshape(shape)


def _unreachable(who: str = "the other processes") -> str:
    return f"torchrun: {who} cannot be reached any more"


def _told(failure: bytes) -> UsageError:
    _, kind, message = json.loads(failure)
    error = error_named(kind)(message)
    error.told = True
    return error


ALONE = Ranks()


def joined() -> Ranks:
    """Return this process's place among all that torchrun started, connected to the others.

    Raises `UsageError` where torchrun's variables make no sense, and `FailedError` where the other
    processes cannot be reached.
    """
    return ALONE if process_count() == 1 else _joined()


@functools.cache
def _joined() -> Ranks:
    try:
        store, rank, count = next(rendezvous("env://", timeout=_START_LIMIT))
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        local_count = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    except (ValueError, RuntimeError) as error:
        kind = UsageError if isinstance(error, ValueError) else FailedError
        reason = f"torchrun: the processes cannot reach each other ({error_line(error)})"
        raise kind(reason) from error
    ranks = Ranks(rank, count, local_rank, local_count, PrefixStore("ranks", store))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        # The store lives in the leading process, not in torchrun.
        at_success(ranks.leave)
    if local_count < count:
        # torchrun ends the processes of its own machine when one of them is lost, and no others.
        heartbeat = Heartbeat(ranks.store, rank, count, ranks.lose)
        heartbeat.start()
        at_success(heartbeat.stop)  # before `leave`: the last is called first
    return ranks
