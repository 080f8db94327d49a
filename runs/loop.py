"""The loop over a run's examples, and the status in which it ends."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic

from command_line.errors import InterruptedRunError
from processes.progress import progress
from processes.ranks import Ranks
from runs.record import Line, RunRecord
from runs.writer import LogWriter


@dataclass(frozen=True)
class Job(Generic[Line]):
    """The work that fills a log: the record, the line of each example by index, and the summary.

    `summarize` gets all lines, the indices that this start was to add, and the seconds it took.
    """

    record: RunRecord
    examine: Callable[[int], Line]
    summarize: Callable[[list[Line], Collection[int], float], dict[str, Any]]


@contextmanager
def settled(finish: Callable[[str], None], keeps_quiet: bool) -> Iterator[None]:
    """Do the work inside, then call `finish` with its status: complete, interrupted or failed.

    Every error is raised again, except an interruption if `keeps_quiet`.
    """
    status = "failed"
    try:
        yield
        status = "complete"
    except (KeyboardInterrupt, InterruptedRunError):
        status = "interrupted"
        if not keeps_quiet:
            raise
    finally:
        finish(status)


def fill_log(writer: LogWriter[Line], ranks: Ranks, total: int, job: Job[Line]) -> None:
    """Add a line for every one of `total` examples that the log lacks, then the summary.

    An interruption leaves the lines that exist; with several processes it is raised in all.
    """
    missing = [index for index in range(total) if index not in writer.done]
    if writer.done:
        print(f"{writer.path.name} goes on: {len(writer.done)} of {total} prompts are done")
    started = time.perf_counter()

    def finish(status: str) -> None:
        seconds = time.perf_counter() - started
        lines = writer.samples if status == "complete" else writer.finished()
        writer.finish(status, job.summarize(lines, missing, seconds))

    with settled(finish, ranks.count == 1), progress(ranks, total, len(writer.done)) as advance:
        for index in ranks.share(missing):
            ranks.check()
            writer.add(job.examine(index))
            advance(1)
        writer.merge(advance)
