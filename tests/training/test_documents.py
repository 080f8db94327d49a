"""Documents hold the tokens of a text, and which of them are learned."""

import copy

import pytest

from command_line.errors import UsageError
from tests.conftest import END
from training.documents import encode_texts
from training.texts import Answer, Chat, Plain

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


TURNS = (("user", "hi"), ("assistant", "ho"), ("user", "so"), ("assistant", "la"))


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


def test_the_reference_of_an_answer_is_learned(tokenizer):
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
    (document,) = encoded([Chat("line 1", TURNS)], chatting, max_length=40)
    assert chatting.decode(document.ids).startswith("<user>hi</><assistant>ho</><user>")
    assert len(document) == 40


def test_a_text_without_anything_to_learn_is_left_out_with_a_warning(tokenizer, capsys):
    assert encoded([Plain("ab")], tokenizer, max_length=2)[0].targets == 1
    assert "1 documents hold nothing to learn" in capsys.readouterr().err


def test_the_assistants_turns_of_a_chat_are_learned(chatting):
    (document,) = encoded([Chat("line 1", TURNS)], chatting)
    assert chatting.decode(document.ids) == "<user>hi</><assistant>ho</><user>so</><assistant>la</>"
    assert learned_text(document, chatting) == "ho</>la</>"


def test_an_answer_is_learned_in_a_chat_template(chatting):
    (document,) = encoded([Answer("hi", "ho")], chatting, chat=True)
    assert chatting.decode(document.ids) == "<user>hi</><assistant>ho</>"
    assert learned_text(document, chatting) == "ho</>"


def test_a_template_that_rewrites_earlier_turns_is_refused(chatting):
    chatting.chat_template = "{{ messages | length }}" + TEMPLATE
    with pytest.raises(UsageError, match="line 7: .* later turns change the tokens of earlier"):
        encoded([Chat("line 7", TURNS)], chatting)


def test_messages_need_a_chat_template(tokenizer):
    with pytest.raises(UsageError, match="messages need a tokenizer with a chat template"):
        encoded([Chat("line 1", TURNS)], tokenizer)


def test_an_end_token_is_added_if_there_is_one_and_it_is_missing(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.eos_token = None
    assert encoded([Answer("a", "b")], plain)[0].ids == tokenizer("ab")["input_ids"]
    (document,) = encoded([Answer("a", "b<end>")], tokenizer)
    assert document.ids.count(END) == 1


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
def test_a_chat_that_begins_with_the_assistant_is_refused(chatting, template, told):
    """The error used to blame the tokenizer's template: "list index out of range"."""
    chatting.chat_template = template
    with pytest.raises(UsageError) as caught:
        encoded([Chat("line 1", (("assistant", "hi"), ("user", "ho")))], chatting)
    assert str(caught.value) == told


def test_a_template_that_breaks_down_says_how_in_one_line(chatting):
    chatting.chat_template = "{{ messages.none.none }}"
    reason = r"^line 1: the tokenizer's template fails \(\w+Error: "
    with pytest.raises(UsageError, match=reason) as caught:
        encoded([Chat("line 1", TURNS)], chatting)
    assert "\n" not in str(caught.value)
