"""The examples that are evaluated and shown, and errors in their rows."""

import shutil

import pytest

from arguments.prompts import DataArguments
from arguments.pruning import PruneArguments
from command_line.errors import UsageError
from data import get_data, get_local_prompts
from prompts.row_formats import Row
from prompts.sources import HubSource, PathSource
from tests.conftest import MEASURED, calibration, custom, write


def selected(arguments, seed=42):
    return [(e.example_id, e.prompt) for e in get_data(arguments, seed).examples]


def test_human_eval_comes_whole_and_in_order():
    found = get_data(DataArguments(random_shuffle=False), 42)
    assert len(found.examples) == 164
    assert [e.example_id for e in found.examples[:2]] == ["HumanEval/0", "HumanEval/1"]
    assert found.examples[0].prompt.startswith("from typing import List\n\n\ndef has_close_elem")
    assert found.examples[0].reference.startswith("    for idx, elem in enumerate(numbers)")


def test_num_samples_takes_the_first(rows):
    examples = get_data(custom(rows, num_samples=3), 42).examples
    assert [(e.example_id, e.prompt, e.reference) for e in examples] == [
        ("1", "number 0:", "item 0"),
        ("2", "number 1:", "item 1"),
        ("3", "number 2:", "item 2"),
    ]
    assert len(get_data(custom(rows, num_samples=99), 42).examples) == 12


def test_a_seed_draws_the_same_order_on_every_machine(rows):
    """The numbers are those of Python's generator, which keeps its sequence."""
    ids = [name for name, _ in selected(custom(rows, random_shuffle=True))]
    assert ids == ["9", "7", "12", "5", "1", "4", "3", "2", "10", "8", "6", "11"]
    assert sorted(map(int, ids)) == list(range(1, 13))
    few = [name for name, _ in selected(custom(rows, random_shuffle=True, num_samples=4))]
    assert few == ids[:4]
    assert [name for name, _ in selected(custom(rows, random_shuffle=True), seed=7)] != ids


@pytest.mark.parametrize("shots", [0, 2])
def test_every_format_of_one_file_selects_the_same_examples(folder, shots):
    original = custom(folder, random_shuffle=True, num_samples=5, n_shot=shots)
    source = PathSource(folder)
    rows = {name: [row.values for row in source.rows(name)] for name in ("train", "test")}
    for suffix in (".csv", ".parquet", ".jsonl.gz"):
        copy = folder.parent / suffix
        copy.mkdir()
        for split in rows:
            write(copy / f"{split}{suffix}", rows[split])
        other = custom(copy, random_shuffle=True, num_samples=5, n_shot=shots)
        assert get_data(other, 42).examples == get_data(original, 42).examples
        assert calibration(other).examples == calibration(original).examples


def test_fields_can_be_named(tmp_path, rows):
    path = tmp_path / "named.jsonl"
    path.write_text('\ufeff{"q": "one", "a": "zwölf"}\n\n{"q": "two", "a": ""}\n', "utf-8")
    examples = get_data(custom(path, prompt_field="q", response_field="a"), 42).examples
    assert [(e.example_id, e.reference) for e in examples] == [("1", "zwölf"), ("2", "")]
    swapped = custom(rows, prompt_field="response", response_field="prompt", num_samples=1)
    (example,) = get_data(swapped, 42).examples
    assert (example.prompt, example.reference) == ("item 0", "number 0:")


def test_every_turn_of_a_chat_is_an_example(tmp_path):
    turns = [{"role": role, "message": role.lower()} for role in ("USER", "PARSER") * 2]
    path = write(tmp_path / "chat.jsonl", [{"data": turns}, {"data": turns[:2]}])
    found = get_data(custom(path, dataset="chat_format"), 42)
    assert [e.example_id for e in found.examples] == ["1.1", "1.2", "2"]
    assert (found.available_rows, found.examples[2].reference) == (2, "parser")
    assert [
        e.example_id
        for e in get_data(custom(path, dataset="chat_format", num_samples=2), 42).examples
    ] == ["1.1", "1.2"]


def test_shots_come_from_the_training_split_and_are_never_evaluated(folder):
    found = get_data(custom(folder, n_shot=3, num_samples=30), 42)
    assert all(int(shot.content.split()[1][:-1]) < 30 for shot in found.shots)
    texts = "".join(f"{shot.content} {shot.reference}\n" for shot in found.shots)
    assert found.examples[0].prompt == f"{texts}\nnumber 30:"
    assert found.examples[7].prompt == f"{texts}\nnumber 37:"
    assert get_data(custom(folder, n_shot=3), 42).shots == found.shots
    assert get_data(custom(folder, n_shot=3), 43).shots != found.shots
    assert get_data(custom(folder, n_shot=2), 42).shots == found.shots[:2]


