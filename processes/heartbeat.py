"""Signs of life among processes on several machines, where no launcher sees all of them end."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

BEAT_SECONDS = 1.0
# So many beats of its own a process waits for one of its neighbour's. Seconds would not do: a whole
# job may be suspended for a while.
PATIENCE = 15
_FIRST_PATIENCE = 600  # until its first, while it may still read what it needs


class Heartbeat(threading.Thread):
    """Beats for this process, and watches the next one of the ring.

    Of neighbours that are gone, some process still there watches the first, and all others hear of
    it. `lost` is called once with the number of a process that was lost, or None where the store
    that all write to cannot be reached any more.
    """

    def __init__(
        self, store: Any, rank: int, count: int, lost: Callable[[int | None], None]
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._store, self._rank, self._next = store, rank, (rank + 1) % count
        self._lost = lost
        self._over = threading.Event()
        self._latest, self._silence = 0, 0

    def run(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            try:
                found = self._beat()
            except RuntimeError:
                self._lost(None)
                return
            if found is not None:
                self._lost(found)
                return

    def stop(self) -> None:
        """No more beats, and nobody will miss them."""
        self.fall_silent()
        with suppress(RuntimeError):  # the store is gone, and with it whoever could miss them
            self._store.set(f"has left {self._rank}", "")

    def fall_silent(self) -> None:
        """No more beats."""
        self._over.set()

    def _beat(self) -> int | None:
        """Beats, and returns the number of a process that is lost."""
        self._store.add(f"beat {self._rank}", 1)
        beats = self._store.add(f"beat {self._next}", 0)
        heard = beats != self._latest or self._store.check([f"has left {self._next}"])
        self._latest, self._silence = beats, 0 if heard else self._silence + 1
        if self._silence >= (PATIENCE if beats else _FIRST_PATIENCE):
            self._store.set("lost", str(self._next))
        return int(self._store.get("lost")) if self._store.check(["lost"]) else None
