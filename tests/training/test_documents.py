"""What is learned of which text, and in which batches."""

import copy
import dataclasses
from collections import Counter

import pytest

from command_line.errors import UsageError
from tests.conftest import END, write
from training.arguments import TrainingDataArguments
from training.documents import BATCHINGS, UNLEARNED, BatchPlan, Document, collate, encode_texts
from training.texts import Answer, Chat, Plain, get_training_texts

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chatting(tokenizer):
    tokenizer.chat_template = TEMPLATE
    yield tokenizer
    tokenizer.chat_template = None


def learned_text(document, tokenizer):
    kept = [token for token, learned in zip(document.ids, document.learned, strict=True) if learned]
    return tokenizer.decode(kept)


def encoded(texts, tokenizer, max_length=100, chat=False):
    return encode_texts(texts, tokenizer, chat, max_length)


def test_of_an_answer_the_reference_is_learned(tokenizer):
    (document,) = encoded([Answer("ask:", "told")], tokenizer)
    assert document.ids[-1] == END
    assert tokenizer.decode(document.ids) == "ask:told<end>"
    assert learned_text(document, tokenizer) == "told<end>"


def test_a_plain_text_is_learned_and_split(tokenizer):
    documents = encoded([Plain("abcdefg")], tokenizer, max_length=3)
    assert [tokenizer.decode(one.ids) for one in documents] == ["abc", "def", "g<end>"]
    assert all(all(one.learned) for one in documents)


def test_a_long_prompt_keeps_its_tail_and_makes_room_for_its_answer(tokenizer, capsys):
    (document,) = encoded([Answer("0123456789", "told")], tokenizer, max_length=8)
    assert tokenizer.decode(document.ids) == "6789told"
    (document,) = encoded([Answer("0123456789", "yes")], tokenizer, max_length=8)
    assert tokenizer.decode(document.ids) == "6789yes<end>"
    (document,) = encoded([Answer("01", "told at length")], tokenizer, max_length=8)
    assert tokenizer.decode(document.ids) == "01told a"
    assert capsys.readouterr().err.count("--max_length 8: 1 documents are longer, and cut") == 3


def test_a_long_chat_keeps_its_first_question(chatting):
    turns = (("user", "hi"), ("assistant", "ho"), ("user", "so"), ("assistant", "la"))
    (document,) = encoded([Chat("line 1", turns)], chatting, max_length=40)
    assert chatting.decode(document.ids).startswith("<user>hi</><assistant>ho</><user>")
    assert len(document) == 40


def test_a_text_without_anything_to_learn_is_left_out_with_a_warning(tokenizer, capsys):
    assert encoded([Plain("ab")], tokenizer, max_length=2)[0].targets == 1
    assert "1 documents hold nothing to learn" in capsys.readouterr().err


def test_of_a_chat_the_assistants_turns_are_learned(chatting):
    turns = (("user", "hi"), ("assistant", "ho"), ("user", "so"), ("assistant", "la"))
    (document,) = encoded([Chat("line 1", turns)], chatting)
    assert chatting.decode(document.ids) == "<user>hi</><assistant>ho</><user>so</><assistant>la</>"
    assert learned_text(document, chatting) == "ho</>la</>"


def test_an_answer_in_a_chat_template(chatting):
    (document,) = encoded([Answer("hi", "ho")], chatting, chat=True)
    assert chatting.decode(document.ids) == "<user>hi</><assistant>ho</>"
    assert learned_text(document, chatting) == "ho</>"


def test_a_template_that_rewrites_earlier_turns_is_refused(chatting):
    chatting.chat_template = "{{ messages | length }}" + TEMPLATE
    turns = (("user", "hi"), ("assistant", "ho"), ("user", "so"))
    with pytest.raises(UsageError, match="line 7: .* are no beginning of those of all turns"):
        encoded([Chat("line 7", turns)], chatting)


def test_messages_need_a_chat_template(tokenizer):
    with pytest.raises(UsageError, match="messages need a tokenizer with a chat template"):
        encoded([Chat("line 1", (("assistant", "ho"),))], tokenizer)


