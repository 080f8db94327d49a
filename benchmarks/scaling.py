"""Throughput of several processes of torchrun beside one process, in the same run of benchmark.py.

    python benchmarks/scaling.py --processes 1 2 --repeats 4 -- --model layerskip-topv2-5m ...

The flags after the two dashes go to benchmark.py. Each process has `--threads` cores. The numbers
of processes take turns, and a ratio pairs two runs of one turn. Loading is not measured; the wait
for the last process is.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file, whose folder Python puts first
    sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.order import in_turn
from benchmarks.results import Columns, bounded, conditions, head, table_lines, write_results
from command_line.errors import FailedError, reject
from command_line.flags import check_least, flag, parse
from command_line.script import run_script
from files.hashes import content_hash
from runs.reader import find_runs, read_record, read_samples
from runs.record import RunRecord

ROOT = Path(__file__).parent.parent
COLUMNS: Columns = {
    "processes": lambda row: row["processes"],
    "tokens/s together": lambda row: f"{row['tokens_per_second']:.0f}",
    "/ one process, median [lowest, highest]": lambda row: bounded(
        [row[key] for key in ("ratio", "lowest_ratio", "highest_ratio")]
    ),
    "outputs": lambda row: "equal" if row["equal"] else "NOT EQUAL",
}


@dataclass
class ScalingArguments:
    """The numbers of processes that are compared."""

    processes: list[int] = flag([1, 2], "numbers of processes; ratios are over the first")
    threads: int = flag(1, "threads and cores per process")
    repeats: int = flag(4, "runs per number of processes")
    output: str = flag("results/scaling", "path of the .json and .md without suffix")

    def check(self) -> None:
        check_least(self, processes=1, threads=1, repeats=1)
        wanted, found = max(self.processes) * self.threads, len(os.sched_getaffinity(0))
        if wanted > found:
            reject("processes", max(self.processes), f"needs {wanted} cores; there are {found}")


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    split = words.index("--") if "--" in words else len(words)
    (arguments,) = parse(words[:split], __doc__, ScalingArguments)
    flags = words[split + 1 :]
    samples = []
    for turn in range(arguments.repeats):
        for count in in_turn(arguments.processes, turn, arguments.repeats):
            record, outputs = measure(count, arguments.threads, flags)
            samples.append({"turn": turn, "outputs": outputs} | record.metrics["throughput"])
            print(f"turn {turn + 1}: {samples[-1]}", file=sys.stderr, flush=True)
    results = head("python benchmarks/scaling.py", words, record.model["name"]) | {
        "runtime": record.runtime,
        "samples": samples,
        "summary": summarize(samples),
    }
    write_results(Path(arguments.output), results, table(results))
    print(table(results))
    return 0


def measure(count: int, threads: int, flags: list[str]) -> tuple[RunRecord, str]:
    """Return the record of one run by `count` processes, and a hash of its outputs."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*launcher, "--nproc_per_node", str(count), "benchmark.py", *flags]
            + ["--output_dir", folder],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            preexec_fn=lambda: os.sched_setaffinity(0, _cores(count * threads)),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error:" in line]
            raise FailedError(f"benchmark.py failed with {count} processes: {lines or done.stderr}")
        (path,) = find_runs(Path(folder))
        outputs = (str(sample.output_ids) for sample in read_samples(path))
        return read_record(path), content_hash(*outputs)


def summarize(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the throughput of each number of processes, and its ratios over the first number."""
    first = samples[0]["ranks"]
    base = {one["turn"]: one["tokens_per_second"] for one in samples if one["ranks"] == first}
    rows = []
    for count in dict.fromkeys(sample["ranks"] for sample in samples):
        chosen = [sample for sample in samples if sample["ranks"] == count]
        ratios = [one["tokens_per_second"] / base[one["turn"]] for one in chosen]
        rows.append(
            {
                "processes": count,
                "tokens_per_second": statistics.median(one["tokens_per_second"] for one in chosen),
                "ratio": statistics.median(ratios),
                "lowest_ratio": min(ratios),
                "highest_ratio": max(ratios),
                "equal": {one["outputs"] for one in chosen} == {samples[0]["outputs"]},
            }
        )
    return rows


def table(results: dict[str, Any]) -> str:
    """Return the summary in Markdown."""
    first, runtime = results["samples"][0], results["runtime"]
    measured = (
        f"{first['prompts']} prompts, {first['generated_tokens']} tokens, "
        f"threads per process: {runtime['threads']}"
    )
    line = conditions(results, runtime, measured)
    return "\n".join(["# Processes", "", *table_lines(COLUMNS, results["summary"]), "", line, ""])


def _cores(count: int) -> list[int]:
    return sorted(os.sched_getaffinity(0))[:count]


if __name__ == "__main__":
    sys.exit(run_script(main))
