"""However many processes share a run, it says what one process says."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import benchmark
import correctness
import sweep
from command_line.errors import EXIT_INTERRUPTED, FailedError
from command_line.script import run_script
from pruning import measurements, states
from runs import measuring
from runs.lossless import DecoderPair
from runs.reader import find_runs, read_record, read_samples
from runs.record import part_path, part_paths, samples_path
from runs.writer import LogWriter
from self_speculation import distribution
from tests.conftest import ANGULAR, GREEDY, ROOT, SPECULATIVE, SWEEP_GRID, SWEEP_PLANS, timeless
from tests.ranked import Torchrun, scripts_in_ranks

SAMPLED = ["--sample", "true", "--top_p", "0.95", "--max_steps", "16"]
KINDS = {
    "greedy, pruned": [*GREEDY, *SPECULATIVE, "--exit_layer", "5", *ANGULAR],
    "sampled": [*SAMPLED, *SPECULATIVE, "--exit_layer", "2"],
    "autoregressive": GREEDY,
}


# Flags of sweep.py that make three points.
SMALL_GRID = [*SWEEP_GRID, "--num_speculations_last", "1"]


def run_of(folder):
    """Return the record and samples of the only run in a folder, which holds its two files."""
    (path,) = find_runs(folder)
    assert {file.name for file in folder.iterdir()} == {path.name, samples_path(path).name}
    lines = [json.loads(line) for line in samples_path(path).read_text().splitlines()]
    return read_record(path), lines


def said(folder):
    """Return all that a run's files say, apart from clocks and the number of processes."""
    record, lines = run_of(folder)
    values = timeless(record.to_dict())
    del values["runtime"]["ranks"], values["timed"]
    return values, [timeless(line) | {"ranks": None, "threads": None} for line in lines]


@pytest.mark.parametrize(
    ("kind", "prompts"), [*((kind, 5) for kind in KINDS), ("autoregressive", 2)]
)
def test_any_number_of_processes_says_the_same(words, tmp_path, monkeypatch, capsys, kind, prompts):
    assert run_script(benchmark.main, words(*KINDS[kind], folder="1", prompts=prompts)) == 0
    for count in (2, 3):
        capsys.readouterr()
        flags = words(*KINDS[kind], folder=str(count), prompts=prompts)
        assert scripts_in_ranks(monkeypatch, count, benchmark.main, flags) == [0] * count
        assert f"{prompts}/{prompts}" in capsys.readouterr().err  # one bar, for all
        assert said(tmp_path / str(count)) == said(tmp_path / "1")
        record, lines = run_of(tmp_path / str(count))
        assert record.runtime["ranks"] == record.metrics["timed"]["ranks"] == count
        assert {line["ranks"] for line in lines} == {count}
        assert record.metrics["throughput"]["prompts"] == prompts


def interrupt_at(monkeypatch, stop):
    """Interrupt a rank at this example, once another one is done."""
    measured, ordinary = set(), measuring.measure_examples

    def stopped(definition, decoder, keys, encoded):
        if any(key.example == stop for key in keys):
            wait_for(lambda: measured)
            raise KeyboardInterrupt
        measured.update(keys)
        return ordinary(definition, decoder, keys, encoded)

    monkeypatch.setattr(measuring, "measure_examples", stopped)


@pytest.mark.parametrize("counts", [(3, 2, 1), (1, 2, 3)])
def test_a_run_goes_on_with_another_number_of_processes(words, tmp_path, monkeypatch, counts):
    flags = words(*KINDS["greedy, pruned"], prompts=9)
    done = {}
    for count in counts[:2]:
        with monkeypatch.context() as patch:
            interrupt_at(patch, 4)
            if done:
                patch.setattr(measurements, "measure_states", None)  # the plan stays
            codes = scripts_in_ranks(patch, count, benchmark.main, flags)
        assert codes == [EXIT_INTERRUPTED] * count
        (path,) = find_runs(tmp_path / "logs")
        samples = read_samples(path)
        assert len({sample.index for sample in samples}) == len(samples) < 9
        record = read_record(path)
        # A process may finish its example after the leading one has written this.
        assert len(done) <= record.metrics["counts"]["prompts"] <= len(samples)
        assert record.status == "interrupted"
        done = {sample.index: count for sample in samples} | done
    assert scripts_in_ranks(monkeypatch, counts[2], benchmark.main, flags) == [0] * counts[2]
    assert done.items() <= {sample.index: sample.ranks for sample in read_samples(path)}.items()
    one = words(*KINDS["greedy, pruned"], folder="one", prompts=9)
    assert run_script(benchmark.main, one) == 0
    assert said(tmp_path / "logs")[1] == said(tmp_path / "one")[1]


