"""One file of rows: JSON, CSV, Parquet or Arrow, packed or not, and what is wrong with it."""

import codecs
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from files.error_lines import error_line
from files.reading import (
    ARRAY_BYTES,
    LINE_BYTES,
    PART_BYTES,
    DuplicateKeyError,
    TooLargeError,
    bounded_lines,
    opened,
    parse_json,
    text_of,
    unique,
)


class RowsError(ValueError):
    """Rows that cannot be read; the message says why, its reader knows which flag named them."""


@dataclass(frozen=True)
class Row:
    """A row's fields, and where they stand, such as line 3."""

    place: str
    values: dict[str, Any]


def read_rows(path: Path, name: str = "") -> list[Row]:
    """All rows of one file, at least one. `name` is what to call the file, where nobody named it.

    Raises `RowsError`.
    """
    within = f"{name} " if name else ""
    suffix = Path(path.stem if _packed(path) else path.name).suffix.lower()
    try:
        with _opened(path) as file:
            if suffix not in FORMATS:
                raise RowsError(f"must end in {', '.join(FORMATS)}, or one of these and .gz")
            rows = FORMATS[suffix](file)
        if not rows:
            raise RowsError("holds no examples")
    except RowsError as error:
        raise RowsError(f"{within}{error}") from error
    return [Row(within + row.place, row.values) for row in rows] if within else rows


def _packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's own bytes, unpacked; what goes wrong while they are read is a `RowsError`."""
    try:
        with opened(path) as file:
            yield gzip.GzipFile(fileobj=file) if _packed(path) else file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RowsError(f"is no whole gzip file ({error})") from error
    except OSError as error:
        raise RowsError(f"cannot be read ({error.strerror})") from error


_HEAD_BYTES = 64  # more white space than an array has before it


