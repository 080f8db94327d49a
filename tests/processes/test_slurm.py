"""The Slurm script and what it starts on each node: command lines and exit codes."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from command_line.errors import EXIT_BUSY, EXIT_INTERRUPTED, EXIT_USAGE
from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "sweep.slurm"
FLAGS = ["--model", "/shared/a model", "--output_dir", "/shared/logs"]
RECORD = '#!/usr/bin/env bash\nprintf "%q " "$@" >>"$0.calls"\necho >>"$0.calls"\n'
STAND_INS = {
    # Runs its command on this machine instead of every node.
    "srun": RECORD + 'while [[ $1 == -* ]]; do shift; done\n"$@"',
    "scontrol": RECORD + '[ "$1" != show ] || printf "node7\\nnode8\\n"',
    # Ends with 1 if its process fails, as the real torchrun does.
    "torchrun": RECORD + 'while [ "$1" != --no-python ]; do shift; done\nshift\n"$@" || exit 1',
    "python": RECORD + "exit $SWEEP_ENDS_WITH",
}
SETTINGS = {
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "node[7-8]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_CPUS_PER_TASK": "16",
}


class Cluster:
    """Stand-ins for Slurm, torchrun and Python, which record their calls."""

    def __init__(self, folder):
        self.folder = folder
        for name, text in STAND_INS.items():
            (folder / name).write_text(text + "\n")
            (folder / name).chmod(0o755)

    def submit(self, *flags, ends_with=0, folder=ROOT, **environment):
        path = f"{self.folder}:{os.environ['PATH']}"
        settings = {"PATH": path, "SWEEP_ENDS_WITH": str(ends_with)} | SETTINGS | environment
        return subprocess.run(
            ["bash", str(SCRIPT), *flags],
            env={name: value for name, value in settings.items() if value is not None},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, name):
        path = self.folder / f"{name}.calls"
        return [shlex.split(line) for line in path.read_text().splitlines()]

    @property
    def requeued(self):
        return ["requeue", SETTINGS["SLURM_JOB_ID"]] in self.calls("scontrol")


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


@pytest.mark.parametrize("script", [SCRIPT, ROOT / "launch_ranks"])
def test_it_is_bash(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_every_node_runs_torchrun_with_one_place_to_meet(cluster):
    assert cluster.submit(*FLAGS).returncode == 0
    (srun,) = cluster.calls("srun")
    assert srun[:3] == ["--ntasks-per-node=1", "--cpus-per-task=16", "--kill-on-bad-exit=1"]
    (torchrun,) = cluster.calls("torchrun")
    given = torchrun[: torchrun.index("--no-python")]
    assert dict(zip(given[::2], given[1::2], strict=True)) == {
        "--nnodes": "2",
        "--nproc_per_node": "8",
        "--rdzv_backend": "c10d",
        "--rdzv_endpoint": "node7:23456",
        "--rdzv_id": "123456-0",
    }
    assert cluster.calls("python") == [["sweep.py", *FLAGS]]
    assert not cluster.requeued


def test_settings_come_from_the_environment(cluster):
    settings = {"NPROC_PER_NODE": "4", "SLURM_JOB_NUM_NODES": "3", "SLURM_RESTART_COUNT": "2"}
    cluster.submit(*FLAGS, **settings)
    (torchrun,) = cluster.calls("torchrun")
    for pair in (["--nproc_per_node", "4"], ["--nnodes", "3"], ["--rdzv_id", "123456-2"]):
        assert torchrun[torchrun.index(pair[0]) + 1] == pair[1]
    cluster.submit(*FLAGS, SLURM_GPUS_ON_NODE=None)
    assert cluster.calls("torchrun")[1][3] == "1"


@pytest.mark.parametrize(
    ("ends_with", "exit_code", "requeued", "line"),
    [
        (0, 0, False, "the sweep is complete"),
        (EXIT_INTERRUPTED, EXIT_INTERRUPTED, True, "interrupted; it is requeued and goes on"),
        (128 + signal.SIGTERM, EXIT_INTERRUPTED, True, "interrupted; it is requeued and goes on"),
        (EXIT_BUSY, EXIT_BUSY, False, "another process is at what is left"),
        (1, 1, False, "failed with exit code 1"),
        (EXIT_USAGE, EXIT_USAGE, False, "failed with exit code 2"),
    ],
)
def test_what_becomes_of_a_job_that_ends(cluster, ends_with, exit_code, requeued, line):
    done = cluster.submit(*FLAGS, ends_with=ends_with)
    assert done.returncode == exit_code
    assert cluster.requeued == requeued
    assert line in done.stdout + done.stderr


def test_a_job_that_gets_nowhere_is_not_requeued_for_ever(cluster):
    restarts = {"SLURM_RESTART_COUNT": "3", "MOST_RESTARTS": "3"}
    done = cluster.submit(*FLAGS, ends_with=EXIT_INTERRUPTED, **restarts)
    assert done.returncode == EXIT_INTERRUPTED
    assert not cluster.requeued
    assert "interrupted after 3 restarts, and not requeued" in done.stderr


def test_bad_settings_are_one_line(cluster, tmp_path):
    refused = [
        (cluster.submit(*FLAGS, SLURM_JOB_ID=None), "is for sbatch"),
        (cluster.submit(*FLAGS, folder=tmp_path), "is not this project's folder"),
        (cluster.submit(), "give the flags of sweep.py"),
    ]
    for done, reason in refused:
        assert done.returncode == EXIT_USAGE
        assert done.stderr.count("\n") == 1
        assert reason in done.stderr
    assert not (tmp_path / "srun.calls").exists()


def test_slurm_warns_the_processes_and_not_the_shell_that_requeues():
    """With B: only the shell gets the signal, and scancel would look like the end of the time."""
    options = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --signal=TERM@120" in options
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(options)


def launch(*command, **options):
    """Start two processes of a command under the real torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc_per_node", "2"]
    return subprocess.Popen(
        ["bash", "launch_ranks", *torchrun, "--", sys.executable, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_exit_code_and_the_only_line_of_processes_pass_through_torchrun():
    """torchrun itself ends with 1 whatever its processes end with."""
    with launch("benchmark.py", "--top_p", "2") as launched:
        _, errors = launched.communicate(timeout=120)
    assert launched.returncode == EXIT_USAGE
    assert errors.count("benchmark.py: error: --top_p 2") == 1


def test_processes_that_sigterm_ends_report_it(tmp_path):
    code = (
        "import signal, sys, time, pathlib, os\n"
        f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({EXIT_INTERRUPTED}))\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).touch()\n"
        "time.sleep(120)"
    )
    with launch("-c", code) as launched:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(launched.pid, signal.SIGTERM)
        launched.communicate(timeout=60)
    assert launched.returncode == EXIT_INTERRUPTED


def test_a_launcher_without_a_command_is_one_line():
    for words in ([], ["torchrun"], ["torchrun", "--"], ["--", "python"]):
        done = subprocess.run(
            ["bash", str(ROOT / "launch_ranks"), *words], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr.count("\n")) == (EXIT_USAGE, 1)