def test_parts_on_the_disk_of_another_machine_are_taken_in(words, tmp_path, monkeypatch):
    flags = words(*KINDS["sampled"])
    assert run_script(benchmark.main, flags) == 0
    expected = said(tmp_path / "logs")
    record, lines = run_of(tmp_path / "logs")
    (path,) = find_runs(tmp_path / "logs")
    # As if it had stopped, with an example of rank 1 out of the leading process's sight.
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"status": "running"}))
    samples_path(path).write_text(json.dumps(lines[0]) + "\n")
    ordinary = LogWriter._begin_run

    def hidden(writer, found):
        ordinary(writer, found)
        part_path(path, 1, "earlier").write_text(json.dumps(lines[3]) + "\n" + '{"index": 4, "exam')

    monkeypatch.setattr(LogWriter, "_begin_run", hidden)
    assert scripts_in_ranks(monkeypatch, 2, benchmark.main, flags) == [0, 0]
    assert {line["index"] for line in run_of(tmp_path / "logs")[1] if line["ranks"] == 2} == {
        1,
        2,
        4,
    }
    assert said(tmp_path / "logs")[1] == expected[1]


def test_every_process_calibrates_on_its_share(words, tmp_path, monkeypatch):
    measured, ordinary = [], states.read_text

    def counted(llama, layers, text):
        measured.append(tuple(text[0].tolist()))
        return ordinary(llama, layers, text)

    monkeypatch.setattr(states, "read_text", counted)
    flags = [*GREEDY, *ANGULAR, "--calibration_samples", "5"]
    assert scripts_in_ranks(monkeypatch, 3, benchmark.main, words(*flags)) == [0] * 3
    assert len(measured) == len(set(measured)) == 5
    assert run_script(benchmark.main, words(*flags, folder="one")) == 0
    # The sums, and so the plan, are equal to the last bit.
    assert run_of(tmp_path / "logs")[0].plan == run_of(tmp_path / "one")[0].plan


def test_a_complete_run_is_complete_for_all(words, tmp_path, monkeypatch, capsys):
    flags = words(*GREEDY)
    assert scripts_in_ranks(monkeypatch, 2, benchmark.main, flags) == [0, 0]
    capsys.readouterr()
    assert scripts_in_ranks(monkeypatch, 3, benchmark.main, flags) == [0, 0, 0]
    assert "is complete; another --output_dir" in capsys.readouterr().out


def ids_of_runs(folder):
    return {
        read_record(path).run_id: [sample.output_ids for sample in read_samples(path)]
        for path in find_runs(folder)
    }


def test_a_sweep_of_many_is_the_sweep_of_one(words, tmp_path, monkeypatch):
    grid = [*SMALL_GRID, "--exit_layer_last", "2", *SWEEP_PLANS]
    assert run_script(sweep.main, words(*grid, folder="one", prompts=2)) == 0
    many = words(*grid, folder="many", prompts=2)
    assert scripts_in_ranks(monkeypatch, 2, sweep.main, many) == [0, 0]
    assert ids_of_runs(tmp_path / "many") == ids_of_runs(tmp_path / "one")
    assert len(ids_of_runs(tmp_path / "one")) == 4
    assert (tmp_path / "many" / "sweep.csv").exists()


def test_a_cell_that_fails_in_one_process_stops_no_other(words, tmp_path, monkeypatch, capsys):
    ordinary = LogWriter.add

    def failing(writer, sample):
        if writer.record.exit_layer["original"] == 2 and sample.index == 1:
            raise FailedError("--output_dir: full")
        ordinary(writer, sample)

    monkeypatch.setattr(LogWriter, "add", failing)
    flags = words(*SMALL_GRID, prompts=3)
    assert scripts_in_ranks(monkeypatch, 2, sweep.main, flags) == [1, 1]
    statuses = [read_record(path).status for path in find_runs(tmp_path / "logs")]
    assert sorted(statuses) == ["complete"] * 2 + ["failed"]
    monkeypatch.setattr(LogWriter, "add", ordinary)
    assert scripts_in_ranks(monkeypatch, 3, sweep.main, flags) == [0] * 3
    assert {read_record(path).status for path in find_runs(tmp_path / "logs")} == {"complete"}
    assert not [part for path in find_runs(tmp_path / "logs") for part in part_paths(path)]


