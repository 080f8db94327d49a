"""Files from elsewhere, read within bounds, and JSON read strictly.

What is read whole may have so many bytes, what is read line by line so many a line: a file without
end costs no more than one that is used. No function waits for a pipe that nobody writes to.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

SETTINGS_BYTES = 16 << 20  # a configuration, template, plan or state of progress
LINE_BYTES = 64 << 20  # a line of rows or samples
ARRAY_BYTES = 256 << 20  # rows in one JSON array, which is read whole
LOG_BYTES = 256 << 20  # a run's file, or a captured console
PART_BYTES = 1 << 30  # a file of a checkpoint, weights aside

_LONG_NUMBER = re.compile(rb"\d{19}")
_NAME = re.compile(rb'"\s*:')


class DuplicateKeyError(ValueError):
    """A name that stands twice in one JSON object: which value counts is anybody's guess."""


class TooLargeError(ValueError):
    """More bytes than are read of such a file or line."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, to be read. A pipe that nobody writes to is empty. Raises OSError."""

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=without_waiting) as file:  # noqa: PTH123  Path's takes no opener
        os.set_blocking(file.fileno(), True)
        yield file


def read_bounded(path: Path, most: int) -> bytes:
    """All bytes of a file. Raises OSError, and `TooLargeError` beyond so many."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size  # 0 for pipes, devices and what lies in /proc
        content = file.read(most + 1) if size <= most else b""
    if max(size, len(content)) > most:
        raise TooLargeError(f"is larger than {_shown(most)}")
    return content


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file with their ends. Raises `TooLargeError` beyond `LINE_BYTES`."""
    while line := file.readline(LINE_BYTES + 1):
        if len(line) > LINE_BYTES:
            raise TooLargeError(f"is longer than {_shown(LINE_BYTES)}")
        yield line


def parse_json(text: str | bytes) -> Any:
    """What JSON says. Raises ValueError where that is unclear.

    Unclear are broken JSON, a name given twice in one object (`DuplicateKeyError`), a number that
    is none, and values nested too deeply.
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
    """`parse_json` for the many lines of logs, three times as fast; halves of characters fail."""
    values = orjson.loads(text)
    if _LONG_NUMBER.search(text):
        return parse_json(text)  # as what is beyond 64 bits becomes a fraction in orjson
    # As many names as there can be were read: none stands twice. In doubt, all is read once more.
    if sum(1 for _ in _NAME.finditer(text)) != _names(values):
        parse_json(text)
    return values


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object of a small file. Raises OSError, and ValueError as `parse_json`."""
    values = parse_json(read_bounded(path, SETTINGS_BYTES))
    if not isinstance(values, dict):
        raise ValueError("holds no JSON object")
    return values


def text_of(content: bytes) -> str:
    """The text, without a byte order mark. Raises ValueError for what is no UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start})") from error


def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs whose names are different."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise DuplicateKeyError(f"names a field twice: {name}")
        found[name] = value
    return found


def _names(value: Any) -> int:
    """The names in objects; of a list that begins with neither list nor object, none."""
    if isinstance(value, dict):
        return len(value) + sum(map(_names, value.values()))
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return sum(map(_names, value))
    return 0


def _refused(name: str) -> float:
    raise ValueError(f"holds {name}, which is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refused(text)


def _shown(size: int) -> str:
    return f"{size >> 20} MiB"
