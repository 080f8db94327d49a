"""Texts are read, and those held out share nothing with those learned."""

import pytest

from command_line.errors import UsageError
from tests.conftest import chats, write
from training.arguments import TrainingDataArguments
from training.texts import Answer, get_training_texts


def texts(path, seed=0, **flags):
    return get_training_texts(TrainingDataArguments(data_path=str(path), **flags), seed)


def test_held_out_texts_are_not_learned_however_often_they_occur(tmp_path):
    rows = [{"text": f"number {number % 10}"} for number in range(30)]
    learned, held_out = texts(write(tmp_path / "rows.jsonl", rows), eval_samples=4)
    assert len(held_out) == 4
    assert len(learned) == 18
    assert not {text.text for text in learned} & {text.text for text in held_out}
    assert texts(tmp_path / "rows.jsonl", eval_samples=4) == (learned, held_out)
    assert texts(tmp_path / "rows.jsonl", eval_samples=4, seed=1)[1] != held_out


def test_a_data_set_is_learned_in_its_template(folder):
    learned, held_out = texts(
        folder, dataset="custom_jsonl", template="<{message}>", eval_samples=0, num_samples=2
    )
    assert learned == [Answer("<number 0:>", "item 0"), Answer("<number 1:>", "item 1")]
    assert held_out == []


def test_held_out_rows_of_another_file(folder, tmp_path):
    path = write(
        tmp_path / "eval.jsonl", [{"prompt": f"number {n}:", "response": ""} for n in (7, 99)]
    )
    learned, held_out = texts(folder, dataset="custom_jsonl", eval_path=str(path))
    assert {text.prompt for text in held_out} == {"number 7:", "number 99:"}
    assert len(learned) == 39


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"words": "a"}, "line 1 has no text in a field text or messages; it has: words"),
        ({"text": " "}, "line 1 has no text"),
        ({"text": 3}, "line 1 has no text"),
        ({"messages": []}, "line 1 must have in messages a list of turns"),
        ({"messages": [{"role": "user", "content": "a"}]}, "one of them an assistant's"),
        ({"messages": [{"role": "assistant"}]}, "texts role and content"),
        ({"text": "\ud800"}, "line 1 holds half a character"),
    ],
)
def test_rows_without_text_are_refused(tmp_path, row, reason):
    with pytest.raises(UsageError, match=f"--data_path .*{reason}"):
        texts(write(tmp_path / "rows.jsonl", [row]))


def test_a_conversation_is_held_out_as_a_whole(tmp_path):
    """Later turns hold the earlier ones and their answers."""
    path = chats(tmp_path / "rows.jsonl", range(5))
    learned, held_out = texts(path, dataset="chat_format", eval_samples=2)
    assert len(held_out) == 2
    assert len(learned) == 9
    assert not {text.content for text in learned} & {text.content for text in held_out}


def test_a_question_is_held_out_with_all_its_answers(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"question{' ' * (1 + number % 2)}{number // 4}"},
                {"role": "assistant", "content": f"answer {number}"},
            ]
        }
        for number in range(12)
    ]
    learned, held_out = texts(write(tmp_path / "rows.jsonl", rows), eval_samples=1)
    (number,) = [text.turns[1][1].split()[1] for text in held_out]
    assert len(learned) == 8
    assert number not in {text.turns[1][1].split()[1] for text in learned}


def test_chats_that_begin_with_an_answer_are_told_apart(tmp_path):
    rows = [{"messages": [{"role": "assistant", "content": f"line {n}"}]} for n in range(4)]
    path = write(tmp_path / "rows.jsonl", rows)
    learned, held_out = texts(path, eval_samples=1)
    assert (len(learned), len(held_out)) == (3, 1)
    assert held_out[0].place.startswith(f"--data_path {path}: line ")


def test_no_test_split_is_learned(tmp_path):
    with pytest.raises(UsageError, match="--dataset human_eval: has no train split"):
        get_training_texts(TrainingDataArguments(dataset="human_eval"), 0)
    rows = [{"prompt": "a", "response": "b", "text": "c"}]
    path = write(tmp_path / "test.jsonl", rows)
    for dataset in ("custom_jsonl", None):
        with pytest.raises(UsageError, match=f"--data_path {tmp_path}: has no train split"):
            texts(tmp_path, dataset=dataset, eval_samples=0)
        assert len(texts(path, dataset=dataset, eval_samples=0)[0]) == 1


def test_texts_and_chats_do_not_mix(tmp_path):
    chat = {"messages": [{"role": "assistant", "content": "a"}]}
    path = write(tmp_path / "rows.jsonl", [{"text": "a"}, chat])
    with pytest.raises(UsageError, match="holds rows with a text and rows with messages"):
        texts(path)


def test_holding_out_everything_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": "b"}])
    with pytest.raises(UsageError, match="--eval_samples 2: leaves no row to train on"):
        texts(path, eval_samples=2)