@pytest.mark.parametrize(
    "kind",
    [
        ["--sample", "false", "--max_steps", "8"],
        ["--sample", "true", "--top_k", "2", "--num_draws", "100", "--max_steps", "2"],
    ],
)
def test_correctness_of_many_is_that_of_one(words, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(distribution, "LENGTH", 1)  # rounds take most of the time of a draw
    flags = [*kind, "--exit_layer", "3", "--num_speculations", "2"]
    code = run_script(correctness.main, words(*flags, folder="one", prompts=2))
    many = words(*flags, folder="many", prompts=2)
    assert scripts_in_ranks(monkeypatch, 2, correctness.main, many) == [code] * 2
    logs = []
    for name in ("one", "many"):
        (path,) = (tmp_path / name).glob("*.json")
        assert sorted((tmp_path / name).iterdir()) == [path, samples_path(path)]
        log = json.loads(path.read_text())
        logs.append((log["summary"], log["examples"], log["status"]))
    assert logs[0] == logs[1]


def test_an_interrupted_check_keeps_what_all_have_found(words, tmp_path, monkeypatch):
    ordinary, compared = DecoderPair._compared, []

    def stopped(pair, item, *rest):
        if item.example is pair._encoded[4].example:
            wait_for(lambda: len(compared) >= 4)
            raise KeyboardInterrupt
        result = ordinary(pair, item, *rest)
        compared.append(item)
        return result

    monkeypatch.setattr(DecoderPair, "_compared", stopped)
    flags = ["--exit_layer", "3", "--num_speculations", "2", "--max_steps", "8"]
    codes = scripts_in_ranks(monkeypatch, 2, correctness.main, words(*flags, prompts=6))
    assert codes == [EXIT_INTERRUPTED] * 2
    (path,) = (tmp_path / "logs").glob("*.json")
    log = json.loads(path.read_text())
    assert log["status"] == "interrupted"
    assert {one["verdict"] for one in log["examples"]} == {"equal"}
    assert 4 <= len(log["examples"]) <= 5


def test_processes_that_see_other_files_are_told(words, monkeypatch, capsys):
    ordinary, sizes = benchmark.get_local_prompts, [5, 3]

    def differing(data, pruning, seed):
        evaluated, calibration = ordinary(data, pruning, seed)
        examples = evaluated.examples[: sizes.pop()]
        return dataclasses.replace(evaluated, examples=examples), calibration

    monkeypatch.setattr(benchmark, "get_local_prompts", differing)
    assert scripts_in_ranks(monkeypatch, 2, benchmark.main, words(*GREEDY)) == [1, 1]
    assert "processes 0 and 1 differ in data_fingerprint" in capsys.readouterr().err


def test_torchrun_runs_as_one_process_does(words, tmp_path):
    flags = KINDS["greedy, pruned"]
    started = Torchrun(tmp_path, 2, benchmark.main, words(*flags, folder="many"))
    code, out, err = started.wait()
    assert code == 0, err
    assert out.count("complete: 5 prompts") == 1
    assert "tokens/s of 2 processes" in out
    assert run_script(benchmark.main, words(*flags, folder="one")) == 0
    assert said(tmp_path / "many") == said(tmp_path / "one")


@pytest.mark.slow
def test_a_sweep_under_torchrun_is_the_sweep_of_one(words, tmp_path):
    grid = [*SWEEP_GRID, *SWEEP_PLANS]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "sweep.py", *words(*grid, folder="many", prompts=3)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("10 of 10 runs are complete") == 1
    assert run_script(sweep.main, words(*grid, folder="one", prompts=3)) == 0
    assert ids_of_runs(tmp_path / "many") == ids_of_runs(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["killed", "refused"])
def test_machines_end_a_sweep_together(words, tmp_path, lost):
    """Two launchers act as two machines; the second's process is killed, or refuses its flags."""
    flags = words(*SWEEP_GRID, "--max_steps", "200", prompts=8)
    bad = words(*SWEEP_GRID, "--model", str(tmp_path / "not here"))
    address = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{free_port()}"]
    launchers = []
    for command in (flags, flags if lost == "killed" else bad):
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        launchers.append(
            subprocess.Popen(
                [sys.executable, *launcher, *address, "sweep.py", *command],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        time.sleep(3)  # the first one keeps the store
    if lost == "killed":
        wait_for(lambda: [p for p in parts(tmp_path / "logs") if p.stat().st_size])
        children = Path(f"/proc/{launchers[1].pid}/task/{launchers[1].pid}/children")
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    began = time.monotonic()
    errors = [launcher.communicate(timeout=90)[1] for launcher in launchers]
    assert time.monotonic() - began < 60
    assert [launcher.returncode for launcher in launchers] == [1, 1]
    told = "process 1 cannot be reached any more" if lost == "killed" else "not here"
    assert "".join(errors).count("sweep.py: error") == 1
    assert told in errors[lost == "refused"]


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def test_a_killed_process_ends_the_run_and_what_was_finished_is_kept(words, tmp_path):
    flags = words(*KINDS["greedy, pruned"], "--max_steps", "100", prompts=5)
    started = Torchrun(tmp_path, 2, benchmark.main, flags)
    part, *_ = wait_for(lambda: [p for p in parts(tmp_path / "logs") if p.stat().st_size])
    os.kill(process_that_writes(part), signal.SIGKILL)
    code, _, err = started.wait(30)
    assert code != 0
    # torchrun prints a traceback of its own, without this project's code.
    assert str(ROOT / "benchmark.py") not in err
    assert err.count("benchmark.py: ") == 1
    (path,) = find_runs(tmp_path / "logs")
    done = [sample.index for sample in read_samples(path)]
    assert {1} <= set(done) < set(range(5))
    assert read_record(path).status in ("interrupted", "running")
    assert run_script(benchmark.main, flags) == 0
    kept = [sample.index for sample in read_samples(path) if sample.ranks == 2]
    assert kept == done
    assert [sample.index for sample in read_samples(path)] == list(range(5))


def parts(folder):
    return list(folder.glob("*.rank*.samples.jsonl")) if folder.exists() else []


def wait_for(look, seconds=60):
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


def process_that_writes(path):
    """Return the process that holds a file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == path:
                return int(link.parts[2])
        except OSError:
            continue
    raise AssertionError(f"nobody writes {path}")
