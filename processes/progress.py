"""One progress bar for all processes of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from processes.ranks import Ranks


class Progress:
    """Counts what all processes have done; the leading one shows it."""

    def __init__(self, ranks: Ranks, total: int, done: int = 0) -> None:
        self._ranks, self._before, self._add = ranks, done, ranks.counter()
        self._bar = tqdm(total=total, initial=done, unit="prompt", disable=not ranks.leads)

    def advance(self) -> None:
        """One more is done here."""
        if self._ranks.count == 1:
            self._bar.update()
        else:
            self._show(self._add(1))

    def refresh(self) -> None:
        """Shows what the others have done meanwhile."""
        self._show(self._add(0))

    def close(self) -> None:
        self._bar.close()

    def _show(self, done: int) -> None:
        if self._before + done > self._bar.n:
            self._bar.update(self._before + done - self._bar.n)


@contextmanager
def progress(ranks: Ranks, total: int, done: int = 0) -> Iterator[Progress]:
    """A bar of `total` prompts, of which some were done before."""
    shown = Progress(ranks, total, done)
    try:
        yield shown
        if ranks.count > 1:
            shown.refresh()
    finally:
        shown.close()
