"""Checks that self-speculative decoding equals plain decoding of the same model."""

import sys
from dataclasses import dataclass
from typing import Any

from arguments.run import RUN_GROUPS, RunArguments
from command_line.errors import EXIT_INTERRUPTED, FailedError, reject
from command_line.flags import flag, parse
from command_line.messages import shown
from command_line.script import command_text, run_script
from data import get_local_prompts

DEFAULTS = {"generation_strategy": "self_speculative", "sample": False}
EXIT_WRONG = 1
EXIT_UNTESTED = 3
SHOWN_CHARACTERS = 70


@dataclass(frozen=True)
class CorrectnessArguments:
    """How sampled outputs are tested."""

    num_draws: int = flag(
        2000,
        "--sample true: draws per prompt, whose tokens 2 to 4 are tested against the model's "
        "probabilities",
    )

    def check(self) -> None:
        if self.num_draws < 100:
            reject("num_draws", self.num_draws, "must be at least 100, or nothing can be tested")


def main(argv: list[str] | None = None) -> int:
    *groups, checking = parse(argv, __doc__, *RUN_GROUPS, CorrectnessArguments, defaults=DEFAULTS)
    arguments = RunArguments(*groups)
    strategy = arguments.generation.generation_strategy
    if strategy != "self_speculative":
        reject("generation_strategy", strategy, "only self_speculative can be checked")
    if arguments.data.execute_code:
        reject("execute_code", "true", "here tokens are compared; benchmark.py executes code")
    prompts = get_local_prompts(arguments.data, arguments.calibrating, arguments.generation.seed)

    from processes.ranks import joined
    from runs.definition import define_run
    from runs.lossless import check_run

    command = command_text(argv)
    with joined().together():
        definition = define_run(arguments, prompts)
    record, path = check_run(definition, checking.num_draws, command)
    log = record.to_dict()
    print_summary(log)
    print(f"log       {path}")
    if log["summary"]["lossless"] is False:
        return EXIT_WRONG
    if log["status"] != "complete":
        return EXIT_INTERRUPTED
    if "out_of_memory" in log["summary"]["verdicts"]:
        return FailedError.exit_code
    return 0 if log["summary"]["tested"] else EXIT_UNTESTED


def print_summary(log: dict[str, Any]) -> None:
    """Print every difference with both continuations, then the counts."""
    for one in log["examples"]:
        if one["verdict"] not in ("equal", "prompt_too_long", "out_of_memory"):
            finding = _sampling_finding(one) if "draws" in one else _ids_finding(one)
            print(f"{one['verdict']}: {one['example_id']}, {finding}")
    summary = log["summary"]
    verdicts = ", ".join(f"{count} {name}" for name, count in sorted(summary["verdicts"].items()))
    print(f"{log['status']}: {len(log['examples'])} prompts: {verdicts or 'none checked'}")
    if "match_rate" in summary:
        print(
            f"match     {shown(summary['match_rate'], '.1%')} of outputs, "
            f"{shown(summary['tokens_before_difference'], '.1%')} of {summary['tokens']} tokens "
            f"before a first difference; largest logit gap "
            f"{shown(summary['largest_logit_gap'], '.2g')}"
        )
    else:
        print(
            f"sampling  {summary['draws']} draws; smallest p-value "
            f"{shown(summary['smallest_p_value'], '.2g')}, refused below {summary['level']:.2g}"
        )
    if summary["lossless"] is False:
        print("WRONG     self-speculation changes what this model says")
    elif not summary["tested"]:
        print("UNTESTED  no prompt put self-speculation to the test")


def _sampling_finding(one: dict[str, Any]) -> str:
    found = one["chi_square"]
    if found is None:
        return "whose first token ends the output"
    if not one["likely_sequences"]:
        return "no sequence is likely enough for a bin of its own; raise --num_draws"
    if found["p_value"] is None:
        return "which leaves no choice to test"
    rare = ""
    if found["rare_draws"]:
        expected = f"{found['rare_expected']:.2g} are expected"
        rare = f"{found['rare_draws']} rare draws where {expected}, "
    return (
        f"chi-square {found['statistic']:.1f} of {found['degrees_of_freedom']} degrees of "
        f"freedom, {rare}p = {found['p_value']:.2g}"
    )


def _ids_finding(one: dict[str, Any]) -> str:
    parted = one["difference"]
    return (
        f"token {parted['position'] + 1}, logit gap {shown(parted['logit_gap'], '.2g')}\n"
        f"    autoregressive    {parted['autoregressive'][:SHOWN_CHARACTERS]!r}\n"
        f"    self_speculative  {parted['self_speculative'][:SHOWN_CHARACTERS]!r}"
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
