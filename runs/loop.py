"""The loop over a run's examples, and the status in which it ends."""

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic

from command_line.errors import InterruptedRunError
from processes.progress import progress
from processes.ranks import Ranks
from runs.record import Key, Line, RunRecord
from runs.writer import LogWriter


@dataclass(frozen=True)
class Turn:
    """A visit to a log that has done its first `passes` at the end.

    `is_last`: the log is complete then. `continues`: this process made an earlier visit.
    """

    passes: int = 1
    is_last: bool = True
    continues: bool = False


def one_by_one(keys: Sequence[Key]) -> Iterator[list[Key]]:
    """Yield each key as a group of its own."""
    return ([key] for key in keys)


@dataclass(frozen=True)
class Job(Generic[Line]):
    """The work that fills a log: the record, the lines of a group of keys, and the summary.

    `groups` divides the keys of a pass into those that are examined together. `summarize` gets
    all lines, the keys that this start was to add, and the seconds it took. The log has a line for
    each example in each of `passes`. `turn` says which visit to the log this is, where its passes
    are spread over several.
    """

    record: RunRecord
    examine: Callable[[list[Key]], list[Line]]
    summarize: Callable[[list[Line], Collection[Key], float], dict[str, Any]]
    groups: Callable[[Sequence[Key]], Iterable[list[Key]]] = one_by_one
    turn: Turn = Turn()


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
    """Add a line for each of `total` examples and each pass that the log lacks, then the summary.

    A pass begins after the one before it, in this process. An interruption leaves the lines that
    exist; with several processes it is raised in all.
    """
    turn, lines_wanted = job.turn, job.turn.passes * total
    passes = [[Key(repeat, index) for index in range(total)] for repeat in range(turn.passes)]
    to_do = [[key for key in keys if key not in writer.done] for keys in passes]
    missing = list(itertools.chain(*to_do))
    done = lines_wanted - len(missing)
    if writer.done and not turn.continues:
        in_passes = f" in {turn.passes} passes" if turn.passes > 1 else ""
        print(f"{writer.path.name} goes on: {done} of {lines_wanted} prompts{in_passes} are done")
    started = time.perf_counter()

    def finish(status: str) -> None:
        seconds = time.perf_counter() - started
        lines = writer.samples if status == "complete" else writer.finished()
        waits = status == "complete" and not turn.is_last
        writer.finish("running" if waits else status, job.summarize(lines, missing, seconds))

    with settled(finish, ranks.count == 1), progress(ranks, lines_wanted, done) as advance:
        for group in itertools.chain(*map(job.groups, map(ranks.share, to_do))):
            ranks.check()
            for line in job.examine(group):
                writer.add(line)
            advance(len(group))
        writer.merge(advance)
