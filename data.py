"""Prompts with their references: what is evaluated, and what pruning may be calibrated on."""

import dataclasses
import itertools
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from arguments.prompts import DataArguments, PromptArguments
from arguments.pruning import PruneArguments
from command_line.errors import reject
from command_line.messages import warn
from prompts.dataset_table import DATASETS, DataSet
from prompts.row_formats import Row, RowsError
from prompts.rows import PathSource, Source, field_names, named_split


@dataclass(frozen=True)
class EvaluationExample:
    """One prompt, and the text that a perfect model would answer.

    `content` is the example's own text, without few-shot examples or template: by it, what
    pruning is calibrated on is told apart from what is evaluated. `tests` is the program that
    judges a completion, where it is to be executed.
    """

    example_id: str
    prompt: str
    reference: str
    content: str = ""
    tests: str | None = None


@dataclass(frozen=True)
class Selection:
    """Examples in order; where they come from; and the solved examples before every prompt."""

    examples: list[EvaluationExample]
    source: str
    split: str
    available_rows: int
    shots: list[EvaluationExample] = dataclasses.field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """What a log says of them."""
        return {
            "source": self.source,
            "split": self.split,
            "available_rows": self.available_rows,
            "examples": len(self.examples),
            "shots": [shot.example_id for shot in self.shots],
        }


def get_local_prompts(
    data: DataArguments, pruning: PruneArguments, seed: int
) -> tuple[Selection, Selection | None] | None:
    """`get_prompts` where nothing has to be downloaded for it.

    Elsewhere None, once the rows that are local have been read, so that what is wrong with them is
    said before anything is waited for.
    """
    readers = {"test": _Reader.of_evaluation(data)}
    if pruning.calibrates():
        readers["train"] = _Reader.of_calibration(data, pruning)
    check_renamed(data, [reader.dataset for reader in readers.values()])
    if all(reader.source.local for reader in readers.values()):
        return get_prompts(data, pruning, seed)
    for split, reader in readers.items():
        if reader.source.local:
            reader.best_split(split)
    return None


def get_prompts(
    data: DataArguments, pruning: PruneArguments, seed: int
) -> tuple[Selection, Selection | None]:
    """What one run evaluates, and what it calibrates on: None where its method does not."""
    evaluated = get_data(data, seed)
    if not pruning.calibrates():
        return evaluated, None
    return evaluated, get_calibration_data(data, pruning, evaluated)


def get_data(arguments: DataArguments, seed: int) -> Selection:
    """The examples to evaluate: `num_samples` of the test split, in an order drawn by `seed`.

    The same seed selects the same examples on every machine, whatever file format the rows have.
    Few-shot examples come from the training split, and are none of those evaluated. Raises
    `UsageError` for rows that cannot be read, and for shots without a training split.
    """
    reader = _Reader.of_evaluation(arguments)
    split = reader.best_split("test")
    order = range(len(split))
    if arguments.random_shuffle:
        order = shuffled(len(split), seed, "order")
    made = (example for index in order for example in split.evaluated(index))
    chosen = _first(made, arguments.num_samples)
    _check_names(reader, chosen)
    if arguments.num_samples and len(chosen) < arguments.num_samples:
        found = f"{reader.source} has {len(chosen)} examples; all of them are run"
        warn(f"--num_samples {arguments.num_samples}: {found}")
    shots = _shots(reader, arguments.n_shot, seed, chosen)
    examples = [_framed(example, reader.dataset, arguments, shots) for example in chosen]
    return Selection(examples, str(reader.source), "test", len(split), shots)


def get_calibration_data(
    arguments: DataArguments, pruning: PruneArguments, evaluated: Selection
) -> Selection:
    """Up to `--calibration_samples` examples, drawn by `--prune_seed`, none of them evaluated.

    They are kept apart by content: an evaluated text is no calibration text, wherever it stands.
    By default they come from the evaluated data set, its training split where there is one, and
    are prompted as the evaluated ones are. Those of another source have no few-shot examples.
    Raises `UsageError` where none is left.
    """
    reader = _Reader.of_calibration(arguments, pruning)
    split = reader.best_split("train")
    seen = {content_key(example.content) for example in [*evaluated.examples, *evaluated.shots]}
    drawn = split.drawn(pruning.prune_seed, "calibration", seen)
    chosen = _first(drawn, pruning.calibration_samples)
    unused = f"{reader.source} has {len(chosen)} examples that are not evaluated"
    if not chosen:
        hint = "; lower --num_samples, or name others with --calibration_path"
        reject("prune_method", pruning.prune_method, f"calibrates on examples; {unused}{hint}")
    if len(chosen) < pruning.calibration_samples:
        warn(f"--calibration_samples {pruning.calibration_samples}: {unused}; these calibrate")
    shots = [] if pruning.names_calibration() else evaluated.shots
    examples = [_framed(example, reader.dataset, arguments, shots) for example in chosen]
    return Selection(examples, str(reader.source), split.name, len(split), shots)


