"""The outcome of a sweep: its complete runs, and the errors of the others."""

from dataclasses import dataclass, field
from pathlib import Path

from arguments.run import RunArguments
from command_line.errors import EXIT_INTERRUPTED, BusyError, FailedError, UsageError
from runs.record import RunRecord
from runs.sweep_states import run_name


@dataclass
class Outcome:
    """The files of the complete runs, and the name and error of each that failed.

    `count` is the number of runs. `short_of_memory` counts complete runs that lack prompts.
    """

    count: int = 0
    paths: list[Path] = field(default_factory=list)
    failed: list[tuple[str, UsageError]] = field(default_factory=list)
    short_of_memory: int = 0
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """The code of the worst run: it failed, lacks prompts, or belongs to another process."""
        worst = [error for _, error in self.failed if not isinstance(error, BusyError)]
        if self.interrupted:
            return EXIT_INTERRUPTED
        if worst:
            return worst[0].exit_code
        if self.short_of_memory:
            return FailedError.exit_code
        return BusyError.exit_code if self.failed else 0

    def summary(self) -> str:
        lines = [f"{len(self.paths)} of {self.count} runs are complete"]
        if self.short_of_memory:
            lines.append(f"{self.short_of_memory} of them lack prompts for want of memory")
        if self.interrupted:
            lines.append("interrupted; the same command goes on")
        return "\n".join(lines)

    def add(self, record: RunRecord, path: Path) -> None:
        if record.status == "complete":
            self.paths.append(path)
            self.short_of_memory += record.failed_prompts > 0
        else:
            self.interrupted = True

    def fail(self, run: RunArguments, error: UsageError) -> None:
        """Note an error without its frames, for they hold tensors."""
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self.failed.append((run_name(run), error))
