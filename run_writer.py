"""Writes a run's two files so that no kill at any moment costs more than one example."""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from command_line import BusyError, reject, warn
from pruned_model import PrunePlan
from run_log import RunRecord, SampleRecord, read_record, samples_path, whole_samples


@contextmanager
def claimed(output_dir: str, run_id: str) -> Iterator[RunRecord | None]:
    """Holds a run for this process; yields what an earlier start of it left, None if nothing.

    Raises `BusyError` while another process holds it, and `UsageError` where the folder cannot be
    written or what was left cannot be read.
    """
    folder = Path(output_dir)
    is_new = not folder.exists()
    work = f"is at work on this run, {run_id}"
    try:
        with held_folder(output_dir, f".{run_id}.lock", work):
            yield _left_over(output_dir, run_id)
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # only an empty folder goes


@contextmanager
def held_folder(output_dir: str, lock_name: str, work: str) -> Iterator[None]:
    """Makes the folder, and holds a lock in it for this process.

    Raises `BusyError`, with what another process is at, while that one holds it, and `UsageError`
    where the folder cannot be written.
    """
    folder = Path(output_dir)
    lock = FileLock(folder / lock_name, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise BusyError(f"--output_dir {output_dir}: another process {work}") from error
    except OSError as error:
        reject("output_dir", output_dir, f"cannot be written ({error.strerror})")
    try:
        yield
    finally:
        # Taken away while it is held: whoever opened it meanwhile finds that it is gone.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def written_whole(target: Path, partial: Path) -> Iterator[None]:
    """Lets a folder be written as `partial`, and then be there as `target`, or not at all.

    What a process that was killed left of `partial` goes first.
    """
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def find_run(output_dir: str, run_id: str) -> Path | None:
    """The file of the run with this id in the folder: the complete one, or else the newest."""
    paths = Path(output_dir).glob(f"benchmark_*_{run_id}.json")
    return max(paths, key=lambda path: (_is_complete(path), path.name), default=None)


class RunWriter:
    """Writes `OUTPUT_DIR/benchmark_<time>_<run id>.json` and `.samples.jsonl`.

    The first is replaced as a whole whenever it changes; of the second, a line is on its way to
    the disk as soon as its example is done. A run that was left goes on in its own files, with
    the `samples` that it has. Raises `UsageError` where the folder cannot be written.
    """

    def __init__(self, output_dir: str, record: RunRecord) -> None:
        found = find_run(output_dir, record.run_id)
        self.path = found or log_path(output_dir, "benchmark", record)
        self.record = record
        self.samples: list[SampleRecord] = []
        try:
            self._begin(output_dir, found)
        except OSError as error:
            reject("output_dir", output_dir, f"cannot be written ({error.strerror})")

    def add(self, sample: SampleRecord) -> None:
        """Appends an example's line."""
        self._file.write(_dump(dataclasses.asdict(sample)) + "\n")
        self._file.flush()
        self.samples.append(sample)

    def finish(self, status: str, metrics: dict[str, Any]) -> None:
        """Closes the run with its final status and metrics."""
        self.close()
        self.record.status = status
        self.record.ended = timestamp()
        self.record.metrics = metrics
        self._replace()

    def close(self) -> None:
        """Closes the file of samples; the run keeps the status that it has."""
        self._file.close()

    def _begin(self, output_dir: str, found: Path | None) -> None:
        if found:
            self.samples = _recovered(output_dir, found)
        else:
            self.record.started = timestamp()
            self.path.parent.mkdir(parents=True, exist_ok=True)
        # A run's file is there before its samples, so that none stand alone.
        self._replace()
        try:
            self._file = samples_path(self.path).open("a", encoding="utf-8")
        except OSError:
            if not found:
                self.path.unlink()
            raise

    def _replace(self) -> None:
        replace_json(self.path, self.record.to_dict())


def log_path(output_dir: str, kind: str, record: RunRecord) -> Path:
    """`OUTPUT_DIR/<kind>_<time>_<run id>.json`, a name that no earlier log has."""
    return Path(output_dir) / f"{kind}_{time.strftime('%Y%m%d_%H%M%S')}_{record.run_id}.json"


def begin_log(output_dir: str, kind: str, record: RunRecord) -> Path:
    """Where a run's only file will be, in a folder that is there by then.

    Raises `UsageError` where the folder cannot be written.
    """
    record.started = timestamp()
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reject("output_dir", output_dir, f"cannot be written ({error.strerror})")
    return log_path(output_dir, kind, record)


def replace_json(path: Path, values: dict[str, Any]) -> None:
    """Makes the file hold these values, whole or not at all."""
    text = _dump(values, indent=2) + "\n"
    scratch = path.with_suffix(".json.partial")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


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
    for scratch in Path(output_dir).glob(f"benchmark_*_{run_id}.json.partial"):
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
    """The samples that are whole; a last line that is not is cut off the file."""
    try:
        samples, size = whole_samples(path)
    except ValueError as error:
        reject("output_dir", output_dir, f"{error}; move the run's two files away to begin anew")
    file_path = samples_path(path)
    if file_path.exists():
        if file_path.stat().st_size > size:
            warn(f"{file_path.name}: the last line is damaged and dropped; its example runs again")
        with file_path.open("r+b") as file:
            file.truncate(size)
            file.seek(max(size - 1, 0))
            if size and file.read(1) != b"\n":
                file.write(b"\n")
    return samples


def _is_complete(path: Path) -> bool:
    try:
        return read_record(path).status == "complete"
    except (OSError, ValueError):
        return False


def _dump(value: Any, indent: int | None = None) -> str:
    # NaN is no JSON: a value that is missing is null.
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
