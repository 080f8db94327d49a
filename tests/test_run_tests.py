"""The shell sweeps: which cells there are, and what becomes of those that fail or are killed."""

import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line.errors import EXIT_BUSY, EXIT_INTERRUPTED
from runs.reader import find_runs, read_record, read_samples
from tests.conftest import write

ROOT = Path(__file__).parent.parent
DEFAULT_DATASETS = ["cnn_dm_lm", "human_eval", "xsum_summarization", "cnn_dm_summarization"]
# Stands for Python: tells of every cell that it is missing, or as the file `statuses` has it, and
# writes down each call of benchmark.py, which ends with the next code of the file `codes`.
STAND_IN = """#!/usr/bin/env bash
cd "$(dirname "$0")"
case $1 in
*cell_status.py)
    if [ -e statuses ]; then
        cat > /dev/null
        cat statuses
    else
        tr -cd '\\036' | tr '\\036' '\\n' | sed 's/.*/missing\\t3\\t/'
    fi
    ;;
*)
    printf '%q ' "$@" >> calls
    echo >> calls
    code=$(head -n 1 codes 2> /dev/null)
    [ -e codes ] && sed -i 1d codes
    exit "${code:-0}"
    ;;
esac
"""


class Sweep:
    """run_tests with the stand-in for Python, in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        script = folder / "python"
        script.write_text(STAND_IN)
        script.chmod(0o755)

    def __call__(self, *flags, script="run_tests", **environment):
        settings = {"PATH": os.environ["PATH"], "PYTHON": str(self.folder / "python")}
        return subprocess.run(
            ["bash", str(ROOT / script), *flags],
            env=settings | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self):
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [flags_of(line) for line in lines]


def flags_of(line):
    words = shlex.split(line)[1:]
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


def test_the_usual_sweep(sweep):
    done = sweep()
    assert (done.returncode, done.stderr) == (0, "")
    calls = sweep.calls()
    plans = [
        ("angular", "1"),
        ("angular", "2"),
        ("angular", "3"),
        ("random", "0.1"),
        ("random", "0.2"),
    ]
    decoders = ["autoregressive", "self_speculative"]
    cells = [
        (
            call["--dataset"],
            (call["--prune_method"], call.get("--prune_n") or call["--dropout_threshold"]),
            call["--generation_strategy"],
        )
        for call in calls
    ]
    assert cells == list(itertools.product(DEFAULT_DATASETS, plans, decoders))
    assert {call["--model"] for call in calls} == {"facebook/layerskip-llama2-7B"}
    assert {call["--output_dir"] for call in calls} == {"./logs/eval"}
    assert "cell 1 of 40: cnn_dm_lm, angular n=1, autoregressive; 120 prompts left" in done.stdout
    assert "40 cells: 0 were complete before, 40 are now, 0 failed" in done.stdout


def test_base_and_pruned_cells_share_prompts_exit_layer_and_draft_length(sweep):
    """A base run at exit layer 31 was once the yardstick of pruned ones at 30."""
    assert sweep(script="run_tests_base").returncode == 0
    base = sweep.calls()
    assert sweep().returncode == 0
    pruned = sweep.calls()
    assert {call["--prune_method"] for call in base} == {"base"}
    assert len(base) == 8
    plan = {"--prune_method", "--prune_n", "--dropout_threshold", "--prune_seed"}

    def decoders(calls):
        return {tuple(sorted((k, v) for k, v in call.items() if k not in plan)) for call in calls}

    assert decoders(base) == decoders(pruned)


def test_every_speculative_cell_has_a_plain_one_without_exit_layer(sweep):
    sweep()
    calls = sweep.calls()
    for plain, spoken in zip(calls[::2], calls[1::2], strict=True):
        own = {"--generation_strategy", "--exit_layer", "--num_speculations"}
        assert {"--exit_layer", "--num_speculations"} <= set(spoken)
        assert not own - {"--generation_strategy"} & set(plain)
        assert {k: v for k, v in spoken.items() if k not in own} == {
            k: v for k, v in plain.items() if k not in own
        }


def test_the_environment_sets_the_sweep_and_flags_pass_through(sweep, tmp_path):
    (tmp_path / "rows" / "xsum").mkdir(parents=True)
    (tmp_path / "rows" / "top_v2.csv.gz").write_text("")
    done = sweep(
        "--max_steps",
        "7",
        "--template",
        "it's {message} \\n $HOME",
        MODEL="a/b c",
        DATASETS="xsum_summarization top_v2 human_eval",
        PRUNE_NS="4",
        THRESHOLDS="0.5",
        PRUNE_SEEDS="1 2",
        NUM_SAMPLES="9",
        EXIT_LAYER="3",
        NUM_SPECULATIONS="2",
        OUTPUT_DIR="o ut",
        DATA_DIR="rows",
    )
    assert done.returncode == 0
    calls = sweep.calls()
    assert len(calls) == 3 * 3 * 2
    expected = {
        "--model": "a/b c",
        "--num_samples": "9",
        "--output_dir": "o ut",
        "--max_steps": "7",
        "--template": "it's {message} \\n $HOME",
    }
    assert all(expected.items() <= call.items() for call in calls)
    assert {call["--prune_seed"] for call in calls if "--prune_seed" in call} == {"1", "2"}
    spoken = calls[1]
    assert (spoken["--exit_layer"], spoken["--num_speculations"]) == ("3", "2")
    paths = {call["--dataset"]: call.get("--data_path") for call in calls}
    assert paths == {
        "xsum_summarization": "rows/xsum",
        "top_v2": "rows/top_v2.csv.gz",
        "human_eval": None,
    }


def test_complete_cells_are_skipped_and_others_go_on(sweep, tmp_path):
    settings = {"DATASETS": "top_v2", "THRESHOLDS": ""}
    (tmp_path / "statuses").write_text(
        "complete\t0\ta.json\npartial\t2\tb.json\nmissing\t3\t\n" + "complete\t0\tx\n" * 3
    )
    listed = sweep("--dry-run", **settings)
    assert listed.returncode == 0
    assert sweep.calls() == []
    assert listed.stdout.splitlines() == [
        "1/6  complete  top_v2, angular n=1, autoregressive: a.json",
        "2/6  partial   top_v2, angular n=1, self_speculative: b.json",
        "3/6  missing   top_v2, angular n=2, autoregressive",
        "4/6  complete  top_v2, angular n=2, self_speculative: x",
        "5/6  complete  top_v2, angular n=3, autoregressive: x",
        "6/6  complete  top_v2, angular n=3, self_speculative: x",
        "2 of 6 cells and 5 prompts are left",
    ]
    done = sweep(**settings)
    assert done.returncode == 0
    assert "6 cells: 4 were complete before, 2 are now, 0 failed" in done.stdout
    calls = sweep.calls()
    assert [call["--prune_n"] for call in calls] == ["1", "2"]


def test_a_failing_cell_is_reported_at_the_end_while_others_go_on(sweep, tmp_path):
    (tmp_path / "codes").write_text("0\n1\n0\n2\n")
    done = sweep("--template", "a b{message}", DATASETS="top_v2", THRESHOLDS="")
    assert done.returncode == 1
    assert "6 cells: 0 were complete before, 4 are now, 2 failed" in done.stdout
    calls = sweep.calls()
    assert len(calls) == 6
    reported = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in reported] == ["exit code 1", "exit code 2"]
    command = reported[0].partition(": ")[2]
    assert flags_of(" ".join(shlex.quote(word) for word in shlex.split(command)[1:])) == calls[1]


def test_a_cell_that_another_process_runs_is_waited_for(sweep, tmp_path):
    (tmp_path / "codes").write_text(f"0\n{EXIT_BUSY}\n0\n")
    done = sweep(DATASETS="top_v2", THRESHOLDS="", PRUNE_NS="1")
    assert done.returncode == 0
    assert "cell 2 of 2: waiting for the process that runs it" in done.stdout
    calls = sweep.calls()
    assert calls[1] == calls[2]


def test_what_is_wrong_with_every_cell_is_said_once(sweep, tmp_path):
    (tmp_path / "statuses").write_text("error\t0\t--num_samples 0: must be at least 1\n" * 2)
    settings = {"DATASETS": "top_v2", "THRESHOLDS": "", "PRUNE_NS": "1"}
    done = sweep(**settings)
    assert done.returncode == 2
    assert done.stderr == "run_tests: error: --num_samples 0: must be at least 1\n"
    assert sweep.calls() == []
    (tmp_path / "statuses").write_text("error\t0\tno hub\nmissing\t3\t\n")
    assert sweep(**settings).returncode == 0
    assert len(sweep.calls()) == 2  # by now there may be a hub


def test_an_interruption_ends_the_sweep(sweep, tmp_path):
    (tmp_path / "codes").write_text(f"0\n{EXIT_INTERRUPTED}\n")
    done = sweep()
    assert done.returncode == EXIT_INTERRUPTED
    assert len(sweep.calls()) == 2
    assert "the same command goes on" in done.stdout


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"PRUNE_METHODS": "magic"}, "PRUNE_METHODS magic: must be base, angular or random"),
        ({"NPROC": "two"}, "NPROC two: must be a number of processes"),
        ({"PYTHON": "no-such-python"}, "PYTHON no-such-python: no such command"),
        ({"DATA_DIR": "nowhere"}, "DATA_DIR nowhere: is no folder"),
        ({"DATASETS": ""}, "name no cell"),
    ],
)
def test_bad_settings_are_one_line(sweep, environment, told):
    done = sweep(**environment)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert sweep.calls() == []


@pytest.mark.parametrize("flag", ["--exit_layer", "--exit_layer=4", "--prune_method"])
def test_flags_that_tell_cells_apart_come_from_the_environment(sweep, flag):
    """An exit layer would make every autoregressive cell another model, and no baseline."""
    done = sweep(flag, "4")
    assert done.returncode == 2
    assert "set it in the environment" in done.stderr
    assert sweep.calls() == []


def test_help_names_every_setting(sweep):
    done = sweep("--help")
    assert done.returncode == 0
    for name in ("MODEL", "DATASETS", "PRUNE_NS", "THRESHOLDS", "PRUNE_SEEDS", "NUM_SAMPLES"):
        assert f"  {name} " in done.stdout
    assert "#" not in done.stdout


def test_more_processes_go_through_torchrun(sweep, tmp_path):
    done = sweep(NPROC="2", DATASETS="top_v2", THRESHOLDS="", PRUNE_NS="1")
    assert done.returncode == 0
    line = (tmp_path / "calls").read_text().splitlines()[0]
    assert line.startswith("-m torch.distributed.run --standalone --nproc_per_node 2 ")
    command = shlex.split(line)[shlex.split(line).index("--as-rank") + 2 :]
    assert command[:2] == [str(tmp_path / "python"), str(ROOT / "benchmark.py")]


@pytest.mark.slow
def test_a_sweep_killed_twice_ends_as_an_unbroken_one(checkpoint, tmp_path):
    data = tmp_path / "data" / "xsum"
    data.mkdir(parents=True)
    for split in ("test", "train"):
        texts = [{"document": f"{split} {n}", "summary": f"item {n}"} for n in range(8)]
        write(data / f"{split}.jsonl", texts)
    settings = os.environ | {
        "PYTHON": sys.executable,
        "MODEL": str(checkpoint),
        "DATASETS": "xsum_summarization",
        "PRUNE_METHODS": "angular",
        "PRUNE_NS": "2",
        "NUM_SAMPLES": "3",
        "EXIT_LAYER": "5",
        "NUM_SPECULATIONS": "2",
        "DATA_DIR": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
    }
    flags = ["--sample", "false", "--max_steps", "200", "--calibration_samples", "4"]
    flags += ["--dtype", "float64"]
    command = ["bash", str(ROOT / "run_tests"), *flags]

    def folder(name):
        return settings | {"OUTPUT_DIR": str(tmp_path / name)}

    for count in (1, 2):  # in the first run, then in the second
        started = subprocess.Popen(
            command,
            env=folder("killed"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while len(find_runs(tmp_path / "killed")) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    for name in ("killed", "unbroken"):
        done = subprocess.run(command, env=folder(name), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    killed, unbroken = (
        {
            read_record(path).run_id: [
                (sample.index, sample.output_ids, sample.prediction, sample.scores)
                for sample in read_samples(path)
            ]
            for path in find_runs(tmp_path / name)
        }
        for name in ("killed", "unbroken")
    )
    assert len(killed) == 2
    assert killed == unbroken
