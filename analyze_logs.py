"""Make tables and plots from run logs: quality, speed, and how pruning changes both."""

import argparse
import json
import sys
from pathlib import Path

from analysis.columns import FORMATS, Table
from analysis.comparison import (
    QUALITIES,
    Comparison,
    compare,
    drifting_speedups,
    missing_baselines,
)
from analysis.finished_runs import FinishedRun
from analysis.logged_runs import Found, find_logged_runs
from analysis.tables import make_tables
from command_line.errors import UsageError
from command_line.flags import (
    OneLineParser,
    check_least,
    check_new_file,
    check_new_folder,
    is_folder,
)
from command_line.messages import warn
from command_line.script import run_script
from files.writing import refused_unwritable, replace_text

PLOTS = (
    "quality_by_layers_removed",
    "speed_and_quality",
    "acceptance_by_draft_position",
    "angular_distance",
    "speedup_by_category",
    "layer_scores",
    "plan_correlation",
    "plan_uses",
)
TABLES = (
    *("summary_metrics", "summary_timing", "summary_comparison", "summary_seeds"),
    *("summary_models", "summary_differences", "summary_categories"),
    *("plans", "plan_correlations"),
)
WRITTEN = (
    *(f"{name}.csv" for name in TABLES),
    *(f"{name}.{suffix}" for name in PLOTS for suffix in ("png", "pdf")),
)


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    folders = [Path(name) for name in arguments.log_dirs]
    found = find_logged_runs(folders)
    for line in found.warnings:
        warn(line)
    if not found.runs:
        raise UsageError(f"log_dirs {' '.join(map(str, folders))}: {_nothing(found)}")
    comparisons = compare(found.runs)
    tables = make_tables(found.runs, comparisons)
    print(_text(tables, arguments.format))
    left_out = _write(arguments, found.runs, comparisons, tables)
    remarks = missing_baselines(comparisons) + drifting_speedups(comparisons)
    notes = [*remarks, *_of_older_logs(found.runs), *left_out]
    for line in notes:
        print(f"note: {line}", file=sys.stderr)
    if arguments.report is not None:
        _report(arguments, found, comparisons, tables, notes)
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "log_dirs", nargs="*", default=["logs"], help="folders with logs (default: logs)"
    )
    parser.add_argument(
        "--output_dir",
        default="./analysis",
        help="folder for CSV files and plots (default: ./analysis)",
    )
    parser.add_argument(
        "--format",
        default="markdown",
        choices=FORMATS,
        help="format of the printed tables (default: markdown)",
    )
    parser.add_argument(
        "--quality",
        default="rouge-l",
        choices=QUALITIES,
        help="score in the plots (default: rouge-l)",
    )
    parser.add_argument(
        "--no_plots", action="store_true", help="write only tables, which saves a second"
    )
    parser.add_argument(
        "--report", metavar="FILE", help="write one page with interactive plots to this .html file"
    )
    parser.add_argument(
        "--most_loss",
        type=float,
        default=0.01,
        help="most loss of --quality by which a pruned plan may lead the report (default: 0.01)",
    )
    return parser


def _parse(argv: list[str] | None) -> argparse.Namespace:
    arguments = _parser().read(argv)
    for folder in arguments.log_dirs:
        if not is_folder(folder):
            raise UsageError(f"log_dirs {folder}: is no folder")
    check_new_folder("output_dir", arguments.output_dir, may_exist=True)
    check_least(arguments, most_loss=0)
    if arguments.report is not None:
        check_new_file("report", arguments.report, ".html")
    return arguments


def _nothing(found: Found) -> str:
    reasons = {"cannot be read": found.unreadable, "are not finished": found.unfinished}
    parts = [f"{count} {reason}" for reason, count in reasons.items() if count]
    if not parts:
        return "no run logs found (benchmark_*.json, or consoles such as human_eval_results_base)"
    return f"no finished run: of the logs there, {' and '.join(parts)}"


def _text(tables: list[Table], form: str) -> str:
    if form == "json":
        content = {table.name: table.rows for table in tables}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    mark = {"markdown": "## ", "latex": "% ", "csv": "# "}[form]
    return "\n\n".join(f"{mark}{table.title}\n\n{table.text(form)}" for table in tables)


def _of_older_logs(runs: list[FinishedRun]) -> list[str]:
    if not any(run.is_older for run in runs):
        return []
    return [
        "older logs call a mean edit distance exact_match; tables show it as edit distance. Their "
        "BLEU is 0 for any text"
    ]


def _write(
    arguments: argparse.Namespace,
    runs: list[FinishedRun],
    comparisons: list[Comparison],
    tables: list[Table],
) -> list[str]:
    """Write tables and plots; return notes on what the plots leave out."""
    folder = Path(arguments.output_dir)
    with refused_unwritable(arguments.output_dir):
        folder.mkdir(parents=True, exist_ok=True)
        for name in WRITTEN:  # an earlier study may have left more files than this study writes
            (folder / name).unlink(missing_ok=True)
        for table in tables:
            replace_text(folder / f"{table.name}.csv", table.csv())
        if arguments.no_plots:
            return []
        # This import takes a second, which --no_plots saves.
        from analysis.plots import make_plots

        return make_plots(runs, arguments.quality, folder, comparisons)


def _report(
    arguments: argparse.Namespace,
    found: Found,
    comparisons: list[Comparison],
    tables: list[Table],
    notes: list[str],
) -> None:
    """Write the page, which tells warnings and notes too."""
    # This import takes two seconds, which calls without --report save.
    from analysis.report import Report, write_report

    report = Report(
        found.runs,
        comparisons,
        tables,
        notes=[*found.warnings, *notes],
        folders=arguments.log_dirs,
        quality=arguments.quality,
        most_loss=arguments.most_loss,
    )
    with refused_unwritable(arguments.report, "report"):
        write_report(Path(arguments.report), report)


if __name__ == "__main__":
    sys.exit(run_script(main))
