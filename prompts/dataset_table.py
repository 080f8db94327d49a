r"""The table of data sets: where rows come from, and how a row becomes prompt and reference.

To add a data set, add an entry to `DATASETS` at the end of this file:

    "news_headlines": DataSet(
        fields=("body", "headline"),
        examples=lambda row: [(f"{row['body']}\nHeadline:", f" {row['headline']}")],
        source=HubSource("someone/news", revision="refs/convert/parquet"),
        stop_words=("\n",),
    ),

The flags, few-shot examples, calibration and metrics of all scripts then work with it. The
prompts of the entries below are those of LayerSkip (Elhoushi et al. 2024).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prompts.row_formats import RowsError, field_names
from prompts.sources import HubSource, PackageSource, Source

PREFIX_WORDS = 100


def plain_shot(prompt: str, reference: str) -> str:
    """Return a solved example as separate lines."""
    glued = prompt[-1:].isspace() or reference[:1].isspace()
    return f"{prompt}{'' if glued else ' '}{reference}\n"


@dataclass(frozen=True)
class DataSet:
    """How to read one data set.

    fields: the texts that each row must have, the content first.
    examples: makes a row's (prompt, reference) pairs; may raise `RowsError`.
    source: where rows come from without `--data_path`; None if `--data_path` is required.
    stop_words: texts that end an answer, unless `--stop_words` is given.
    shot: writes a solved example into a few-shot prompt.
    id_field: the field with the example's id; rows without it are counted from 1.
    tests: makes the program that, run after prompt and completion, fails for a wrong completion.
    renamable: the flags `--prompt_field` and `--response_field` rename the fields.
    """

    fields: tuple[str, ...]
    examples: Callable[[dict[str, Any]], list[tuple[str, str]]]
    source: Source | None = None
    stop_words: tuple[str, ...] = ()
    shot: Callable[[str, str], str] = plain_shot
    id_field: str | None = None
    tests: Callable[[dict[str, Any]], str] | None = None
    renamable: bool = False


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
    ),
    "chat_format": DataSet(
        fields=(),
        examples=_chat,
        stop_words=("\n[/PARSER]",),
        shot=lambda prompt, reference: f"{prompt}{reference}\n[/PARSER]\n",
    ),
}
