"""Make examples, prompts with references, of a data set's rows."""

import dataclasses
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from command_line.errors import reject
from prompts.answer_numbers import answer_number
from prompts.dataset_table import DATASETS, DataSet
from prompts.row_formats import RowsError, field_names
from prompts.sources import PathSource, Rows, Source


@dataclass(frozen=True)
class EvaluationExample:
    """A prompt, and the text that a perfect model would answer.

    `content` is the example's own text, without few-shot examples or template; it keeps
    calibration and evaluation apart. `tests` is the program that judges a completion, if
    completions are executed. `category` is the row's own, None if rows have no categories. `turns`
    are the user's messages of a conversation after the first, which the prompt holds.
    """

    example_id: str
    prompt: str
    reference: str
    content: str = ""
    tests: str | None = None
    category: str | None = None
    turns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """A data set in a source, and the flags to name in errors.

    `path` replaces the data set's own source, `renamed` maps the names of its fields to those in
    the rows. `executes`: examples carry their tests. `numeric`: references must give a number.
    """

    name: str
    path: str | None
    renamed: dict[str, str]
    name_flag: str = "dataset"
    path_flag: str = "data_path"
    executes: bool = False
    numeric: bool = False

    @property
    def dataset(self) -> DataSet:
        return DATASETS[self.name]

    @property
    def source(self) -> Source:
        """Raise `UsageError` for a data set without a source of its own."""
        if self.path is not None:
            return PathSource(Path(self.path))
        if self.dataset.source is None:
            named = f": {self.dataset.found_at}" if self.dataset.found_at else ""
            allowed = f"--{self.name_flag} {self.name} needs a file or a folder{named}"
            reject(self.path_flag, None, allowed)
        return self.dataset.source

    def reject(self, reason: str) -> NoReturn:
        """Raise the `UsageError` that names the flag at fault, and the way around the hub."""
        hint = "" if self.source.local else f"; --{self.path_flag} names a file or a folder"
        flag = self.name_flag if self.path is None else self.path_flag
        reject(flag, self.path or self.name, reason + hint)

    def split(self, name: str) -> "Split | None":
        """Return the examples of a split; None if the source has no such split."""
        try:
            rows = self.source.rows(name)
        except RowsError as error:
            self.reject(str(error))
        if rows is None:
            return None
        split = Split(self, name, rows)
        if self.source.local:
            for index in range(len(split)):  # a bad row is an error even if it is not drawn
                split[index]
        return split

    def best_split(self, name: str) -> "Split":
        """Return the examples of a split, or of the test split if the source has no such split."""
        split = self.split(name)
        if split is None:
            split = self.split("test")
        if split is None:
            self.reject("has no test split")
        return split


@dataclass(frozen=True)
class Split:
    """The rows of a split, made into examples when they are asked for."""

    reader: Reader
    name: str
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[EvaluationExample]:
        """Return the examples of a row: several if the row holds a conversation."""
        row = self.rows[index]
        try:
            return self._examples(index, row.values | self._texts(row.values))
        except RowsError as error:
            self.reader.reject(f"{row.place} {error}")

    def _examples(self, index: int, values: dict[str, Any]) -> list[EvaluationExample]:
        dataset = self.reader.dataset
        pairs = dataset.examples(values)
        turns = dataset.turns(values) if dataset.turns else ()
        row_id = _named(values, dataset.id_field) or str(index + 1)
        category = _named(values, dataset.category_field)
        check_characters(row_id, category or "", *turns, *itertools.chain(*pairs))
        examples = []
        for number, (prompt, reference) in enumerate(pairs, start=1):
            if self.reader.numeric and answer_number(reference) is None:
                raise RowsError("has an answer without a number to match")
            example_id = row_id if len(pairs) == 1 else f"{row_id}.{number}"
            # Later prompts of a conversation contain the first.
            content = values[dataset.fields[0]] if dataset.fields else pairs[0][0]
            made = EvaluationExample(example_id, prompt, reference, content, None, category, turns)
            examples.append(made)
        return examples

    def evaluated(self, index: int) -> list[EvaluationExample]:
        """Return the examples of a row, with their tests; an empty prompt is an error."""
        row, examples, make_tests = self.rows[index], self[index], self.reader.dataset.tests
        if not all(example.prompt for example in examples):
            self.reader.reject(f"{row.place} makes an empty prompt")
        if not self.reader.executes or make_tests is None:
            return examples
        try:
            tests = make_tests(row.values)
            check_characters(tests)
        except RowsError as error:
            self.reader.reject(f"{row.place} {error}")
        return [dataclasses.replace(example, tests=tests) for example in examples]

    def drawn(self, seed: int, purpose: str, seen: set[str]) -> Iterator[EvaluationExample]:
        """Yield examples in an order drawn by `seed`, if their content is new and not empty.

        A conversation is one content; only the first turn becomes an example.
        """
        seen = set(seen)
        for index in shuffled(len(self), seed, purpose):
            for example in self[index]:
                key = content_key(example.content)
                if key and key not in seen:
                    seen.add(key)
                    yield example

    def _texts(self, values: dict[str, Any]) -> dict[str, str]:
        """Return the data set's fields under the names that `DATASETS` has for them."""
        renamed = self.reader.renamed if self.reader.dataset.renamable else {}
        names = {field: renamed.get(field, field) for field in self.reader.dataset.fields}
        for name in names.values():
            if name not in values:
                raise RowsError(f"has no field {name!r}; it has: {field_names(values)}")
            if not isinstance(values[name], str):
                kind = "null" if values[name] is None else type(values[name]).__name__
                raise RowsError(f"must have a text in the field {name!r}, not {kind}")
        return {field: values[name] for field, name in names.items()}


def _named(values: dict[str, Any], field: str | None) -> str | None:
    """Return what a field names, an id or a category; None if the row lacks it."""
    name = values.get(field) if field else None
    return None if name in (None, "") else str(name)


def shuffled(count: int, seed: int, purpose: str) -> list[int]:
    """Return the numbers below `count` in an order that depends on seed and purpose alone."""
    return drawn_order(count, random.Random(f"{seed} {purpose}"))


def drawn_order(count: int, draws: random.Random) -> list[int]:
    """Return the numbers below `count` in an order given by the next `count` draws.

    Sort by draws: only for `random.random` does Python promise to keep the sequence.
    """
    keys = [draws.random() for _ in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def content_key(text: str) -> str:
    """Return a key that texts of equal words share."""
    return " ".join(text.split())


def check_characters(*texts: str) -> None:
    """Raise `RowsError` for a text that cannot be written as UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowsError(f"holds half a character ({error.object[error.start]!r})") from error
