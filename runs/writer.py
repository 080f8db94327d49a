"""Writes a log's two files; a kill loses at most one group of examples per process."""

import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic

from command_line.errors import reject
from command_line.messages import warn
from files.writing import (
    LineFile,
    held_folder,
    json_text,
    kept_from_errors,
    refused_unwritable,
    replace_json,
    replace_lines,
)
from processes.ranks import ALONE, Ranks
from runs.reader import read_lines, read_record, record_of, whole_lines
from runs.record import (
    RUN,
    Key,
    Line,
    LogKind,
    RunRecord,
    part_path,
    part_paths,
    samples_path,
)


@contextmanager
def claimed(
    output_dir: str, run_id: str, ranks: Ranks = ALONE, kind: LogKind = RUN
) -> Iterator[tuple[RunRecord, Path] | None]:
    """Hold a run for these processes; yield the log that an earlier start left, None if none.

    Raises `BusyError` while another start holds the run, and `UsageError` if the folder cannot be
    written or the log cannot be read.
    """
    if not ranks.leads:
        found = ranks.first(None)
        yield found and (record_of(found[0]), Path(found[1]))
        return
    folder = Path(output_dir)
    is_new = not folder.exists()
    work = f"is at work on this run, {run_id}"
    try:
        with held_folder(output_dir, lock_name(run_id, kind), work):
            left = _left_over(output_dir, run_id, kind)
            ranks.first(left and [left[0].to_dict(), str(left[1])])
            yield left
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # removes an empty folder only


def find_run(output_dir: str, run_id: str, kind: LogKind = RUN) -> Path | None:
    """Return the JSON file of this run in the folder: the complete one, or else the newest."""
    paths = Path(output_dir).glob(f"{kind.name}_*_{run_id}.json")
    return max(paths, key=lambda path: (_is_complete(path), path.name), default=None)


def lock_name(run_id: str, kind: LogKind = RUN) -> str:
    """Return the name of the file that a process locks while it is at work on this run."""
    return f".{run_id}.lock" if kind is RUN else f".{kind.name}_{run_id}.lock"


