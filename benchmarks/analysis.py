"""Seconds and memory of analyze_logs.py on a thousand long runs, and the size of its report.

    python -m benchmarks.analysis

The runs are made up, with as many tokens, rounds and words as real runs, and written by the same
writer. They form two studies. One has many plan seeds; the other has many data seeds, each of which
is a set of conditions with its own panel in every plot.
"""

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path

from benchmarks.made_up_runs import MadeUpRun, angular_plan, base_plan, random_plan
from command_line.flags import check_least, flag, parse
from command_line.script import run_script
from pruning.plan import PrunePlan

ROOT = Path(__file__).parent.parent
DATASETS = ("cnn_dm_lm", "human_eval", "xsum_summarization", "cnn_dm_summarization")
DECODERS = ((None, None), (8, 6))  # exit layer and drafts


@dataclass
class AnalysisArguments:
    """The size of each study."""

    runs: int = flag(1000, "runs")
    examples: int = flag(100, "examples per run")
    tokens: int = flag(256, "tokens per output")

    def check(self) -> None:
        check_least(self, runs=2, examples=2, tokens=2)


def main(argv: list[str] | None = None) -> int:
    (arguments,) = parse(argv, __doc__, AnalysisArguments)
    studies = {"plan seeds": (60, 1), "data seeds": (1, 24)}
    for study, (plan_seeds, data_seeds) in studies.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_study(folder / "logs", arguments, plan_seeds, data_seeds)
            size = sum(path.stat().st_size for path in (folder / "logs").iterdir())
            print(f"{study}: {arguments.runs} runs, {size / 1e6:.0f} MB of logs")
            page = folder / "report.html"
            for flags in ([], ["--no_plots"], ["--no_plots", "--report", str(page)]):
                _measure(folder, flags)
            print(f"  the page: {page.stat().st_size / 1e6:.2f} MB")
    return 0


def write_study(
    folder: Path, arguments: AnalysisArguments, plan_seeds: int, data_seeds: int
) -> None:
    """Write the logs of a study's runs, as many as asked for, to a new folder."""
    cells = product(range(data_seeds), DATASETS, _plans(plan_seeds), DECODERS)
    for seed, dataset, plan, (exit_layer, drafts) in islice(cells, arguments.runs):
        run = MadeUpRun(
            dataset=dataset,
            plan=plan,
            exit_layer=exit_layer,
            num_speculations=drafts,
            examples=arguments.examples,
            tokens=arguments.tokens,
            data_seed=seed,
        )
        full = run.seconds / (run.tokens - 1)
        replace(run, full_step_seconds=full).write(folder)


def _measure(folder: Path, flags: list[str]) -> None:
    script = [sys.executable, str(ROOT / "analyze_logs.py"), str(folder / "logs")]
    started = time.perf_counter()
    subprocess.run(
        [*script, "--output_dir", str(folder / "analysis"), *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    seconds = time.perf_counter() - started
    # The largest child so far, in KiB on Linux; all children are alike.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6 * 1.024
    shown = " ".join(flag for flag in flags if flag.startswith("--")) or "with plots"
    print(f"  {shown}: {seconds:.1f} s, at most {peak:.2f} GB")


def _plans(seeds: int) -> list[PrunePlan]:
    angular = [angular_plan(n) for n in (1, 2, 3)]
    random_plans = [random_plan(p, seed) for p, seed in product((0.1, 0.2), range(seeds))]
    return [base_plan(), *angular, *random_plans]


if __name__ == "__main__":
    sys.exit(run_script(main))
