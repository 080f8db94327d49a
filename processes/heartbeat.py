"""Signs of life among the processes of several machines.

torchrun's own keep-alive only counts machines for its next start (torch 2.13). When one of two
machines had lost its network, or both torchrun and the process had been killed there, torchrun and
the process of the other ran on for the 9 minutes that were watched. The heartbeat takes 15 s.
"""

import threading
from collections.abc import Callable
from contextlib import suppress

from torch.distributed import Store

# A process counts its own beats while its neighbour is silent, not seconds: a whole job may be
# suspended for a while.
PATIENCE = 15
FIRST_PATIENCE = 600  # before the neighbour's first beat: it may still read what it needs


class Heartbeat(threading.Thread):
    """Beats for this process, and watches the next process of the ring.

    If several vanish, a process that is still there watches the first of them and tells the rest.
    Calls `lost` once, with the number of the lost process, or None if the store is out of reach.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        count: int,
        lost: Callable[[int | None], None],
        beat_seconds: float = 1.0,
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.over = threading.Event()  # set: beat no more
        self._store, self._rank, self._next = store, rank, (rank + 1) % count
        self._lost, self._beat_seconds = lost, beat_seconds
        self._latest, self._silence = 0, 0

    def run(self) -> None:
        try:
            while not self.over.wait(self._beat_seconds):
                self._beat()
                if self._store.check(["lost"]):
                    self._lost(int(self._store.get("lost")))
                    return
        except RuntimeError:
            self._lost(None)

    def stop(self) -> None:
        """Beat no more, and tell the watcher not to wait for this process."""
        self.over.set()
        with suppress(RuntimeError):  # the store is gone, and so is the watcher's
            self._store.set(f"has left {self._rank}", "")

    def _beat(self) -> None:
        self._store.add(f"beat {self._rank}", 1)
        beats = self._store.add(f"beat {self._next}", 0)
        heard = beats != self._latest or self._store.check([f"has left {self._next}"])
        self._latest, self._silence = beats, 0 if heard else self._silence + 1
        if self._silence >= (PATIENCE if beats else FIRST_PATIENCE):
            self._store.set("lost", str(self._next))