def test_shots_without_a_training_split_are_refused(rows, folder):
    for path in (rows, folder / "test.jsonl"):
        message = rf"--n_shot 2: needs a training split, and {path} has none; .*folder"
        with pytest.raises(UsageError, match=message):
            get_data(custom(path, n_shot=2), 42)
    with pytest.raises(UsageError, match="--n_shot 31: the training split has 30 examples not eva"):
        get_data(custom(folder, n_shot=31), 42)


def test_a_template_goes_around_shots_and_prompt(folder):
    template = r"Braces {x}.\n{message}\n{message} \\n"
    found = get_data(custom(folder, template=template, n_shot=1, num_samples=1), 42)
    inner = f"{found.shots[0].content} {found.shots[0].reference}\n\nnumber 30:"
    assert found.examples[0].prompt == f"Braces {{x}}.\n{inner}\n{inner} \\n"


BAD_ROWS = {
    "a field is missing": (
        '{"prompt": "a", "answer": "b"}',
        "line 2 has no field 'response'; it has: prompt, answer",
    ),
    "no text": (
        '{"prompt": 3, "response": "b"}',
        "line 2 must have a text in the field 'prompt', not int",
    ),
    "null": (
        '{"prompt": "a", "response": null}',
        "line 2 must have a text in the field 'response', not null",
    ),
    "half a character": (
        '{"prompt": "\\ud800", "response": "b"}',
        "line 2 holds half a character ('\\ud800')",
    ),
    "empty prompt": ('{"prompt": "", "response": "b"}', "line 2 makes an empty prompt"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_name_the_flag_and_the_line(tmp_path, name):
    line, message = BAD_ROWS[name]
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n' + line)
    with pytest.raises(UsageError) as caught:
        get_data(custom(path), 42)
    assert str(caught.value).startswith(f"--data_path {path}: {message}")


def test_a_bad_row_is_found_even_if_it_is_not_drawn(tmp_path, folder):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n' + "{}")
    with pytest.raises(UsageError, match="line 2 has no field"):
        get_data(custom(path, num_samples=1), 42)
    shutil.copy(path, folder / "train.jsonl")
    with pytest.raises(UsageError, match=r"--data_path .*: train.jsonl line 2 has no field"):
        get_data(custom(folder, n_shot=1), 42)
    with pytest.raises(UsageError, match=r"--calibration_path .*: line 2 has no field"):
        calibration(custom(folder), calibration_path=str(path))


BAD_ROWS_OF = {
    "gsm8k": ({"question": "Q", "answer": "#### none"}, "has an answer without a number to match"),
    "spec_bench": ({"turns": []}, "has no list of texts 'turns'; it has: turns"),
    "text": ({"text": " "}, "holds an empty text"),
    "mbpp": (
        {"text": "T", "code": "c"},
        "has no list of texts 'test_list'; it has: text, code",
    ),
}


@pytest.mark.parametrize("dataset", BAD_ROWS_OF)
def test_rows_that_a_data_set_cannot_use_are_one_line(tmp_path, dataset):
    row, message = BAD_ROWS_OF[dataset]
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UsageError) as caught:
        get_data(custom(path, dataset=dataset), 42)
    assert str(caught.value) == f"--data_path {path}: line 1 {message}"


def test_own_rows_may_ask_for_numbers_too(tmp_path, rows):
    assert get_data(custom(rows, numeric_match=True), 42) == get_data(custom(rows), 42)
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "response": "b"}])
    with pytest.raises(UsageError, match="line 1 has an answer without a number to match"):
        get_data(custom(path, numeric_match=True), 42)
    assert len(get_data(custom(path), 42).examples) == 1


SPOKEN = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
    {"question_id": 201, "category": "qa", "turns": ["Who?"]},
]


def test_examples_have_the_category_and_the_turns_of_their_row(tmp_path):
    path = write(tmp_path / "rows.jsonl", SPOKEN)
    found = get_data(custom(path, dataset="spec_bench", template="<{message}>"), 42)
    assert [(e.example_id, e.category, e.prompt, e.reference) for e in found.examples] == [
        ("81", "writing", "<Write.>", ""),
        ("201", "qa", "<Who?>", ""),
    ]
    assert [e.turns for e in found.examples] == [("<Again.>",), ()]
    changed = [SPOKEN[0] | {"turns": ["Write.", "Once more."]}, SPOKEN[1]]
    other = custom(write(tmp_path / "other.jsonl", changed), dataset="spec_bench")
    same = custom(path, dataset="spec_bench")
    assert get_data(other, 42).facts()["fingerprint"] != get_data(same, 42).facts()["fingerprint"]


