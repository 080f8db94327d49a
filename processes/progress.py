"""One progress bar for all processes of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from processes.ranks import Ranks


class Progress:
    """Counts the prompts that all processes have done; the leading process shows it."""

    def __init__(self, ranks: Ranks, total: int, done: int) -> None:
        self._before, self._add = done, ranks.counter()
        self._bar = tqdm(total=total, initial=done, unit="prompt", disable=not ranks.leads)

    def refresh(self, more: int = 0) -> None:
        """Count `more` prompts of this process, and show those of all."""
        done = self._before + self._add(more)
        self._bar.update(max(0, done - self._bar.n))

    def advance(self) -> None:
        """Count one more prompt."""
        self.refresh(1)

    def close(self) -> None:
        self._bar.close()


@contextmanager
def progress(ranks: Ranks, total: int, done: int = 0) -> Iterator[Progress]:
    """Show a bar of `total` prompts, of which `done` were done before."""
    bar = Progress(ranks, total, done)
    try:
        yield bar
        bar.refresh()
    finally:
        bar.close()
