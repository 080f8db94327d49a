"""The prompt and reference that each data set makes of a row, written out by hand."""

import re

import pytest

from arguments.prompts import DataArguments
from data import get_data
from prompts import dataset_table
from prompts.dataset_table import DATASETS, fenced_code, plain_shot
from prompts.row_formats import RowsError
from prompts.sources import HubSource
from tests.conftest import write

ARTICLE = " ".join(f"w{number}" for number in range(103))


def pairs(name, row):
    return DATASETS[name].examples(row)


def test_summaries_are_asked_for_below_the_article():
    row = {"article": "It rained.", "highlights": "Rain .\nMore rain ."}
    assert pairs("cnn_dm_summarization", row) == [
        ("Article: It rained.\nSummary:", " Rain .\nMore rain .")
    ]
    row = {"document": "It rained.", "summary": "Rain."}
    assert pairs("xsum_summarization", row) == [("Article: It rained.\nSummary:", " Rain.")]
    for name in ("cnn_dm_summarization", "xsum_summarization"):
        shot = DATASETS[name].shot("Article: It rained.\nSummary:", " A .\nB .")
        assert shot == "Article: It rained.\nSummary: A .B .\n"


def test_language_modelling_continues_after_100_words():
    ((prompt, reference),) = pairs("cnn_dm_lm", {"article": ARTICLE.replace(" w7 ", "\n\n w7\t")})
    assert prompt == " ".join(f"w{number}" for number in range(100))
    assert reference == "w100 w101 w102"
    assert pairs("cnn_dm_lm", {"article": "short  one"}) == [("short one", "")]


def test_plain_pairs():
    row = {"prompt": "def f():\n", "canonical_solution": "    pass\n"}
    assert pairs("human_eval", row) == [("def f():\n", "    pass\n")]
    row = {"utterance": "wake me", "semantic_parse": "[IN:CREATE_ALARM wake me ]"}
    assert pairs("top_v2", row) == [("wake me", "[IN:CREATE_ALARM wake me ]")]
    row = {"prompt": "a", "response": "b"}
    assert pairs("custom_jsonl", row) == [("a", "b")]


def test_solved_examples_part_prompt_from_answer():
    assert plain_shot("wake me", "[IN ]") == "wake me [IN ]\n"
    assert plain_shot("Question:\n", "yes") == "Question:\nyes\n"
    assert plain_shot("Question:", " yes") == "Question: yes\n"


CHAT = [
    {"role": "USER", "message": "wake me"},
    {"role": "PARSER", "message": "[IN:A ]"},
    {"role": "USER", "message": "at six"},
    {"role": "PARSER", "message": "[IN:B ]"},
]


def test_every_parser_turn_is_a_reference():
    first = "\n[USER]\nwake me\n[/USER]"
    second = first + "\n[PARSER]\n[IN:A ]\n[/PARSER]\n[USER]\nat six\n[/USER]"
    assert pairs("chat_format", {"data": CHAT}) == [
        (first + "\n[PARSER]\n", "[IN:A ]"),
        (second + "\n[PARSER]\n", "[IN:B ]"),
    ]
    assert pairs("chat_format", {"data": CHAT[:1]}) == []
    shot = DATASETS["chat_format"].shot(first + "\n[PARSER]\n", "[IN:A ]")
    assert shot == second.partition("\n[USER]\nat")[0] + "\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"data": "[]"}, "has no list field 'data'; it has: data"),
        ({}, "has no list field 'data'; it has: none"),
        ({"data": [CHAT[0], "hi"]}, "has no text field 'role' in turn 2; it has: no fields"),
        ({"data": [{"role": "USER"}]}, "has no text field 'message' in turn 1; it has: role"),
    ],
)
def test_bad_chats_name_the_turn(row, message):
    with pytest.raises(RowsError) as caught:
        pairs("chat_format", row)
    assert str(caught.value) == message


def test_questions_have_the_worked_answer_as_reference():
    row = {"question": "How many?", "answer": "1 + 2 = 3\n#### 3"}
    assert pairs("gsm8k", row) == [("Question: How many?\nAnswer:", " 1 + 2 = 3\n#### 3")]
    assert DATASETS["gsm8k"].numeric


MBPP = {
    "text": "Write a function to add.",
    "code": "def add(a, b):\r\n    return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
    "test_setup_code": "zero = 0",
}


