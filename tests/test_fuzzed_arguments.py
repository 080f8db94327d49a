"""Scripts parse any command line, or refuse it with one `UsageError`."""

import dataclasses
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

import analyze_logs
import correctness
import eval as harness
import generate
import sweep
import train
from arguments.run import RUN_GROUPS, RunArguments
from command_line.errors import UsageError
from command_line.flags import parse
from harness.arguments import EvaluationArguments
from runs.sweep_grid import SweepArguments
from tests.fuzzing import FIXED
from training.arguments import TrainingArguments

ANSWER_GROUPS = (*generate.GROUPS, generate.AnswerArguments)
CHECK_GROUPS = (*RUN_GROUPS, correctness.CorrectnessArguments)


def _groups(arguments: type) -> tuple[type, ...]:
    return tuple(typing.get_type_hints(arguments).values())


# The flags of each script, and how it parses them before it reads a file.
SCRIPTS = {
    "benchmark": (RUN_GROUPS, lambda argv: RunArguments(*parse(argv, "", *RUN_GROUPS))),
    "sweep": (_groups(SweepArguments), lambda argv: list(sweep.parse_sweep(argv).first_runs())),
    "correctness": (CHECK_GROUPS, lambda argv: parse(argv, "", *CHECK_GROUPS)),
    "generate": (ANSWER_GROUPS, lambda argv: parse(argv, "", *ANSWER_GROUPS)),
    "eval": (_groups(EvaluationArguments), harness.parse_evaluation),
    "train": (train.GROUPS, lambda argv: TrainingArguments(*parse(argv, "", *train.GROUPS))),
    "analyze_logs": ((), analyze_logs._parse),
}
ODD = [
    *("", " ", "-", "--", "---", "=", "-1", "0", "1", "2", "1e400", "nan", "-inf", "1_0", "0x10"),
    *("true", "False", "none", "None", "null", ".", "..", "/", "~", "~nobody-of-this-name", "a=b"),
    *("a" * 300, "a/" * 200, "9" * 5000, "\0", "\udcff", "\ufeff", "日本", "{message}", "{}", "@a"),
    *("self_speculative", "angular", "random", "base", "custom_jsonl", "human_eval", "bpe", "cpu"),
    *("a,b", "dtype=float32", "dtype=,=", "synthetic:llama2-7b", "/dev/null", "/proc/self/mem"),
]
# -h prints the help and exits.
WORDS = st.one_of(st.sampled_from(ODD), st.text(max_size=8), st.integers().map(str)).filter(
    lambda word: not word.startswith(("-h", "--help"))
)


def _lines(groups: tuple[type, ...]) -> st.SearchStrategy[list[str]]:
    """Flags with values, and stray words."""
    names = [f"--{item.name}" for group in groups for item in dataclasses.fields(group)]
    flag = st.sampled_from(names or ["--output_dir", "--format", "--no_plots", "--quality"])
    choices = [
        str(choice)
        for group in groups
        for item in dataclasses.fields(group)
        for choice in item.metadata["choices"] or ()
    ]
    value = WORDS | st.sampled_from(choices or ["markdown"])
    joined = st.tuples(flag, value).map("=".join)
    given_flag = st.tuples(flag, st.lists(value, max_size=3)).map(lambda pair: [pair[0], *pair[1]])
    parts = st.one_of(given_flag, joined.map(lambda word: [word]), WORDS.map(lambda word: [word]))
    return st.lists(parts, max_size=6).map(lambda found: [word for part in found for word in part])


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_line_is_parsed_or_refused_in_one_line(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    groups, read = SCRIPTS[script]
    refused = []

    @FIXED
    @given(_lines(groups))
    def check(argv):
        try:
            read(argv)
        except UsageError as error:
            refused.append(str(error))

    check()
    assert refused
    assert not list(tmp_path.iterdir())
