"""Runs a grid of exit layers, draft lengths, prune plans and data sets with one loaded model."""

import sys
import typing
from pathlib import Path

from command_line.errors import FailedError, UsageError
from command_line.flags import parse
from command_line.messages import print_error, warn
from command_line.script import command_text, run_script
from data import get_local_prompts
from runs.sweep_grid import SweepArguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_sweep(argv)
    check_local(arguments)

    from processes.ranks import joined
    from runs import code_execution
    from runs.sweep_runs import Sweep
    from runs.sweep_states import listing

    ranks = joined()
    sweep = Sweep(arguments, ranks)
    if arguments.grid.dry_run:
        print(*listing(sweep.states()), sep="\n")
        return 0
    if arguments.data.execute_code:
        warn(code_execution.warning())
    outcome = sweep.run(command_text(argv))
    if ranks.leads:
        from analysis.sweep_report import report

        report(outcome.paths, Path(arguments.log.output_dir))
    for name, error in outcome.failed:
        print_error(FailedError(f"{name}: {error}"))
    print(outcome.summary())
    return outcome.exit_code


def check_local(arguments: SweepArguments) -> None:
    """Raise the first error of flags and local rows if no run is without an error."""
    runs, errors = list(arguments.first_runs()), []
    for run in runs:
        try:
            arguments.check_run(run)
            get_local_prompts(run.data, run.calibrating, run.generation.seed)
        except UsageError as error:
            errors.append(error)
    if errors and len(errors) == len(runs):
        raise errors[0]


def parse_sweep(argv: list[str] | None) -> SweepArguments:
    """Return the flags of a sweep, checked as far as no model is needed."""
    hints = typing.get_type_hints(SweepArguments)
    return SweepArguments(*parse(argv, __doc__, *hints.values()))


if __name__ == "__main__":
    sys.exit(run_script(main))
