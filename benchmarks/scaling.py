"""How much more several processes of torchrun do than one, in the same run of benchmark.py.

    python benchmarks/scaling.py --processes 1 2 --repeats 4 -- --model layerskip-topv2-5m ...

What follows the two dashes is handed to benchmark.py. Every process has as many cores as
`--threads` says, whatever the machine has, and numbers of processes take turns: the ratios pair
what was measured within one turn. Loading is not measured; the wait for the last process is.
"""

import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.results_files import write_results
from command_line.errors import FailedError, reject
from command_line.flags import flag, parse
from command_line.script import run_script
from files.commit import current_commit
from files.hashes import content_hash
from runs.reader import find_runs, read_record, read_samples
from runs.record import RunRecord

ROOT = Path(__file__).parent.parent


@dataclass
class ScalingArguments:
    """What is compared."""

    processes: list[int] = flag([1, 2], "numbers of processes; ratios are to the first")
    threads: int = flag(1, "threads, and cores, of each process")
    repeats: int = flag(4, "runs of every number of processes")
    output: str = flag("results/scaling", "path of the .json and .md, without the suffix")

    def check(self) -> None:
        for name in ("processes", "threads", "repeats"):
            value = getattr(self, name)
            if min(value if isinstance(value, list) else [value]) < 1:
                reject(name, value, "must be at least 1")
        wanted, found = max(self.processes) * self.threads, len(os.sched_getaffinity(0))
        if wanted > found:
            reject("processes", max(self.processes), f"needs {wanted} cores; {found} are here")


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    split = words.index("--") if "--" in words else len(words)
    (arguments,) = parse(words[:split], __doc__, ScalingArguments)
    flags = words[split + 1 :]
    samples = []
    for turn in range(arguments.repeats):
        # Every other turn backwards, so that none always comes first.
        for count in arguments.processes[:: -1 if turn % 2 else 1]:
            record, outputs = measure(count, arguments.threads, flags)
            samples.append({"turn": turn, "outputs": outputs} | record.metrics["throughput"])
            print(f"turn {turn + 1}: {samples[-1]}", file=sys.stderr, flush=True)
    results = {
        "command": "python benchmarks/scaling.py " + shlex.join(words),
        "commit": current_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "model": record.model["name"],
        "runtime": record.runtime,
        "samples": samples,
        "summary": summarize(samples),
    }
    write_results(Path(arguments.output), results, table(results))
    print(table(results))
    return 0


def measure(count: int, threads: int, flags: list[str]) -> tuple[RunRecord, str]:
    """One run by so many processes, and a hash of what it said."""
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
            told = [line for line in done.stderr.splitlines() if "error:" in line]
            raise FailedError(f"benchmark.py failed with {count} processes: {told or done.stderr}")
        (path,) = find_runs(Path(folder))
        outputs = (str(sample.output_ids) for sample in read_samples(path))
        return read_record(path), content_hash(*outputs)


def summarize(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every number of processes its throughput and its ratios to the first number."""
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
    """The summary as Markdown."""
    runtime, samples = results["runtime"], results["samples"]
    lines = [
        "# Processes",
        "",
        "| processes | tokens/s together | / one process, median [lowest, highest] | outputs |",
        "|---|---|---|---|",
    ]
    for row in results["summary"]:
        spread = f"{row['ratio']:.2f} [{row['lowest_ratio']:.2f}, {row['highest_ratio']:.2f}]"
        said = "equal" if row["equal"] else "NOT EQUAL"
        lines.append(f"| {row['processes']} | {row['tokens_per_second']:.0f} | {spread} | {said} |")
    lines += [
        "",
        f"{results['model']}, {samples[0]['prompts']} prompts, {samples[0]['generated_tokens']} "
        f"tokens, {runtime['threads']} thread(s) each, {runtime['dtype']}, {runtime['device']}, "
        f"torch {runtime['versions']['torch']}, commit {results['commit']}, {results['date']}:",
        f"`{results['command']}`",
        "",
    ]
    return "\n".join(lines)


def _cores(count: int) -> list[int]:
    return sorted(os.sched_getaffinity(0))[:count]


if __name__ == "__main__":
    sys.exit(run_script(main))
