"""Files that are whole at every moment, and folders that one process holds."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from command_line.errors import BusyError, FailedError, reject


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
        with suppress(OSError):
            Path(lock.lock_file).unlink()
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


class LineFile:
    """A file that grows by whole lines, each on its way to the disk once it is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    def add(self, line: str) -> None:
        """Adds a line. Raises OSError where that fails, and the file ends as it did before.

        Of a file that was removed meanwhile, FileNotFoundError.
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
        """Whether the path still leads to this file; so it does where that cannot be told."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ENOTDIR)

    def write_again(self, lines: Iterable[str]) -> None:
        """Makes the file anew where it was removed, with these lines."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self.path, "".join(f"{line}\n" for line in lines))
        self._file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()


def replace_text(path: Path, text: str) -> None:
    """Makes the file hold this text, whole or not at all."""
    scratch = path.with_suffix(f"{path.suffix}.partial")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def replace_json(path: Path, values: dict[str, Any]) -> None:
    """Makes the file hold these values, whole or not at all."""
    replace_text(path, json_text(values, indent=2) + "\n")


def replace_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """Makes the file hold a line for each of these values, whole or not at all."""
    replace_text(path, "".join(f"{json_text(one)}\n" for one in values))


def json_text(value: Any, indent: int | None = None) -> str:
    # NaN is no JSON: a value that is missing is null.
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


@contextmanager
def refused_unwritable(output_dir: str) -> Iterator[None]:
    """Makes a `UsageError` of what keeps a run's files from being begun."""
    try:
        yield
    except OSError as error:
        reject("output_dir", output_dir, f"cannot be written ({error.strerror})")


@contextmanager
def kept_from_errors(
    output_dir: str, write_again: Callable[[], None] | None = None
) -> Iterator[None]:
    """What fails to be written inside ends the run, and leaves what was finished before.

    `write_again` does so where the files were removed. Raises `FailedError`.
    """
    try:
        yield
    except FileNotFoundError as error:
        gone = f"--output_dir {output_dir}: was removed during the run"
        try:
            (write_again or _give_up)()
        except OSError as again:
            raise FailedError(f"{gone} and cannot be written again ({again.strerror})") from error
        raise FailedError(f"{gone}; what was finished is written again") from error
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); what was finished before is kept"
        raise FailedError(f"--output_dir {output_dir}: {reason}") from error


def _give_up() -> None:
    raise FileNotFoundError(errno.ENOENT, "nothing is left of it")