def _parse_json_rows(file: BinaryIO) -> list[Row]:
    """The rows of one array, or a row of each line that is not blank."""
    if file.peek(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
        return _parse_array(file.read(ARRAY_BYTES + 1))
    numbered = enumerate(_text_lines(file), start=1)
    return [_parse_line(number, line) for number, line in numbered if line.strip()]


def _parse_array(content: bytes) -> list[Row]:
    if len(content) > ARRAY_BYTES:
        raise RowsError(f"is one array of more than {ARRAY_BYTES >> 20} MiB; write a row a line")
    try:
        text = text_of(content)
    except ValueError as error:
        raise RowsError(str(error)) from error
    rows = []
    for number, values in enumerate(_parsed(text, "", "line {0.lineno}, "), start=1):
        if not isinstance(values, dict):
            raise RowsError(f"row {number} is not a JSON object")
        rows.append(Row(f"row {number}", values))
    return rows


def _text_lines(file: BinaryIO) -> Iterator[str]:
    """The lines with their ends, of a file that may begin with a byte order mark."""
    number, offset, lines = 1, 0, bounded_lines(file)
    try:
        for line in lines:
            text = line.decode("utf-8" if offset else "utf-8-sig")
            yield text
            number, offset = number + 1, offset + len(line)
    except UnicodeDecodeError as error:
        raise RowsError(f"is not UTF-8 text (byte {offset + error.start})") from error
    except TooLargeError as error:
        raise RowsError(f"line {number} {error}") from error


def _parse_line(number: int, line: str) -> Row:
    values = _parsed(line.rstrip("\r\n"), f"line {number} ")
    if not isinstance(values, dict):
        raise RowsError(f"line {number} is not a JSON object")
    return Row(f"line {number}", values)


def _parsed(text: str, place: str, within: str = "") -> Any:
    """Return what JSON says. `place` begins an error's message, `within` its place in the text."""
    try:
        return parse_json(text)
    except DuplicateKeyError as error:
        raise RowsError(f"{place}{error}") from error
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, {within.format(error)}column {error.colno}"
        # A line that is sound as far as it goes may be the first of a row over several.
        cut = place and error.pos >= len(text)
        hint = "; a row is one line, or all rows are in one array" if cut else ""
        raise RowsError(f"{place}is not JSON ({reason}){hint}") from error
    except ValueError as error:
        raise RowsError(f"{place}is not JSON ({error})") from error


def _parse_csv(file: BinaryIO) -> list[Row]:
    """Rows of comma-separated values below a line that names the fields."""
    # The module decides what ends a line: it gets lines that end in \r one by one.
    pieces = itertools.chain.from_iterable(map(_AFTER_RETURN.split, _text_lines(file)))
    lines = csv.reader(filter(None, pieces), strict=True)
    # The module's own limit, 128 KiB a field, is less than a long document.
    limit = csv.field_size_limit(LINE_BYTES)
    try:
        header = next(filter(any, lines), [])
        unique((name, None) for name in header if name.strip())
        return [_csv_row(lines.line_num, header, values) for values in lines if _is_row(values)]
    except csv.Error as error:
        raise RowsError(f"line {lines.line_num} is not CSV ({error})") from error
    except DuplicateKeyError as error:
        raise RowsError(f"line {lines.line_num} {error}") from error
    finally:
        csv.field_size_limit(limit)


_AFTER_RETURN = re.compile(r"(?<=\r)(?!\n)")


def _is_row(values: list[str]) -> bool:
    """False for a blank line, and for one of commas alone, which is a spreadsheet's blank line."""
    return any(values) or len(values) == 1


def _csv_row(number: int, header: list[str], values: list[str]) -> Row:
    """The row, without columns that have neither name nor value, as spreadsheets write them.

    The first column may lack a name: there pandas counts rows.
    """
    last = max((n for n, name in enumerate(header, start=1) if name.strip()), default=0)
    if len(values) < last or any(values[len(header) :]):
        names = f"has {len(values)} values, the header {len(header)} names"
        raise RowsError(f"line {number} {names}")
    found = {}
    for column, (name, value) in enumerate(zip(header, values, strict=False), start=1):
        if name.strip():
            found[name] = value
        elif value and column > 1:
            unnamed = f"has {value[:40]!r} in column {column}, for which the header has no name"
            raise RowsError(f"line {number} {unnamed}")
    return Row(f"line {number}", found)


def _parse_parquet(file: BinaryIO) -> list[Row]:
    from pyarrow.parquet import ParquetFile

    return _table_rows(file, "Parquet", lambda whole: ParquetFile(whole).read())


def _parse_arrow(file: BinaryIO) -> list[Row]:
    """Rows of Arrow's stream, as `datasets` keeps them, or of its file."""
    from pyarrow import ipc

    def read(whole: BinaryIO) -> Any:
        is_file = whole.read(6) == b"ARROW1"
        whole.seek(0)
        table = (ipc.open_file if is_file else ipc.open_stream)(whole).read_all()
        table.validate(full=True)  # offsets are read as they lie there, and may lead anywhere
        return table

    return _table_rows(file, "Arrow", read)


def _table_rows(file: BinaryIO, kind: str, read: Callable[[BinaryIO], Any]) -> list[Row]:
    import pyarrow

    if isinstance(file, gzip.GzipFile):  # which cannot be read from its end
        file = io.BytesIO(file.read(PART_BYTES + 1))
        if file.getbuffer().nbytes > PART_BYTES:
            raise RowsError(f"is too large to be unpacked; {kind} files need no gzip")
    try:
        table = read(file)
        unique((name, None) for name in table.column_names)
        rows = table.to_pylist()
    except DuplicateKeyError as error:
        raise RowsError(str(error)) from error
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        # MemoryError: a damaged length asks for more than there is.
        raise RowsError(f"is no readable {kind} file ({error_line(error)})") from error
    return [Row(f"row {index}", values) for index, values in enumerate(rows, start=1)]


FORMATS: dict[str, Callable[[BinaryIO], list[Row]]] = {
    ".jsonl": _parse_json_rows,
    ".json": _parse_json_rows,
    ".csv": _parse_csv,
    ".parquet": _parse_parquet,
    ".arrow": _parse_arrow,
}
