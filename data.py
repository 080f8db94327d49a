"""Choose the examples that are evaluated, shown as solved examples, and calibrated on."""

import dataclasses
import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from arguments.prompts import DataArguments, PromptArguments
from arguments.pruning import PruneArguments
from command_line.errors import reject
from command_line.messages import warn
from files.hashes import content_hash
from prompts.dataset_table import DataSet
from prompts.examples import EvaluationExample, Reader, Split, content_key, shuffled
from prompts.sources import named_split


@dataclass(frozen=True)
class Selection:
    """Examples in order, where they come from, and the solved examples before each prompt."""

    examples: list[EvaluationExample]
    source: str
    split: str
    available_rows: int
    shots: list[EvaluationExample] = dataclasses.field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Return what a log says of the examples, with a fingerprint of their texts."""
        texts = ((e.example_id, e.prompt, e.reference, *e.turns) for e in self.examples)
        return {
            "source": self.source,
            "split": self.split,
            "available_rows": self.available_rows,
            "examples": len(self.examples),
            "shots": [shot.example_id for shot in self.shots],
            "fingerprint": content_hash(*itertools.chain(*texts)),
        }


# The examples that a run evaluates, and those that its plan is calibrated on.
Prompts = tuple[Selection, Selection | None]


def get_local_prompts(data: DataArguments, pruning: PruneArguments, seed: int) -> Prompts | None:
    """Return `get_prompts` if nothing has to be downloaded; None otherwise.

    Rows on this machine are read in both cases, so that bad rows are reported before a download.
    """
    readers = {"test": _evaluation_reader(data)}
    if pruning.calibrates():
        readers["train"] = _calibration_reader(data, pruning)
    local = {split: reader for split, reader in readers.items() if reader.source.local}
    check_renamed(data, [reader.dataset for reader in readers.values()])
    if len(local) == len(readers):
        return get_prompts(data, pruning, seed)
    for split, reader in local.items():
        reader.best_split(split)
    return None


def get_prompts(data: DataArguments, pruning: PruneArguments, seed: int) -> Prompts:
    """Return what a run evaluates, and what it calibrates on if the method calibrates."""
    evaluated = get_data(data, seed)
    if not pruning.calibrates():
        return evaluated, None
    return evaluated, get_calibration_data(data, pruning, _excluded(data, pruning, seed, evaluated))


def _excluded(
    data: DataArguments, pruning: PruneArguments, seed: int, evaluated: Selection
) -> Selection:
    """Return the examples that must not calibrate: those evaluated, or more of the same order."""
    asked, count = pruning.calibration_excludes, len(evaluated.examples)
    if asked is None or asked == count:
        return evaluated
    if asked < count:
        allowed = f"must be at least {count}, the examples that are evaluated"
        reject("calibration_excludes", asked, allowed)
    split = _evaluation_reader(data).best_split("test")
    return dataclasses.replace(evaluated, examples=_first(_ordered(split, data, seed), asked))


def get_data(arguments: DataArguments, seed: int) -> Selection:
    """Return the examples to evaluate: `num_samples` of the test split, in an order by `seed`.

    A seed selects the same examples on every machine and from every file format. Few-shot
    examples come from the training split and are not evaluated. Raise `UsageError` for rows that
    cannot be read, and for shots without a training split.
    """
    reader = _evaluation_reader(arguments)
    split = reader.best_split("test")
    chosen = _first(_ordered(split, arguments, seed), arguments.num_samples)
    _check_ids(reader, chosen)
    if arguments.num_samples and len(chosen) < arguments.num_samples:
        found = f"{reader.source} has {len(chosen)} examples; all of them are run"
        warn(f"--num_samples {arguments.num_samples}: {found}")
    shots = _shots(reader, arguments.n_shot, seed, chosen)
    examples = [_framed(example, reader.dataset, arguments, shots) for example in chosen]
    return Selection(examples, str(reader.source), "test", len(split), shots)


def _ordered(split: Split, arguments: DataArguments, seed: int) -> Iterator[EvaluationExample]:
    order: Sequence[int] = range(len(split))
    if arguments.random_shuffle:
        order = shuffled(len(split), seed, "order")
    return (one for row in order for one in split.evaluated(row))


def get_calibration_data(
    arguments: DataArguments, pruning: PruneArguments, evaluated: Selection
) -> Selection:
    """Return up to `--calibration_samples` examples, drawn by `--prune_seed`, none evaluated.

    They come from the evaluated data set, from the training split if it has one, and are prompted
    like the evaluated examples. Examples of another source have no few-shot examples. A text that
    is evaluated is never calibrated on, even if another row repeats it. Raise `UsageError` if no
    example is left.
    """
    reader = _calibration_reader(arguments, pruning)
    split = reader.best_split("train")
    seen = {content_key(example.content) for example in [*evaluated.examples, *evaluated.shots]}
    drawn = split.drawn(pruning.prune_seed, "calibration", seen)
    chosen = _first(drawn, pruning.calibration_samples)
    unused = f"{reader.source} has {len(chosen)} examples that are not evaluated"
    if not chosen:
        hint = "; evaluate fewer examples, or name others with --calibration_path"
        reject("calibration_samples", pruning.calibration_samples, f"{unused}{hint}")
    if len(chosen) < pruning.calibration_samples:
        warn(f"--calibration_samples {pruning.calibration_samples}: {unused}; these calibrate")
    shots = [] if pruning.names_calibration() else evaluated.shots
    examples = [_framed(example, reader.dataset, arguments, shots) for example in chosen]
    return Selection(examples, str(reader.source), split.name, len(split), shots)


def get_calibration_alone(prompting: PromptArguments, pruning: PruneArguments) -> Selection | None:
    """Return what pruning calibrates on if nothing is evaluated; None without calibration."""
    if not pruning.calibrates():
        return None
    if pruning.calibration_excludes is not None:
        reject("calibration_excludes", pruning.calibration_excludes, "nothing is evaluated here")
    data = DataArguments(**dataclasses.asdict(prompting))
    check_renamed(data, [_calibration_reader(data, pruning).dataset])
    return get_calibration_data(data, pruning, Selection([], "nothing", "none", 0))


def get_split(
    dataset: str, path: str | None, renamed: dict[str, str], path_flag: str, split: str
) -> list[EvaluationExample]:
    """Return all examples of a split, in order and without template. A lone file is any split.

    Raise `UsageError` for rows that cannot be read, and for a source without that split.
    """
    reader = Reader(dataset, path, renamed, path_flag=path_flag)
    found = reader.split(named_split(reader.source, split))
    if found is None:
        reader.reject(f"has no {split} split; a file of rows would be any")
    return [example for row in range(len(found)) for example in found[row]]


def check_renamed(arguments: PromptArguments, datasets: list[DataSet]) -> None:
    """Reject names of fields if no data set in use has fields that the user names."""
    if any(dataset.renamable for dataset in datasets):
        return
    for field, name in arguments.renamed_fields().items():
        if name != field:
            reject(f"{field}_field", name, "only with --dataset custom_jsonl")


def _evaluation_reader(arguments: DataArguments) -> Reader:
    return Reader(
        arguments.dataset,
        arguments.data_path,
        arguments.renamed_fields(),
        executes=arguments.execute_code,
        numeric=arguments.compares_numbers,
    )


def _calibration_reader(arguments: DataArguments, pruning: PruneArguments) -> Reader:
    if not pruning.names_calibration():
        return _evaluation_reader(arguments)
    name = pruning.calibration_dataset or arguments.dataset
    flags = ("calibration_dataset", "calibration_path")
    return Reader(name, pruning.calibration_path, arguments.renamed_fields(), *flags)


def _shots(
    reader: Reader, count: int, seed: int, evaluated: list[EvaluationExample]
) -> list[EvaluationExample]:
    """Draw solved examples from the training split."""
    if not count:
        return []
    split = reader.split("train")
    if split is None:
        allowed = (
            f"needs a training split, and {reader.source} has none; --data_path may name a folder "
            "with a train and a test file"
        )
        reject("n_shot", count, allowed)
    seen = {content_key(example.content) for example in evaluated}
    shots = _first(split.drawn(seed, "shots", seen), count)
    if len(shots) < count:
        reject("n_shot", count, f"the training split has {len(shots)} examples not evaluated")
    return shots


def _check_ids(reader: Reader, chosen: list[EvaluationExample]) -> None:
    """Reject an empty selection, and rows with equal ids."""
    if not chosen:
        reader.reject("holds no examples")
    ids = Counter(example.example_id for example in chosen)
    ((example_id, count),) = ids.most_common(1)
    if count > 1:
        reader.reject(f"holds {count} rows whose {reader.dataset.id_field} is {example_id!r}")


def _first(examples: Iterator[EvaluationExample], count: int | None) -> list[EvaluationExample]:
    return list(itertools.islice(examples, None if count is None else min(count, sys.maxsize)))


def _framed(
    example: EvaluationExample,
    dataset: DataSet,
    arguments: DataArguments,
    shots: list[EvaluationExample],
) -> EvaluationExample:
    """Return the example with solved examples before the prompt, and the template around both.

    The template is around each later turn of a conversation too, and around no plain text.
    """
    if dataset.plain_text:
        return example
    solved = "".join(dataset.shot(shot.prompt, shot.reference) for shot in shots)
    message = f"{solved}\n{example.prompt}" if shots else example.prompt
    turns = tuple(map(arguments.filled_template, example.turns))
    return dataclasses.replace(example, prompt=arguments.filled_template(message), turns=turns)
