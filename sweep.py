"""Runs a grid of exit layers, draft lengths, prune plans and data sets with one loaded model."""

import sys
import typing
from pathlib import Path

from command_line.errors import EXIT_INTERRUPTED, reject
from command_line.flags import parse
from command_line.messages import warn
from command_line.script import command_text, run_script
from data import get_local_prompts
from files.writing import replace_text
from runs.sweep_grid import SweepArguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_sweep(argv)
    for run in arguments.baselines():
        get_local_prompts(run.data, run.prune, run.generation.seed)

    from processes.ranks import joined
    from runs import code_execution
    from runs.sweep_runs import SweepRunner, exit_code

    if arguments.data.execute_code:
        warn(code_execution.warning())
    ranks = joined()
    with ranks.together():
        runner = SweepRunner(arguments)
    for study in runner.studies:
        for reason in study.skipped:
            print(f"skipped: {study.name}, {reason}")
    command = command_text(argv)
    outcome = runner.run(command)
    if ranks.leads:
        report(outcome.paths, Path(arguments.log.output_dir))
    print(f"{len(outcome.paths)} of {runner.count} runs are complete")
    if outcome.short_of_memory:
        print(f"{outcome.short_of_memory} of them lack prompts for want of memory")
    if outcome.interrupted:
        print("interrupted; the same command goes on")
        return EXIT_INTERRUPTED
    return exit_code(outcome)


def parse_sweep(argv: list[str] | None) -> SweepArguments:
    """The flags of a sweep, checked as far as no model is needed."""
    hints = typing.get_type_hints(SweepArguments)
    return SweepArguments(*parse(argv, __doc__, *hints.values()))


def report(paths: list[Path], folder: Path) -> None:
    """Prints the best runs, and writes table and heat maps of those that are complete."""
    from analysis.comparison import SAME_PLAN, compare, drifting_speedups, missing_baselines
    from analysis.heat_maps import make_heat_maps
    from analysis.logged_runs import read_logged_runs
    from analysis.tables import sweep_table

    found = read_logged_runs(paths)
    for line in found.warnings:
        warn(line)
    if not found.runs:
        return
    comparisons = compare(found.runs)
    table = sweep_table(comparisons)
    print(table.text("markdown"))
    for line in missing_baselines(comparisons, [SAME_PLAN]) + drifting_speedups(comparisons):
        print(f"note: {line}", file=sys.stderr)
    try:
        replace_text(folder / f"{table.name}.csv", table.csv())
        make_heat_maps(comparisons, folder)
    except OSError as error:
        reject("output_dir", str(folder), f"{error.filename} cannot be written ({error.strerror})")


if __name__ == "__main__":
    sys.exit(run_script(main))