def test_own_rows_may_have_a_category(tmp_path):
    rows = [{"prompt": "a", "response": "", "category": name} for name in ("x", 3, None, "")]
    rows.append({"prompt": "a", "response": ""})
    found = get_data(custom(write(tmp_path / "rows.jsonl", rows)), 42)
    assert [e.category for e in found.examples] == ["x", "3", None, None, None]


@pytest.mark.parametrize("dataset", ["spec_bench", "text"])
def test_data_sets_without_answers_refuse_flags_that_need_them(rows, dataset):
    for changes in ({"n_shot": 1}, {"numeric_match": True}):
        with pytest.raises(UsageError, match=f"--dataset {dataset} has no answers to "):
            custom(rows, dataset=dataset, **changes).check()


def test_a_file_that_has_to_be_fetched_is_named():
    with pytest.raises(UsageError) as caught:
        get_data(DataArguments(dataset="spec_bench"), 42)
    line = "--data_path: --dataset spec_bench needs a file or a folder: data/spec_bench/question"
    assert str(caught.value).startswith(line)


def test_no_template_goes_around_plain_texts(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": "One."}])
    (example,) = get_data(custom(path, dataset="text", template="<{message}>"), 42).examples
    assert (example.prompt, example.reference) == ("One.", "")


def test_chats_in_which_no_parser_speaks_are_no_examples(tmp_path):
    path = write(tmp_path / "chat.jsonl", [{"data": [{"role": "USER", "message": "hi"}]}])
    with pytest.raises(UsageError, match=rf"--data_path {path}: holds no examples"):
        get_data(custom(path, dataset="chat_format"), 42)


def test_fields_are_renamed_only_for_custom_jsonl(rows):
    for changes in ({"prompt_field": "q"}, {"response_field": "a"}):
        ((flag, value),) = changes.items()
        with pytest.raises(UsageError, match=f"--{flag} {value}: only with --dataset custom_jsonl"):
            get_local_prompts(DataArguments(**changes), PruneArguments(), 42)
    other = PruneArguments(
        **MEASURED, calibration_dataset="custom_jsonl", calibration_path=str(rows)
    )
    with pytest.raises(UsageError, match="line 1 has no field 'q'"):
        get_local_prompts(DataArguments(prompt_field="q"), other, 42)


def test_ids_are_those_of_the_rows_if_they_have_any(tmp_path):
    rows = [{"task_id": n, "prompt": f"p{n}", "canonical_solution": ""} for n in ("A/1", "", None)]
    arguments = custom(write(tmp_path / "rows.jsonl", rows), dataset="human_eval")
    assert [name for name, _ in selected(arguments)] == ["A/1", "2", "3"]
    bare = [{name: row[name] for name in ("prompt", "canonical_solution")} for row in rows]
    arguments = custom(write(tmp_path / "bare.jsonl", bare), dataset="human_eval")
    assert [name for name, _ in selected(arguments)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("A/1", "holds 2 rows whose task_id is 'A/1'"), ("\ud800", "line 2 holds half a character")],
)
def test_bad_ids_are_refused(tmp_path, name, message):
    rows = [{"task_id": n, "prompt": "p", "canonical_solution": ""} for n in ("A/1", name)]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UsageError, match=message):
        get_data(custom(path, dataset="human_eval"), 42)


def test_counts_may_be_huge(folder):
    arguments = custom(folder, num_samples=10**30)
    assert len(get_data(arguments, 42).examples) == 30
    assert len(calibration(arguments, 10**30).examples) == 30
    with pytest.raises(UsageError, match=f"--n_shot {10**30}: the training split has 30 examples"):
        get_data(custom(folder, n_shot=10**30), 42)


def test_a_source_without_either_split_says_so(monkeypatch):
    monkeypatch.setattr(HubSource, "rows", lambda self, split: None)
    with pytest.raises(UsageError, match="--dataset top_v2: has no test split; --data_path names"):
        get_data(DataArguments(dataset="top_v2"), 42)


def test_hub_rows_are_made_only_where_they_are_drawn(monkeypatch):
    made = []

    class Rows(list):
        def __getitem__(self, index):
            made.append(index)
            return super().__getitem__(index)

    def rows(_, split):
        texts = (f"{split} {n}" for n in range(10_000))
        return Rows(Row("", {"utterance": text, "semantic_parse": ""}) for text in texts)

    monkeypatch.setattr(HubSource, "rows", rows)
    found = calibration(DataArguments(dataset="top_v2", num_samples=3, n_shot=2), 4)
    assert (found.source, found.split) == ("WillHeld/top_v2", "train")
    assert len(made) < 20