def get_split(
    dataset: str, path: str | None, renamed: dict[str, str], path_flag: str, split: str
) -> list[EvaluationExample]:
    """All examples of a split, in order, their prompts as they are. A lone file is any split.

    Raises `UsageError` for rows that cannot be read, and for a source without that split.
    """
    reader = _Reader(dataset, path, renamed, path_flag=path_flag)
    found = reader.split(named_split(reader.source, split))
    if found is None:
        reader.reject(f"has no {split} split; a file of rows would be any")
    return list(itertools.chain.from_iterable(map(found.__getitem__, range(len(found)))))


def get_calibration_alone(prompting: PromptArguments, pruning: PruneArguments) -> Selection | None:
    """What pruning calibrates on where nothing is evaluated; None where it does not calibrate."""
    if not pruning.calibrates():
        return None
    data = DataArguments(**dataclasses.asdict(prompting))
    check_renamed(data, [_Reader.of_calibration(data, pruning).dataset])
    return get_calibration_data(data, pruning, Selection([], "nothing", "none", 0))


@dataclass(frozen=True)
class _Reader:
    """One data set in one source, and the flags that named them, or could have."""

    name: str
    path: str | None
    renamed: dict[str, str]
    name_flag: str = "dataset"
    path_flag: str = "data_path"
    executes: bool = False

    @classmethod
    def of_evaluation(cls, arguments: DataArguments) -> "_Reader":
        fields, executes = arguments.renamed_fields(), arguments.execute_code
        return cls(arguments.dataset, arguments.data_path, fields, executes=executes)

    @classmethod
    def of_calibration(cls, arguments: DataArguments, pruning: PruneArguments) -> "_Reader":
        if not pruning.names_calibration():
            return cls.of_evaluation(arguments)
        name = pruning.calibration_dataset or arguments.dataset
        flags = ("calibration_dataset", "calibration_path")
        return cls(name, pruning.calibration_path, arguments.renamed_fields(), *flags)

    def __post_init__(self) -> None:
        if self.path is None and self.dataset.source is None:
            allowed = f"--{self.name_flag} {self.name} needs a file or a folder"
            reject(self.path_flag, None, allowed)

    @property
    def dataset(self) -> DataSet:
        return DATASETS[self.name]

    @property
    def source(self) -> Source:
        return self.dataset.source if self.path is None else PathSource(Path(self.path))

    def reject(self, reason: str) -> NoReturn:
        """Raises the `UsageError` that names the flag at fault, and a way around the hub."""
        hint = "" if self.source.local else f"; --{self.path_flag} names a file or a folder"
        flag = self.name_flag if self.path is None else self.path_flag
        reject(flag, self.path or self.name, reason + hint)

    def best_split(self, name: str) -> "_Split":
        """The examples of a split, or of the test split where the source has no such one."""
        split = self.split(name)
        if split is None:
            split = self.split("test")
        if split is None:
            self.reject("has no test split")
        return split

    def split(self, name: str) -> "_Split | None":
        """The examples of a split; None where the source has no such split."""
        try:
            rows = self.source.rows(name)
        except RowsError as error:
            self.reject(str(error))
        if rows is None:
            return None
        split = _Split(self, name, rows)
        if self.source.local:
            # All of them, so that a bad row is found whichever are drawn.
            for index in range(len(split)):
                split[index]
        return split