class LogWriter(Generic[Line]):
    """Writes `OUTPUT_DIR/<kind>_<time>_<run id>.json` and its `.samples.jsonl`.

    The JSON file is replaced as a whole whenever it changes; a line is on its way to the disk as
    soon as its example is done. A log of an earlier start is continued: `samples` are its lines,
    and `done` their keys. With several processes, the leading one writes these two files, and
    every other a part, until `merge` brings all lines together.

    Raises `UsageError` if the folder cannot be written at the start, and `FailedError` if it cannot
    be written later; finished examples are kept.
    """

    def __init__(
        self, output_dir: str, record: RunRecord, ranks: Ranks = ALONE, kind: LogKind = RUN
    ) -> None:
        self.record = record
        self.samples: list[Line] = []
        self._output_dir, self._ranks = output_dir, ranks
        self._kind: LogKind[Line] = kind
        found = find_run(output_dir, record.run_id, kind) if ranks.leads else None
        name = (found or log_path(output_dir, kind.name, record)).name
        name, self._start = ranks.first([name, secrets.token_hex(3)])
        self.path = Path(output_dir) / name
        with refused_unwritable(output_dir):
            self._begin(found)

    def add(self, sample: Line) -> None:
        """Append an example's line."""
        with kept_from_errors(self._output_dir, lambda: self._write_again(sample)):
            self._file.add(_text(sample))
        self.samples.append(sample)

    def merge(self, while_waiting: Callable[[], None] | None = None) -> None:
        """Give the leading process the lines of all, pass by pass in the order of the examples."""
        if self._ranks.count > 1:
            own = [] if self._ranks.leads else list(map(dataclasses.asdict, self.samples))
            for share in self._ranks.collect(own, while_waiting):
                self.samples += self._lines(share)
        keys = [sample.key for sample in self.samples]
        if self._ranks.leads and (self._ranks.count > 1 or keys != sorted(keys)):
            self.samples.sort(key=lambda sample: sample.key)
            with kept_from_errors(self._output_dir, self._write_again):
                replace_lines(samples_path(self.path), map(dataclasses.asdict, self.samples))

    def finish(self, status: str, metrics: dict[str, Any]) -> None:
        """Close the log with its status and metrics; a complete one is known to all ranks.

        The status "running" leaves the log to a later pass of this process.
        """
        try:
            if self._ranks.leads:
                self.record.status = status
                self.record.ended = None if status == "running" else timestamp()
                self.record.metrics = metrics
                with kept_from_errors(self._output_dir, self._write_again):
                    self._replace()
        finally:
            self.close()
        if status == "complete" and self._ranks.count > 1:
            # The leading process has written the lines of all parts by the time it answers.
            self.record = record_of(self._ranks.first(self.record.to_dict()))
            self._remove_parts()

    def finished(self) -> list[Line]:
        """Return the lines of all processes, as far as this process has or sees them now.

        Tries to have this process's own lines on disk afterwards.
        """
        if not self._file.is_there():
            with suppress(OSError):
                self._write_again()
        known = {sample.key: sample for sample in self.samples}
        with suppress(OSError, ValueError):
            known |= {line.key: line for line in read_lines(self.path, self._kind)}
        return [known[key] for key in sorted(known)]

    def close(self) -> None:
        """Close the file of lines; the log keeps its status."""
        self._file.close()

    def _begin(self, found: Path | None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._ranks.leads:
            self._begin_run(found)
        keys = self._ranks.first([sample.key for sample in self.samples])
        self.done = {Key(*key) for key in keys}
        self._include_what_others_see()
        self._ranks.exchange(None)  # from now on the log's own files hold all lines
        if not self._ranks.leads:
            self._remove_parts()
            self._file = LineFile(part_path(self.path, self._ranks.rank, self._start))

    def _begin_run(self, found: Path | None) -> None:
        if found:
            self.samples = self._recovered(found)
        else:
            self.record.started = timestamp()
        # The JSON file comes first, so that no file of lines is ever alone.
        self._replace()
        try:
            self._file = LineFile(samples_path(self.path))
        except OSError:
            if not found:
                self.path.unlink()
            raise
        self._remove_parts()

    def _include_what_others_see(self) -> None:
        """Include the parts of an earlier start that lie on the disks of other machines."""
        seen = [] if self._ranks.leads else self._readable(self.path)
        unknown = [dataclasses.asdict(line) for line in seen if line.key not in self.done]
        for share in self._ranks.exchange(unknown):
            new = [line for line in self._lines(share) if line.key not in self.done]
            self.done |= {line.key for line in new}
            if self._ranks.leads:
                for line in new:
                    self._file.add(_text(line))
                self.samples += new

    def _lines(self, share: list[dict[str, Any]]) -> list[Line]:
        """Return the lines that another process sent as values."""
        return [self._kind.line(**values) for values in share]

    def _recovered(self, path: Path) -> list[Line]:
        """Move all complete lines to the log's own file, and return them.

        Cuts off an incomplete last line, and adds the lines of parts.
        """
        samples = self._readable(path)
        file_path = samples_path(path)
        own, size = whole_lines(file_path, self._kind)
        found = file_path.read_bytes() if file_path.exists() else b""
        if len(found) > size:
            warn(f"{file_path.name}: the last line is damaged and dropped; its example runs again")
        if own != samples or len(found) > size or not found.endswith(b"\n"):
            replace_lines(file_path, map(dataclasses.asdict, samples))
        return samples

    def _readable(self, path: Path) -> list[Line]:
        return _readable(self._output_dir, path, self._kind)

    def _write_again(self, *more: Line) -> None:
        """Write what this process has written, and `more`, once more after it was removed."""
        if self._ranks.leads:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._replace()
        self.samples += more
        self._file.write_again(map(_text, self.samples))

    def _remove_parts(self) -> None:
        """Remove the parts of earlier starts; those of this start too, once it is complete."""
        for path in part_paths(self.path):
            if self.record.is_complete or f"-{self._start}." not in path.name:
                path.unlink(missing_ok=True)

    def _replace(self) -> None:
        replace_json(self.path, self.record.to_dict())


def done_indices(path: Path, kind: LogKind) -> list[int]:
    """Return the indices of the examples that a log on this machine has, in its first pass.

    Raises `UsageError` for a damaged log.
    """
    lines = _readable(str(path.parent), path, kind)
    return [line.index for line in lines if not line.key.repeat]


def log_path(output_dir: str, kind: str, record: RunRecord) -> Path:
    """Return `OUTPUT_DIR/<kind>_<time>_<run id>.json`."""
    return Path(output_dir) / f"{kind}_{time.strftime('%Y%m%d_%H%M%S')}_{record.run_id}.json"


def begin_log(output_dir: str, kind: str, record: RunRecord, ranks: Ranks = ALONE) -> Path:
    """Make the folder of a log that is a single file, and return the file's path.

    Raises `UsageError` if the folder cannot be written.
    """
    record.started = timestamp()
    with refused_unwritable(output_dir):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    return Path(output_dir) / ranks.first(log_path(output_dir, kind, record).name)


def resume(left: RunRecord, new: RunRecord, same_start: bool = False) -> RunRecord:
    """Return the record of an earlier start with this start added to `resumed`.

    `same_start`: this process wrote the record itself, in an earlier pass; nothing is added.
    """
    running = dataclasses.replace(left, status="running", ended=None, metrics={})
    if same_start:
        return running
    changed = ["commit"] if left.commit != new.commit else []
    if left.runtime.get("versions") != new.runtime.get("versions"):
        changed.append("versions")
    if changed:
        other = " and ".join(changed)
        warn(f"run {left.run_id} was begun with another {other}; its log tells both")
    start = {
        "started": timestamp(),
        "command": new.command,
        "commit": new.commit,
        "runtime": new.runtime,
    }
    return dataclasses.replace(running, resumed=[*left.resumed, start])


def timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _left_over(output_dir: str, run_id: str, kind: LogKind) -> tuple[RunRecord, Path] | None:
    for scratch in Path(output_dir).glob(f"{kind.name}_*_{run_id}.*.partial"):
        scratch.unlink()
    path = find_run(output_dir, run_id, kind)
    if path is None:
        return None
    try:
        left = read_record(path)
        left.prune_plan()  # no run could continue without it
        left.drafter_plan()
    except (OSError, ValueError) as error:
        reject("output_dir", output_dir, f"{path.name} cannot be taken up: {error}; move it away")
    return left, path


def _readable(output_dir: str, path: Path, kind: LogKind[Line]) -> list[Line]:
    try:
        return read_lines(path, kind)
    except ValueError as error:
        reject("output_dir", output_dir, f"{error}; move the run's two files away to begin anew")


def _is_complete(path: Path) -> bool:
    try:
        return read_record(path).is_complete
    except (OSError, ValueError):
        return False


def _text(line: Any) -> str:
    return json_text(dataclasses.asdict(line))