def test_programming_tasks_show_their_tests():
    """The prompt of Austin et al. 2021; only the tests tell the function's name."""
    ((prompt, reference),) = pairs("mbpp", MBPP)
    assert prompt == (
        "You are an expert Python programmer, and here is your task: Write a function to add. "
        "Your code should pass these tests:\n\n"
        "assert add(1, 2) == 3\nassert add(0, 0) == 0\n[BEGIN]\n"
    )
    assert reference == "def add(a, b):\n    return a + b"
    assert DATASETS["mbpp"].shot(prompt, reference) == f"{prompt}{reference}\n[DONE]\n"


def test_setup_comes_before_the_tests():
    tests = "zero = 0\nassert add(1, 2) == 3\nassert add(0, 0) == 0\n"
    assert DATASETS["mbpp"].tests(MBPP) == tests
    without = {name: MBPP[name] for name in MBPP if name != "test_setup_code"}
    for row in (without, MBPP | {"test_setup_code": None}, MBPP | {"test_setup_code": ""}):
        assert DATASETS["mbpp"].tests(row) == tests.replace("zero = 0", "")


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("x = 1\n", "x = 1\n"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Sure:\n```\nx = 1\ny = 2\n```\nand\n```\nz = 3\n```", "x = 1\ny = 2\n"),
        ("```py\nx = 1", "x = 1"),
        ("s = '```'\nx = 1", "s = '```'\nx = 1"),
        ("```x = 1```", "```x = 1```"),
        ("", ""),
    ],
)
def test_the_first_fenced_block_is_the_program(completion, code):
    assert fenced_code(completion) == code
    assert DATASETS["mbpp"].program("the task", completion) == code


def test_a_prompt_of_code_is_part_of_the_program():
    assert DATASETS["human_eval"].program("def f():\n", "    pass") == "def f():\n    pass"


def test_a_conversation_begins_with_its_first_turn():
    row = {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]}
    assert pairs("spec_bench", row) == [("Write.", "")]
    assert DATASETS["spec_bench"].turns(row) == ("Again.",)
    assert DATASETS["spec_bench"].turns(row | {"turns": ["Write."]}) == ()


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("spec_bench", {"turns": "Write."}, "has no list of texts 'turns'; it has: turns"),
        ("spec_bench", {"turns": []}, "has no list of texts 'turns'; it has: turns"),
        ("spec_bench", {"turns": ["a", " "]}, "has no text at place 2 of 'turns'"),
        ("mbpp", MBPP | {"test_list": [3]}, "has no text at place 1 of 'test_list'"),
        ("text", {"text": "\n "}, "holds an empty text"),
    ],
)
def test_bad_lists_and_empty_texts_are_named(name, row, message):
    with pytest.raises(RowsError) as caught:
        pairs(name, row)
    assert str(caught.value) == message


def test_texts_are_read_whole():
    assert pairs("text", {"text": " One.\n"}) == [(" One.\n", "")]
    assert DATASETS["text"].plain_text


STOP_WORDS = {
    "cnn_dm_summarization": ("Article:",),
    "cnn_dm_lm": (),
    "xsum_summarization": ("Article:",),
    "human_eval": ("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
    "top_v2": ("\n",),
    "custom_jsonl": (),
    "chat_format": ("\n[/PARSER]",),
    "gsm8k": ("Question:",),
    "mbpp": ("[DONE]",),
    "spec_bench": (),
    "text": (),
}


def test_what_ends_an_answer():
    assert {name: DATASETS[name].stop_words for name in STOP_WORDS} == STOP_WORDS


def test_hub_names_hold_parquet():
    """Scripts, such as xsum's main revision, are not run."""
    articles = HubSource("abisee/cnn_dailymail", configuration="3.0.0")
    xsum = HubSource("EdinburghNLP/xsum", revision="refs/convert/parquet")
    assert DATASETS["cnn_dm_summarization"].source == DATASETS["cnn_dm_lm"].source == articles
    assert DATASETS["xsum_summarization"].source == xsum
    assert DATASETS["top_v2"].source == HubSource("WillHeld/top_v2")
    assert DATASETS["gsm8k"].source == HubSource("openai/gsm8k", "main")
    assert DATASETS["mbpp"].source == HubSource("google-research-datasets/mbpp", "full")


def test_the_docstrings_entry_is_a_data_set(tmp_path, monkeypatch):
    (entry,) = re.findall(
        r'^    ("news.*?^    \),)', dataset_table.__doc__, re.DOTALL | re.MULTILINE
    )
    added = eval(f"{{{entry}}}", vars(dataset_table))
    (name,) = added
    monkeypatch.setitem(DATASETS, name, added[name])
    path = write(tmp_path / "rows.csv", [{"body": "It rained.", "headline": "Rain"}])
    (example,) = get_data(DataArguments(dataset=name, data_path=str(path)), 42).examples
    assert (example.prompt, example.reference) == ("It rained.\nHeadline:", " Rain")