@dataclass(frozen=True)
class _Split:
    """Rows made into examples as they are asked for."""

    reader: _Reader
    name: str
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[EvaluationExample]:
        """The examples of one row: one, or several where a row holds a conversation."""
        row, dataset = self.rows[index], self.reader.dataset
        try:
            values = row.values | self._texts(row.values)
            pairs = dataset.examples(values)
            row_id = values.get(dataset.id_field)
            row_id = str(index + 1) if row_id in (None, "") else str(row_id)
            check_characters(row_id, *itertools.chain(*pairs))
        except RowsError as error:
            self.reader.reject(f"{row.place} {error}")
        examples = []
        for number, (prompt, reference) in enumerate(pairs, start=1):
            example_id = row_id if len(pairs) == 1 else f"{row_id}.{number}"
            # Later prompts of a conversation hold the earlier ones and their answers.
            content = values[dataset.fields[0]] if dataset.fields else pairs[0][0]
            examples.append(EvaluationExample(example_id, prompt, reference, content))
        return examples

    def evaluated(self, index: int) -> list[EvaluationExample]:
        """The examples of one row, none of which may have an empty prompt."""
        row, examples = self.rows[index], self[index]
        if not all(example.prompt for example in examples):
            self.reader.reject(f"{row.place} makes an empty prompt")
        if not self.reader.executes:
            return examples
        try:
            tests = self.reader.dataset.tests(row.values)
            check_characters(tests)
        except RowsError as error:
            self.reader.reject(f"{row.place} {error}")
        return [dataclasses.replace(example, tests=tests) for example in examples]

    def drawn(self, seed: int, purpose: str, seen: set[str]) -> Iterator[EvaluationExample]:
        """Examples in an order drawn by `seed`, of content that is not empty and new to `seen`.

        A conversation is one content, of which its first turn is the example.
        """
        seen = set(seen)
        for index in shuffled(len(self), seed, purpose):
            for example in self[index]:
                key = content_key(example.content)
                if key and key not in seen:
                    seen.add(key)
                    yield example

    def _texts(self, values: dict[str, Any]) -> dict[str, str]:
        """The data set's fields, under the names that it knows them by."""
        renamed = self.reader.renamed if self.reader.dataset.renamable else {}
        names = {field: renamed.get(field, field) for field in self.reader.dataset.fields}
        for name in names.values():
            if name not in values:
                raise RowsError(f"has no field {name!r}; it has: {field_names(values)}")
            if not isinstance(values[name], str):
                kind = "null" if values[name] is None else type(values[name]).__name__
                raise RowsError(f"must have a text in the field {name!r}, not {kind}")
        return {field: values[name] for field, name in names.items()}


def _shots(
    reader: _Reader, count: int, seed: int, evaluated: list[EvaluationExample]
) -> list[EvaluationExample]:
    """Solved examples from the training split."""
    if not count:
        return []
    split = reader.split("train")
    if split is None:
        reject(
            "n_shot",
            count,
            f"needs a training split, and {reader.source} has none; --data_path may name a folder "
            "with a train and a test file",
        )
    seen = {content_key(example.content) for example in evaluated}
    shots = _first(split.drawn(seed, "shots", seen), count)
    if len(shots) < count:
        reject("n_shot", count, f"the training split has {len(shots)} examples not evaluated")
    return shots


def _check_names(reader: _Reader, chosen: list[EvaluationExample]) -> None:
    """What is evaluated must be something, and its names must tell examples apart."""
    if not chosen:
        reader.reject("holds no examples")
    names = Counter(example.example_id for example in chosen)
    ((name, count),) = names.most_common(1)
    if count > 1:
        reader.reject(f"holds {count} rows whose {reader.dataset.id_field} is {name!r}")


def check_renamed(arguments: PromptArguments, datasets: list[DataSet]) -> None:
    """Refuses names for fields that no data set in use lets the user name."""
    if any(dataset.renamable for dataset in datasets):
        return
    for field, name in arguments.renamed_fields().items():
        if name != field:
            reject(f"{field}_field", name, "only with --dataset custom_jsonl")


def _first(examples: Iterator[EvaluationExample], count: int | None) -> list[EvaluationExample]:
    return list(itertools.islice(examples, None if count is None else min(count, sys.maxsize)))


def _framed(
    example: EvaluationExample,
    dataset: DataSet,
    arguments: DataArguments,
    shots: list[EvaluationExample],
) -> EvaluationExample:
    """The example with solved ones before its prompt, and the template around both."""
    solved = "".join(dataset.shot(shot.prompt, shot.reference) for shot in shots)
    message = f"{solved}\n{example.prompt}" if shots else example.prompt
    return dataclasses.replace(example, prompt=arguments.filled_template(message))


def shuffled(count: int, seed: int, purpose: str) -> list[int]:
    """The numbers below `count` in an order that seed and purpose settle."""
    return drawn_order(count, random.Random(f"{seed} {purpose}"))


def drawn_order(count: int, draws: random.Random) -> list[int]:
    """The numbers below `count` in an order that the next `count` draws settle.

    Sorted by draws, as `random.random` is the one method whose sequence Python promises to keep.
    """
    keys = [draws.random() for _ in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def content_key(text: str) -> str:
    """What texts of equal content share: their words."""
    return " ".join(text.split())


def check_characters(*texts: str) -> None:
    """Raises `RowsError` for a text that is no UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowsError(f"holds half a character ({error.object[error.start]!r})") from error
