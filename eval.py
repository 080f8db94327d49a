"""Scores a pruned model, with either strategy, on tasks of lm-evaluation-harness."""

import sys
import typing
from importlib.util import find_spec

from command_line.errors import UsageError
from command_line.flags import parse
from command_line.script import command_text, run_script
from harness.arguments import DEFAULTS, EvaluationArguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_evaluation(argv)
    if find_spec("lm_eval") is None:
        raise UsageError(
            "lm-evaluation-harness is not installed; pip install -r requirements-eval.txt"
        )

    from harness.evaluation import run_evaluation, tables

    command = command_text(argv)
    record, path = run_evaluation(arguments, command)
    if "harness" in record.metrics:  # in the leading process
        print(tables(record))
        print(f"log       {path}")
    return 0


def parse_evaluation(argv: list[str] | None) -> EvaluationArguments:
    """Return the flags of an evaluation, checked as far as possible without model and tasks."""
    groups = typing.get_type_hints(EvaluationArguments).values()
    arguments = EvaluationArguments(*parse(argv, __doc__, *groups, defaults=DEFAULTS))
    arguments.check()
    return arguments


if __name__ == "__main__":
    sys.exit(run_script(main))
