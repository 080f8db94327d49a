"""Writes a run's two files so that no kill at any moment costs more than one example a process."""

import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
from pruned_model import PrunePlan
from runs.reader import read_record, read_samples, record_of, whole_samples
from runs.record import RunRecord, SampleRecord, part_path, part_paths, samples_path


@contextmanager
def claimed(output_dir: str, run_id: str, ranks: Ranks = ALONE) -> Iterator[RunRecord | None]:
    """Holds a run for these processes; yields what an earlier start of it left, None if nothing.

    Raises `BusyError` while another start holds it, and `UsageError` where the folder cannot be
    written or what was left cannot be read.
    """
    if not ranks.leads:
        found = ranks.first(None)
        yield found and record_of(found)
        return
    folder = Path(output_dir)
    is_new = not folder.exists()
    work = f"is at work on this run, {run_id}"
    try:
        with held_folder(output_dir, f".{run_id}.lock", work):
            left = _left_over(output_dir, run_id)
            ranks.first(left and left.to_dict())
            yield left
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # only an empty folder goes


def find_run(output_dir: str, run_id: str) -> Path | None:
    """The file of the run with this id in the folder: the complete one, or else the newest."""
    paths = Path(output_dir).glob(f"benchmark_*_{run_id}.json")
    return max(paths, key=lambda path: (_is_complete(path), path.name), default=None)


