"""Examples in order, calibration apart from evaluation, and input that can go wrong."""

import pytest

from arguments import DataArguments, UsageError
from data import get_calibration_data, get_data


def custom(path, **changes):
    return DataArguments(dataset="custom_jsonl", data_path=str(path), **changes)


def test_human_eval_comes_whole_and_in_order():
    examples = get_data(DataArguments())
    assert len(examples) == 164
    assert [e.example_id for e in examples[:2]] == ["HumanEval/0", "HumanEval/1"]
    assert examples[0].prompt.startswith("from typing import List\n\n\ndef has_close_elements")
    assert examples[0].reference.startswith("    for idx, elem in enumerate(numbers)")


def test_num_samples_takes_the_first(rows):
    examples = get_data(custom(rows, num_samples=3))
    assert [(e.example_id, e.prompt, e.reference) for e in examples] == [
        ("1", "number 0:", "item 0"),
        ("2", "number 1:", "item 1"),
        ("3", "number 2:", "item 2"),
    ]
    assert len(get_data(custom(rows, num_samples=99))) == 12


def test_fields_can_be_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff{"q": "one", "a": "zwölf"}\n\n{"q": "two", "a": ""}\n', "utf-8")
    examples = get_data(custom(path, prompt_field="q", response_field="a"))
    assert [(e.example_id, e.reference) for e in examples] == [("1", "zwölf"), ("3", "")]


def test_calibration_never_sees_what_is_evaluated(tmp_path):
    """Kept apart by prompt: a row that repeats an evaluated prompt is no calibration row either."""
    path = tmp_path / "rows.jsonl"
    prompts = ["a", "b", "c", "a", "d", "b"]
    path.write_text("".join(f'{{"prompt": "{p}", "response": ""}}\n' for p in prompts))
    found = get_calibration_data(custom(path, num_samples=2), 9)
    assert [e.prompt for e in found] == ["c", "d"]
    assert [e.prompt for e in get_calibration_data(custom(path, num_samples=2), 1)] == ["d"]


def test_calibration_does_not_depend_on_how_many_are_evaluated(rows):
    few = get_calibration_data(custom(rows, num_samples=2), 4)
    assert few == get_calibration_data(custom(rows, num_samples=8), 4)


@pytest.mark.parametrize("count", [None, 12])
def test_calibration_with_nothing_left_is_refused(rows, count):
    with pytest.raises(UsageError, match=r"--num_samples 12: evaluates every prompt"):
        get_calibration_data(custom(rows, num_samples=count), 4)


BAD_FILES = {
    "is not JSON": (b'{"prompt": "a", "response": "b"}\n{"prompt": \n', "line 2 is not JSON"),
    "truncated": (b'{"prompt": "a", "resp', "line 1 is not JSON"),
    "no object": (b"[1, 2]\n", "line 1 is not a JSON object"),
    "a field is missing": (
        b'{"prompt": "a", "answer": "b"}\n',
        "line 1 has no text field 'response'; it has: prompt, answer",
    ),
    "no text": (b'{"prompt": 3, "response": "b"}\n', "line 1 has no text field 'prompt'"),
    "empty prompt": (b'{"prompt": "", "response": "b"}\n', "line 1 has an empty 'prompt'"),
    "half a character": (
        b'{"prompt": "\\ud800", "response": "b"}\n',
        "line 1 holds half a character in 'prompt'",
    ),
    "empty": (b"\n\n", "holds no examples"),
    "binary": (b"\x00\xff\xfe\x80", "is not UTF-8 text"),
    "a huge number": (b'{"prompt": ' + b"1" * 5000 + b"}\n", "line 1 is not JSON"),
    "deep": (b"[" * 100_000, "line 1 is not JSON"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_name_the_line(tmp_path, name):
    content, message = BAD_FILES[name]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        get_data(custom(path))
    assert str(caught.value).startswith(f"--data_path {path}: ")
    assert message in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be read \(No such file or directory\)"):
        get_data(custom(tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\)"):
        get_data(custom(tmp_path))
