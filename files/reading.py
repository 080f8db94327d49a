"""Read files within bounds, and foreign JSON strictly.

Each whole file and each line has a limit in bytes, so a file without end costs no more than a
useful file. No function waits for a pipe without a writer.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

# Limits: of a configuration, template, plan or training state; a line of rows or samples; a JSON
# array of rows; a run's file or a captured console; a file of a checkpoint other than weights.
SETTINGS_BYTES = 16 << 20
LINE_BYTES = 64 << 20
ARRAY_BYTES = 256 << 20
LOG_BYTES = 256 << 20
PART_BYTES = 1 << 30


class DuplicateKeyError(ValueError):
    """A name appears twice in one JSON object, so its value is unclear."""


class TooLargeError(ValueError):
    """A file or line is larger than its limit."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open the file for reading. A pipe without a writer is empty. Raise OSError."""

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=without_waiting) as file:  # noqa: PTH123  Path's takes no opener
        os.set_blocking(file.fileno(), True)
        yield file


def read_bounded(path: Path, most: int) -> bytes:
    """Return all bytes of a file. Raise OSError, and `TooLargeError` for more than `most`."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size  # 0 for pipes, devices and files in /proc
        content = file.read(most + 1) if size <= most else b""
    if max(size, len(content)) > most:
        raise TooLargeError(f"is larger than {_shown(most)}")
    return content


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines with their ends. Raise `TooLargeError` for more than `LINE_BYTES`."""
    while line := file.readline(LINE_BYTES + 1):
        if len(line) > LINE_BYTES:
            raise TooLargeError(f"is longer than {_shown(LINE_BYTES)}")
        yield line


def parse_json(text: str | bytes) -> Any:
    """Return the value of foreign JSON. Raise ValueError if it is broken or unclear.

    Unclear are a name given twice in one object (`DuplicateKeyError`), a number that is not
    finite, and values nested too deeply.
    """
    if isinstance(text, bytes):
        text = text_of(text)  # json itself would guess other encodings
    try:
        return json.loads(
            text, object_pairs_hook=unique, parse_constant=_refused, parse_float=_finite
        )
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def parse_log(text: bytes) -> Any:
    """Return the value of JSON that this project wrote. Raise ValueError if it is broken."""
    return orjson.loads(text)


def read_settings(path: Path) -> dict[str, Any]:
    """Return the JSON object in a small file. Raise OSError, and ValueError as `parse_json`."""
    values = parse_json(read_bounded(path, SETTINGS_BYTES))
    if not isinstance(values, dict):
        raise ValueError("holds no JSON object")
    return values


def text_of(content: bytes) -> str:
    """Return the text without a byte order mark. Raise ValueError for bytes other than UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start})") from error


def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of the pairs. Raise `DuplicateKeyError` for a name given twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise DuplicateKeyError(f"names a field twice: {name}")
        found[name] = value
    return found


def _refused(name: str) -> float:
    raise ValueError(f"holds {name}, which is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refused(text)


def _shown(size: int) -> str:
    return f"{size >> 20} MiB"
