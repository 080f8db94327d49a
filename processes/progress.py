"""One progress bar for all processes of a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from processes.ranks import Ranks


@contextmanager
def progress(
    ranks: Ranks, total: int, done: int = 0, unit: str = "prompt"
) -> Iterator[Callable[..., None]]:
    """Show a bar of `total` units, of which `done` were done before, in the leading process.

    Yield a function that counts more units of this process, and shows those of all.
    """
    add = ranks.counter()
    with tqdm(total=total, initial=done, unit=unit, disable=not ranks.leads) as bar:

        def advance(more: int = 0) -> None:
            bar.update(max(0, done + add(more) - bar.n))

        yield advance
        advance()