def test_a_tokenizer_without_end_token_adds_none_and_one_with_it_adds_but_one(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.eos_token = None
    assert encoded([Answer("a", "b")], plain)[0].ids == tokenizer("ab")["input_ids"]
    (document,) = encoded([Answer("a", "b<end>")], tokenizer)
    assert document.ids.count(END) == 1


LENGTHS = [3, 9, 4, 4, 7, 3, 8, 5, 6, 3] * 5


@pytest.fixture(params=BATCHINGS)
def plan(request):
    return BatchPlan(LENGTHS, batch_tokens=20, max_length=10, batching=request.param, seed=1)


def test_an_epoch_holds_every_document_once_within_the_bounds(plan):
    batches = plan.epoch(0)
    seen = Counter(index for batch in batches for row in batch for index in row)
    assert seen == Counter(range(len(LENGTHS)))
    for batch in batches:
        widths = [sum(LENGTHS[index] for index in row) for row in batch]
        assert max(widths) <= 10
        assert max(widths) * len(batch) <= 20


def test_batches_follow_seed_and_epoch_alone(plan):
    first, second = plan.epoch(0), plan.epoch(1)
    assert first != second
    assert plan.epoch(0) == first
    assert dataclasses.replace(plan, seed=2).epoch(0) != first


def test_a_walk_goes_on_where_another_stopped(plan):
    total = plan.steps(3)
    whole = list(plan.walk(0, total))
    assert len(whole) == total
    for first in (1, len(plan.epoch(0)), total - 1):
        assert list(plan.walk(first, total)) == whole[first:]


def test_little_is_padding_where_lengths_are_grouped():
    lengths = [1 + number % 50 for number in range(4000)]
    plan = BatchPlan(lengths, 1000, 50, "length_grouped", 0)
    read = sum(max(lengths[i] for (i,) in batch) * len(batch) for batch in plan.epoch(0))
    assert read < 1.02 * sum(lengths)


def test_labels_end_with_their_document():
    documents = [Document([1, 2, 3], [False, True, True]), Document([4, 5], [True, True])]
    batch = collate(documents, [(0, 1), (1,)])
    assert batch.ids_BT.tolist() == [[1, 2, 3, 4, 5], [4, 5, 0, 0, 0]]
    none = UNLEARNED
    assert batch.labels_BT.tolist() == [[2, 3, none, 5, none], [5, none, none, none, none]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]


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
    rows = [
        {
            "data": [
                {"role": role, "message": f"{role} of {number} at {turn}"}
                for turn in range(3)
                for role in ("USER", "PARSER")
            ]
        }
        for number in range(5)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
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
    learned, held_out = texts(write(tmp_path / "rows.jsonl", rows), eval_samples=1)
    assert (len(learned), len(held_out)) == (3, 1)


def test_no_test_split_is_learned(tmp_path):
    with pytest.raises(UsageError, match="--dataset human_eval: has no train split"):
        get_training_texts(TrainingDataArguments(dataset="human_eval"), 0)
    rows = [{"prompt": "a", "response": "b", "text": "c"}]
    path = write(tmp_path / "test.jsonl", rows)
    for dataset in ("custom_jsonl", None):
        with pytest.raises(UsageError, match=f"--data_path {tmp_path}: has no train split"):
            texts(tmp_path, dataset=dataset, eval_samples=0)
        assert len(texts(path, dataset=dataset, eval_samples=0)[0]) == 1


def test_what_a_template_cannot_say_is_told_by_flag_file_and_line(tmp_path, tokenizer):
    chat = {"messages": [{"role": "assistant", "content": "a"}]}
    path = write(tmp_path / "rows.jsonl", [chat])
    learned, _ = texts(path, eval_samples=0)
    with pytest.raises(UsageError, match=f"--data_path {path}: line 1: messages need a tokenizer"):
        encoded(learned, tokenizer)


ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate\nuser/assistant/...') }}"
    "{% endif %}{% endfor %}" + TEMPLATE
)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (TEMPLATE, "line 1: the chat begins with the assistant, who answers nobody"),
        (
            ALTERNATING,
            "line 1: the chat begins with the assistant, and the tokenizer's template refuses the "
            "chat (Conversation roles must alternate user/assistant/...)",
        ),
    ],
)
def test_a_chat_that_begins_with_the_assistant_is_told_to_do_so(chatting, template, told):
    """The tokenizer's template was said to fail, with "list index out of range"."""
    chatting.chat_template = template
    with pytest.raises(UsageError) as caught:
        encoded([Chat("line 1", (("assistant", "hi"), ("user", "ho")))], chatting)
    assert str(caught.value) == told


def test_a_template_that_breaks_down_says_how_in_one_line(chatting):
    chatting.chat_template = "{{ messages.none.none }}"
    with pytest.raises(
        UsageError, match=r"^line 1: the tokenizer's template fails \(\w+Error: "
    ) as caught:
        encoded([Chat("line 1", (("user", "hi"), ("assistant", "ho")))], chatting)
    assert "\n" not in str(caught.value)


def test_texts_and_chats_do_not_mix(tmp_path):
    chat = {"messages": [{"role": "assistant", "content": "a"}]}
    path = write(tmp_path / "rows.jsonl", [{"text": "a"}, chat])
    with pytest.raises(UsageError, match="holds rows with a text and rows with messages"):
        texts(path)


def test_holding_out_everything_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": "b"}])
    with pytest.raises(UsageError, match="--eval_samples 2: leaves no row to train on"):
        texts(path, eval_samples=2)
