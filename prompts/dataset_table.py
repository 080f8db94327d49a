r"""The table of data sets: where rows come from, and how a row becomes prompt and reference.

To add a data set, add an entry to `DATASETS` at the end of this file:

    "news_headlines": DataSet(
        fields=("body", "headline"),
        examples=lambda row: [(f"{row['body']}\nHeadline:", f" {row['headline']}")],
        source=HubSource("someone/news", revision="refs/convert/parquet"),
        stop_words=("\n",),
    ),

The flags, few-shot examples, calibration and metrics of all scripts then work with it. The
prompts of the entries up to `chat_format` are those of LayerSkip (Elhoushi et al. 2024), that of
`mbpp` is from Austin et al. 2021.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prompts.row_formats import RowsError, field_names
from prompts.sources import HubSource, PackageSource, Source

PREFIX_WORDS = 100
_FENCED = re.compile(r"^```[^\n`]*\n(.*?)(?:^```|\Z)", re.MULTILINE | re.DOTALL)


def plain_shot(prompt: str, reference: str) -> str:
    """Return a solved example as separate lines."""
    glued = prompt[-1:].isspace() or reference[:1].isspace()
    return f"{prompt}{'' if glued else ' '}{reference}\n"


def joined(content: str, completion: str) -> str:
    """Return the program of a completion that continues its prompt."""
    return content + completion


def fenced_code(completion: str) -> str:
    """Return the code of the first block between ``` fences; without a fence, all of the text."""
    block = _FENCED.search(completion)
    return block[1] if block else completion


@dataclass(frozen=True)
class DataSet:
    """How to read one data set.

    fields: the texts that each row must have, the content first.
    examples: makes a row's (prompt, reference) pairs; may raise `RowsError`.
    source: where rows come from without `--data_path`; None if `--data_path` is required.
    stop_words: texts that end an answer, unless `--stop_words` is given.
    shot: writes a solved example into a few-shot prompt.
    id_field: the field with the example's id; rows without it are counted from 1.
    tests: makes the program that, run after a completion's program, fails for a wrong completion.
    program: makes the program of a row's content and a completion.
    renamable: the flags `--prompt_field` and `--response_field` rename the fields.
    references: rows say what is right; otherwise references are empty, and texts get no scores.
    numeric: references give a number, with which that of the text is compared.
    category_field: the field with the row's category, if rows have categories.
    turns: the user's messages of a conversation after the first; may raise `RowsError`.
    plain_text: rows are texts to read, and no prompts to answer.
    found_at: names the file for `--data_path`, in errors about its absence.
    """

    fields: tuple[str, ...]
    examples: Callable[[dict[str, Any]], list[tuple[str, str]]]
    source: Source | None = None
    stop_words: tuple[str, ...] = ()
    shot: Callable[[str, str], str] = plain_shot
    id_field: str | None = None
    tests: Callable[[dict[str, Any]], str] | None = None
    program: Callable[[str, str], str] = joined
    renamable: bool = False
    references: bool = True
    numeric: bool = False
    category_field: str | None = None
    turns: Callable[[dict[str, Any]], tuple[str, ...]] | None = None
    plain_text: bool = False
    found_at: str = ""


def _summary(article: str, summary: str) -> list[tuple[str, str]]:
    return [(f"Article: {article}\nSummary:", f" {summary}")]


def _summary_shot(prompt: str, reference: str) -> str:
    return plain_shot(prompt, reference.replace("\n", ""))


def _continuation(article: str) -> list[tuple[str, str]]:
    words = article.split()
    return [(" ".join(words[:PREFIX_WORDS]), " ".join(words[PREFIX_WORDS:]))]


def _chat(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a pair for each PARSER turn: all turns before it, and its message."""
    turns, pairs, spoken = row.get("data"), [], ""
    if not isinstance(turns, list):
        raise RowsError(f"has no list field 'data'; it has: {field_names(row)}")
    for number, turn in enumerate(turns, start=1):
        role, message = _turn(number, turn)
        if role == "PARSER":
            pairs.append((f"{spoken}\n[PARSER]\n", message))
        spoken += f"\n[{role}]\n{message}\n[/{role}]"
    return pairs


def _turn(number: int, turn: Any) -> tuple[str, str]:
    for name in ("role", "message"):
        if not isinstance(turn, dict) or not isinstance(turn.get(name), str):
            found = field_names(turn) if isinstance(turn, dict) else "no fields"
            raise RowsError(f"has no text field {name!r} in turn {number}; it has: {found}")
    return turn["role"], turn["message"]


def _unit_tests(row: dict[str, Any]) -> str:
    for name in ("test", "entry_point"):
        if not isinstance(row.get(name), str):
            raise RowsError(f"has no text field {name!r} to execute; it has: {field_names(row)}")
    return f"{row['test']}\ncheck({row['entry_point']})\n"


def _programming_task(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Show the tests, which tell the function's name."""
    tests = "\n".join(_texts(row, "test_list"))
    task = f"You are an expert Python programmer, and here is your task: {row['text']}"
    prompt = f"{task} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    return [(prompt.replace("\r\n", "\n"), row["code"].replace("\r\n", "\n"))]


def _assertions(row: dict[str, Any]) -> str:
    setup = row.get("test_setup_code") or ""
    if not isinstance(setup, str):
        raise RowsError(f"must have a text in 'test_setup_code', not {type(setup).__name__}")
    return "\n".join([setup, *_texts(row, "test_list"), ""])


def _conversation(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(_texts(row, "turns")[0], "")]


def _later_turns(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(_texts(row, "turns")[1:])


def _texts(row: dict[str, Any], name: str) -> list[str]:
    """Return the texts in a field of the row: at least one, none empty."""
    texts = row.get(name)
    if not isinstance(texts, list) or not texts:
        raise RowsError(f"has no list of texts {name!r}; it has: {field_names(row)}")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise RowsError(f"has no text at place {number} of {name!r}")
    return texts


def _whole_text(text: str) -> list[tuple[str, str]]:
    if not text.strip():
        raise RowsError("holds an empty text")
    return [(text, "")]


_CNN_DAILYMAIL = HubSource("abisee/cnn_dailymail", "3.0.0")

DATASETS: dict[str, DataSet] = {
    "cnn_dm_summarization": DataSet(
        fields=("article", "highlights"),
        examples=lambda row: _summary(row["article"], row["highlights"]),
        source=_CNN_DAILYMAIL,
        stop_words=("Article:",),
        shot=_summary_shot,
    ),
    "cnn_dm_lm": DataSet(
        fields=("article",),
        examples=lambda row: _continuation(row["article"]),
        source=_CNN_DAILYMAIL,
    ),
    "xsum_summarization": DataSet(
        fields=("document", "summary"),
        examples=lambda row: _summary(row["document"], row["summary"]),
        # The main revision is a loading script, which `datasets` 5 does not run.
        source=HubSource("EdinburghNLP/xsum", revision="refs/convert/parquet"),
        stop_words=("Article:",),
        shot=_summary_shot,
    ),
    "human_eval": DataSet(
        fields=("prompt", "canonical_solution"),
        examples=lambda row: [(row["prompt"], row["canonical_solution"])],
        source=PackageSource(),
        # From Codex (Chen et al. 2021): what may follow the function's body.
        stop_words=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
        id_field="task_id",
        tests=_unit_tests,
    ),
    "top_v2": DataSet(
        fields=("utterance", "semantic_parse"),
        examples=lambda row: [(row["utterance"], row["semantic_parse"])],
        source=HubSource("WillHeld/top_v2"),
        stop_words=("\n",),
    ),
    "custom_jsonl": DataSet(
        fields=("prompt", "response"),
        examples=lambda row: [(row["prompt"], row["response"])],
        renamable=True,
        category_field="category",
    ),
    "chat_format": DataSet(
        fields=(),
        examples=_chat,
        stop_words=("\n[/PARSER]",),
        shot=lambda prompt, reference: f"{prompt}{reference}\n[/PARSER]\n",
    ),
    "gsm8k": DataSet(
        fields=("question", "answer"),
        examples=lambda row: [(f"Question: {row['question']}\nAnswer:", f" {row['answer']}")],
        source=HubSource("openai/gsm8k", "main"),
        stop_words=("Question:",),
        numeric=True,
    ),
    "mbpp": DataSet(
        fields=("text", "code"),
        examples=_programming_task,
        source=HubSource("google-research-datasets/mbpp", "full"),
        stop_words=("[DONE]",),
        shot=lambda prompt, reference: f"{prompt}{reference}\n[DONE]\n",
        id_field="task_id",
        tests=_assertions,
        program=lambda _, completion: fenced_code(completion),
    ),
    "spec_bench": DataSet(
        fields=(),
        examples=_conversation,
        id_field="question_id",
        references=False,
        category_field="category",
        turns=_later_turns,
        found_at="data/spec_bench/question.jsonl of github.com/hemingkx/Spec-Bench",
    ),
    "text": DataSet(
        fields=("text",),
        examples=lambda row: _whole_text(row["text"]),
        references=False,
        plain_text=True,
    ),
}
