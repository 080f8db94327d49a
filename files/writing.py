"""Write files and folders whole or not at all, and hold a folder for one process."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from command_line.errors import BusyError, FailedError, reject


@contextmanager
def refused_unwritable(path: str, flag: str = "output_dir") -> Iterator[None]:
    """Turn an OSError before or at the beginning of a run into a `UsageError` of the flag."""
    try:
        yield
    except OSError as error:
        reject(flag, path, f"cannot be written ({error.strerror})")


@contextmanager
def held_folder(output_dir: str, lock_name: str, work: str) -> Iterator[None]:
    """Make the folder, and hold a lock in it for this process.

    Raise `BusyError`, which names the `work` of the other process, while another process holds the
    lock, and `UsageError` if the folder cannot be written.
    """
    folder = Path(output_dir)
    lock = FileLock(folder / lock_name, timeout=0)
    with refused_unwritable(output_dir):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise BusyError(f"--output_dir {output_dir}: another process {work}") from error
    try:
        yield
    finally:
        # Delete the lock file before releasing it, so that a waiting process notices.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


@contextmanager
def whole_folder(target: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield the path of a folder to make, which becomes `target` unless an error is raised.

    The path lies in a scratch folder, which is removed at the end. By default the scratch folder
    has a new name beside the target. If the caller names `scratch`, the remains of a killed process
    are removed from it first, so only one process may use it at a time.
    """
    if scratch is None:
        scratch = Path(tempfile.mkdtemp(dir=target.parent))
    else:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
    try:
        yield scratch / target.name
        (scratch / target.name).rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which replaces `path` unless an error is raised.

    An OSError names `path`, for users know no other.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        partial.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write the text to the file, whole or not at all."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_json(path: Path, values: dict[str, Any]) -> None:
    """Write the values to the file as JSON, whole or not at all."""
    replace_text(path, json_text(values, indent=2) + "\n")


def replace_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """Write a line of JSON per value to the file, whole or not at all."""
    replace_text(path, "".join(f"{json_text(one)}\n" for one in values))


def json_text(value: Any, indent: int | None = None) -> str:
    """Return the value as JSON. Raise ValueError for NaN: a missing value is null."""
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


class LineFile:
    """A file that grows by whole lines; each is handed to the system as soon as it is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    def add(self, line: str) -> None:
        """Append a line.

        Raise OSError if that fails, with the file as it was before, and FileNotFoundError if
        somebody removed the file.
        """
        try:
            size = os.fstat(self._file.fileno()).st_size
            left = memoryview(f"{line}\n".encode())
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), size)
            if self.is_there():
                raise
        if not self.is_there():
            raise FileNotFoundError(errno.ENOENT, "was removed during the run", str(self.path))

    def is_there(self) -> bool:
        """Return whether the path still leads to this file, True if the system cannot tell."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ENOTDIR)

    def write_again(self, lines: Iterable[str]) -> None:
        """Make the file, which was removed, again from these lines."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self.path, "".join(f"{line}\n" for line in lines))
        self._file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()


@contextmanager
def kept_from_errors(
    output_dir: str, write_again: Callable[[], None] | None = None
) -> Iterator[None]:
    """Turn an OSError during a run into a `FailedError`; finished work stays in the files.

    If the files were removed, `write_again` makes them again.
    """
    try:
        yield
    except FileNotFoundError as error:
        gone = f"--output_dir {output_dir}: was removed during the run"
        try:
            if write_again is None:
                raise
            write_again()
        except OSError as again:
            raise FailedError(f"{gone} and cannot be written again ({again.strerror})") from error
        raise FailedError(f"{gone}; what was finished is written again") from error
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); what was finished before is kept"
        raise FailedError(f"--output_dir {output_dir}: {reason}") from error