class RunWriter:
    """Writes `OUTPUT_DIR/benchmark_<time>_<run id>.json` and `.samples.jsonl`.

    The first is replaced as a whole whenever it changes; of the second, a line is on its way to
    the disk as soon as its example is done. A run that was left goes on in its own files, with
    the samples that it has: `done` are their indices. Of several processes the leading one writes
    these two, and each other a part of its own, until `merge` has brought all samples together.

    Raises `UsageError` where the folder cannot be written, and `FailedError` where it cannot be
    any more; examples that were finished are kept.
    """

    def __init__(self, output_dir: str, record: RunRecord, ranks: Ranks = ALONE) -> None:
        self.record = record
        self.samples: list[SampleRecord] = []
        self._output_dir, self._ranks = output_dir, ranks
        found = find_run(output_dir, record.run_id) if ranks.leads else None
        name = (found or log_path(output_dir, "benchmark", record)).name
        name, self._start = ranks.first([name, secrets.token_hex(3)])
        self.path = Path(output_dir) / name
        with refused_unwritable(output_dir):
            self._begin(found)

    def add(self, sample: SampleRecord) -> None:
        """Appends an example's line."""
        with kept_from_errors(self._output_dir, lambda: self._write_again(sample)):
            self._file.add(_line(sample))
        self.samples.append(sample)

    def merge(self, while_waiting: Callable[[], None] | None = None) -> None:
        """Gives the leading process the samples of all, in the order of the examples."""
        if self._ranks.count > 1:
            own = [] if self._ranks.leads else list(map(dataclasses.asdict, self.samples))
            shares = self._ranks.collect(own, while_waiting)
            self._include([values for share in shares for values in share])
        indices = [sample.index for sample in self.samples]
        if self._ranks.leads and (self._ranks.count > 1 or indices != sorted(indices)):
            self.samples.sort(key=lambda sample: sample.index)
            with kept_from_errors(self._output_dir, self._write_again):
                replace_lines(samples_path(self.path), map(dataclasses.asdict, self.samples))

    def finish(self, status: str, metrics: dict[str, Any]) -> None:
        """Closes the run with its final status and metrics, which all processes know then."""
        try:
            if self._ranks.leads:
                self.record.status = status
                self.record.ended = timestamp()
                self.record.metrics = metrics
                with kept_from_errors(self._output_dir, self._write_again):
                    self._replace()
        finally:
            self.close()
        if status == "complete" and self._ranks.count > 1:
            # Once the leading one says so, what the parts hold is in the run's own files.
            self.record = record_of(self._ranks.first(self.record.to_dict()))
            self._remove_parts()

    def finished(self) -> list[SampleRecord]:
        """The samples of all processes, as far as this one has them or sees them now.

        Its own are on disk then, if that is possible at all.
        """
        if not self._file.is_there():
            with suppress(OSError):
                self._write_again()
        known = {sample.index: sample for sample in self.samples}
        with suppress(OSError, ValueError):
            known |= {sample.index: sample for sample in read_samples(self.path)}
        return [known[index] for index in sorted(known)]

    def close(self) -> None:
        """Closes the file of samples; the run keeps the status that it has."""
        self._file.close()

    def _begin(self, found: Path | None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._ranks.leads:
            self._begin_run(found)
        self.done = set(self._ranks.first([sample.index for sample in self.samples]))
        self._include_what_others_see()
        self._ranks.exchange(None)  # all of that is in the run's own files now
        if not self._ranks.leads:
            self._remove_parts()
            self._file = LineFile(part_path(self.path, self._ranks.rank, self._start))

    def _begin_run(self, found: Path | None) -> None:
        if found:
            self.samples = _recovered(self._output_dir, found)
        else:
            self.record.started = timestamp()
        # A run's file is there before its samples, so that none stand alone.
        self._replace()
        try:
            self._file = LineFile(samples_path(self.path))
        except OSError:
            if not found:
                self.path.unlink()
            raise
        self._remove_parts()

    def _include_what_others_see(self) -> None:
        """Takes in parts of an earlier start that lie on the disk of another machine."""
        seen = [] if self._ranks.leads else _readable(self._output_dir, self.path)
        unknown = [one for one in map(dataclasses.asdict, seen) if one["index"] not in self.done]
        for share in self._ranks.exchange(unknown):
            new = [values for values in share if values["index"] not in self.done]
            self.done |= {values["index"] for values in new}
            for sample in self._include(new):
                self._file.add(_line(sample))

    def _include(self, values: list[dict[str, Any]]) -> list[SampleRecord]:
        """Adds the samples of other processes to those of the leading one."""
        included = [SampleRecord(**one) for one in values] if self._ranks.leads else []
        self.samples += included
        return included

    def _write_again(self, *more: SampleRecord) -> None:
        """Writes anew what this process has written, and more, where it was removed."""
        if self._ranks.leads:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._replace()
        self.samples += more
        self._file.write_again(map(_line, self.samples))

    def _remove_parts(self) -> None:
        """Removes the parts of earlier starts; once the run is over, of this one too."""
        is_over = self.record.status == "complete"
        for path in part_paths(self.path):
            if is_over or f"-{self._start}." not in path.name:
                path.unlink(missing_ok=True)

    def _replace(self) -> None:
        replace_json(self.path, self.record.to_dict())


def log_path(output_dir: str, kind: str, record: RunRecord) -> Path:
    """`OUTPUT_DIR/<kind>_<time>_<run id>.json`, a name that no earlier log has."""
    return Path(output_dir) / f"{kind}_{time.strftime('%Y%m%d_%H%M%S')}_{record.run_id}.json"


def begin_log(output_dir: str, kind: str, record: RunRecord, ranks: Ranks = ALONE) -> Path:
    """Where a run's only file will be, in a folder that is there by then.

    Raises `UsageError` where the folder cannot be written.
    """
    record.started = timestamp()
    with refused_unwritable(output_dir):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    return Path(output_dir) / ranks.first(log_path(output_dir, kind, record).name)


def resume(left: RunRecord, new: RunRecord) -> RunRecord:
    """The run that was left, as this start takes it up: it remains the run that it was."""
    changed = [
        name
        for name, before, now in (
            ("commit", left.commit, new.commit),
            ("versions", left.runtime.get("versions"), new.runtime.get("versions")),
        )
        if before != now
    ]
    if changed:
        warn(
            f"run {left.run_id} was begun with another {' and '.join(changed)}; its log tells both"
        )
    start = {
        "started": timestamp(),
        "command": new.command,
        "commit": new.commit,
        "runtime": new.runtime,
    }
    return dataclasses.replace(
        left, status="running", ended=None, metrics={}, resumed=[*left.resumed, start]
    )


def timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _left_over(output_dir: str, run_id: str) -> RunRecord | None:
    for scratch in Path(output_dir).glob(f"benchmark_*_{run_id}.*.partial"):
        scratch.unlink()
    path = find_run(output_dir, run_id)
    try:
        left = path and read_record(path)
        if left:
            PrunePlan.from_dict(left.plan)  # refuses what no run could go on with
        return left
    except (OSError, ValueError) as error:
        reject("output_dir", output_dir, f"{path.name} cannot be taken up: {error}; move it away")


def _recovered(output_dir: str, path: Path) -> list[SampleRecord]:
    """The samples that are whole, all in the run's own file from now on.

    A last line that is not whole is cut off, and what several processes left in parts is added.
    """
    samples = _readable(output_dir, path)
    own, size = whole_samples(samples_path(path))
    file_path = samples_path(path)
    found = file_path.read_bytes() if file_path.exists() else b""
    if len(found) > size:
        warn(f"{file_path.name}: the last line is damaged and dropped; its example runs again")
    if own != samples or len(found) > size or not found.endswith(b"\n"):
        replace_lines(file_path, map(dataclasses.asdict, samples))
    return samples


def _readable(output_dir: str, path: Path) -> list[SampleRecord]:
    try:
        return read_samples(path)
    except ValueError as error:
        reject("output_dir", output_dir, f"{error}; move the run's two files away to begin anew")


def _is_complete(path: Path) -> bool:
    try:
        return read_record(path).status == "complete"
    except (OSError, ValueError):
        return False


def _line(sample: SampleRecord) -> str:
    return json_text(dataclasses.asdict(sample))
