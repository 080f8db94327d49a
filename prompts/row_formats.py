"""Read the rows of a JSON, CSV, Parquet or Arrow file, gzipped or not."""

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

_AFTER_RETURN = re.compile(r"(?<=\r)(?!\n)")
_HEAD_BYTES = 64  # enough to skip white space before an array


class RowsError(ValueError):
    """Rows cannot be read. The message says why; the caller adds the flag that named them."""


@dataclass(frozen=True)
class Row:
    """The fields of a row, and its place in the file, such as line 3."""

    place: str
    values: dict[str, Any]


def field_names(values: dict[str, Any]) -> str:
    """Return the names of a row's fields, for an error about a missing field."""
    return ", ".join(values) or "none"


def read_rows(path: Path, name: str = "") -> list[Row]:
    """Return all rows of a file, at least one; raise `RowsError` for a file that is not sound.

    `name` is put before the rows' places, if the user did not name the file itself.
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
    """Open the file, unpacked; turn errors of reading it into a `RowsError`."""
    try:
        with opened(path) as file:
            # GzipFile has the methods of BinaryIO without being declared as one.
            yield gzip.GzipFile(fileobj=file) if _packed(path) else file  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RowsError(f"is no whole gzip file ({error})") from error
    except OSError as error:
        raise RowsError(f"cannot be read ({error.strerror})") from error


def _parse_json_rows(file: BinaryIO) -> list[Row]:
    """Return the rows of one array, or one row per line that is not blank."""
    head = file.peek(_HEAD_BYTES)  # type: ignore[attr-defined]  # of both kinds of file
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
        return _parse_array(file.read(ARRAY_BYTES + 1))
    numbered = enumerate(_text_lines(file), start=1)
    lines = ((f"line {number}", line.rstrip("\r\n")) for number, line in numbered if line.strip())
    return [_json_row(place, _parsed(line, f"{place} ")) for place, line in lines]


def _parse_array(content: bytes) -> list[Row]:
    if len(content) > ARRAY_BYTES:
        raise RowsError(f"is one array of more than {ARRAY_BYTES >> 20} MiB; write a row a line")
    try:
        text = text_of(content)
    except ValueError as error:
        raise RowsError(str(error)) from error
    numbered = enumerate(_parsed(text, "", "line {0.lineno}, "), start=1)
    return [_json_row(f"row {number}", values) for number, values in numbered]


def _text_lines(file: BinaryIO) -> Iterator[str]:
    """Yield the lines with their ends, without a byte order mark."""
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


def _json_row(place: str, values: Any) -> Row:
    if not isinstance(values, dict):
        raise RowsError(f"{place} is not a JSON object")
    return Row(place, values)


def _parsed(text: str, place: str, within: str = "") -> Any:
    """Parse JSON. An error begins with `place`; `within` formats the place inside the text."""
    try:
        return parse_json(text)
    except DuplicateKeyError as error:
        raise RowsError(f"{place}{error}") from error
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, {within.format(error)}column {error.colno}"
        # A line that breaks off may be the first of a row on several lines.
        cut = place and error.pos >= len(text)
        hint = "; a row is one line, or all rows are in one array" if cut else ""
        raise RowsError(f"{place}is not JSON ({reason}){hint}") from error
    except ValueError as error:
        raise RowsError(f"{place}is not JSON ({error})") from error


def _parse_csv(file: BinaryIO) -> list[Row]:
    """Return the rows of comma-separated values below a line with the names of the fields."""
    # The csv module wants one line at a time, also where lines end in \r.
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


def _is_row(values: list[str]) -> bool:
    """Return False for a blank line, and for the commas that spreadsheets write for one."""
    return any(values) or len(values) == 1


def _csv_row(number: int, header: list[str], values: list[str]) -> Row:
    """Return the row without the columns of spreadsheets that have neither name nor value.

    The first column may lack a name: pandas counts rows there.
    """
    last = max((n for n, name in enumerate(header, start=1) if name.strip()), default=0)
    if len(values) < last or any(values[len(header) :]):
        names = f"has {len(values)} values, the header {len(header)} names"
        raise RowsError(f"line {number} {names}")
    fields = {}
    for column, (name, value) in enumerate(zip(header, values, strict=False), start=1):
        if name.strip():
            fields[name] = value
        elif value and column > 1:
            unnamed = f"has {value[:40]!r} in column {column}, for which the header has no name"
            raise RowsError(f"line {number} {unnamed}")
    return Row(f"line {number}", fields)


def _parse_parquet(file: BinaryIO) -> list[Row]:
    from pyarrow.parquet import ParquetFile

    return _table_rows(file, "Parquet", lambda whole: ParquetFile(whole).read())


def _parse_arrow(file: BinaryIO) -> list[Row]:
    """Return the rows of an Arrow stream, which `datasets` writes, or of an Arrow file."""
    from pyarrow import ipc

    def read(whole: BinaryIO) -> Any:
        is_file = whole.read(6) == b"ARROW1"
        whole.seek(0)
        table = (ipc.open_file if is_file else ipc.open_stream)(whole).read_all()
        table.validate(full=True)  # otherwise damaged offsets could lead anywhere
        return table

    return _table_rows(file, "Arrow", read)


def _table_rows(file: BinaryIO, kind: str, read: Callable[[BinaryIO], Any]) -> list[Row]:
    import pyarrow

    if isinstance(file, gzip.GzipFile):  # cannot be read from the end
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
