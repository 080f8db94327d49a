"""The report of a sweep: its best runs as a table, and heat maps of the grid."""

import sys
from pathlib import Path

from analysis.comparison import SAME_PLAN, compare, drifting_speedups, missing_baselines
from analysis.comparison_tables import sweep_table
from analysis.heat_maps import make_heat_maps
from analysis.logged_runs import read_logged_runs
from command_line.errors import reject
from command_line.messages import warn
from files.writing import replace_text


def report(paths: list[Path], folder: Path) -> None:
    """Print the best of these runs, and write table and heat maps of all of them."""
    logged = read_logged_runs(paths)
    for line in logged.warnings:
        warn(line)
    if not logged.runs:
        return
    comparisons = compare(logged.runs)
    table = sweep_table(comparisons)
    print(table.text("markdown"))
    for line in missing_baselines(comparisons, [SAME_PLAN]) + drifting_speedups(comparisons):
        print(f"note: {line}", file=sys.stderr)
    try:
        replace_text(folder / f"{table.name}.csv", table.csv())
        make_heat_maps(comparisons, folder)
    except OSError as error:
        reject("output_dir", str(folder), f"{error.filename} cannot be written ({error.strerror})")
