"""Whatever breaks, what was finished is kept, the log can be read, and a next start goes on."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ANGULAR, GREEDY, SPECULATIVE, SWEEP_GRID
from test_resume import timeless

import benchmark
import experiment
import log_files
import sweep
from command_line import EXIT_INTERRUPTED, run_script
from run_log import find_runs, read_record, read_samples, samples_path

ROOT = Path(__file__).parent.parent
SPOKEN = [*GREEDY, *ANGULAR, *SPECULATIVE, "--exit_layer", "5"]


@pytest.fixture
def words(checkpoint, rows, tmp_path):
    """Flags of a script on a few prompts, with a folder of its own."""

    def make(*flags, folder="logs", prompts=3):
        common = ["--model", str(checkpoint), "--dtype", "float64", "--dataset", "custom_jsonl"]
        data = ["--data_path", str(rows), "--num_samples", str(prompts)]
        return [*common, *data, "--output_dir", str(tmp_path / folder), *flags]

    return make


def outputs(folder):
    """Of every run in a folder its samples, without times."""
    return {
        read_record(path).run_id: [timeless(vars(one)) for one in read_samples(path)]
        for path in find_runs(folder)
    }


class FaultyDisk:
    """Fails at one of the operations that write in a folder; a write fails half done."""

    def __init__(self, monkeypatch, folder, fails_at=None):
        self.operations, self._folder, self._fails_at = 0, folder, fails_at
        ordinary_open, ordinary_replace, ordinary_sync = Path.open, Path.replace, os.fsync

        def opened(path, mode="r", *rest, **named):
            file = ordinary_open(path, mode, *rest, **named)
            return FaultyFile(file, self) if self._watches(path) and mode != "r" else file

        def replaced(path, target):
            if self._watches(path):
                self.operate()
            return ordinary_replace(path, target)

        def synced(descriptor):
            self.operate()
            ordinary_sync(descriptor)

        monkeypatch.setattr(Path, "open", opened)
        monkeypatch.setattr(Path, "replace", replaced)
        monkeypatch.setattr(log_files.os, "fsync", synced)

    def operate(self):
        self.operations += 1
        if self.operations == self._fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _watches(self, path):
        return path.is_relative_to(self._folder) and not path.name.endswith(".lock")


class FaultyFile:
    def __init__(self, file, disk):
        self._file, self._disk = file, disk

    def write(self, content):
        try:
            self._disk.operate()
        except OSError:
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            raise
        return self._file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_any_write_may_fail_once(words, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        disk = FaultyDisk(patch, tmp_path / "whole")
        assert run_script(benchmark.main, words(*SPOKEN, folder="whole")) == 0
    expected = outputs(tmp_path / "whole")
    assert disk.operations >= 9  # the run's file twice, three operations each, and three samples
    for fails_at in range(1, disk.operations + 1):
        folder = tmp_path / f"fails at {fails_at}"
        flags = words(*SPOKEN, folder=folder.name)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            FaultyDisk(patch, folder, fails_at)
            assert run_script(benchmark.main, flags) in (1, 2)
        errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(errors) == 1
        assert "--output_dir" in errors[0]
        assert "No space left on device" in errors[0]
        before = {name: samples for name, samples in outputs(folder).items() if samples}
        assert all(samples == expected[name][: len(samples)] for name, samples in before.items())
        assert run_script(benchmark.main, flags) == 0
        assert outputs(folder) == expected
        (path,) = find_runs(folder)
        assert samples_path(path).read_bytes().count(b"\n") == 3
        assert read_record(path).status == "complete"


@pytest.mark.parametrize("gone", ["samples", "folder"])
def test_what_is_removed_during_a_run_is_written_again(words, tmp_path, monkeypatch, capsys, gone):
    ordinary, folder = experiment.measure_example, tmp_path / "logs"

    def removing(cell, generator, index, item):
        if index == 2 and gone == "folder":
            shutil.rmtree(folder)
        if index == 2 and gone == "samples":
            samples_path(*find_runs(folder)).unlink()
        return ordinary(cell, generator, index, item)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "measure_example", removing)
        assert run_script(benchmark.main, words(*GREEDY, prompts=5)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "was removed during the run; what was finished is written again" in line
    (path,) = find_runs(folder)
    assert read_record(path).status == "failed"
    assert len(read_samples(path)) == 3
    assert run_script(benchmark.main, words(*GREEDY, prompts=5)) == 0
    assert run_script(benchmark.main, words(*GREEDY, folder="whole", prompts=5)) == 0
    assert outputs(folder) == outputs(tmp_path / "whole")


def test_a_folder_that_is_removed_and_cannot_be_made_again_is_one_line(
    words, tmp_path, monkeypatch, capsys
):
    ordinary, folder = experiment.measure_example, tmp_path / "logs"

    def replaced_by_a_file(cell, generator, index, item):
        if index == 1:
            shutil.rmtree(folder)
            folder.write_text("")
        return ordinary(cell, generator, index, item)

    monkeypatch.setattr(experiment, "measure_example", replaced_by_a_file)
    assert run_script(benchmark.main, words(*GREEDY)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "--output_dir" in line


def out_of_memory(kind):
    return {
        "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        "python": MemoryError(),
    }[kind]


@pytest.fixture
def short_of_memory(monkeypatch):
    """Makes decoding of every prompt of this length run out of memory."""
    ordinary = experiment.TextGenerator.generate

    def make(kind, length):
        def generate(generator, prompt_ids, *rest, **named):
            if len(prompt_ids) == length and "max_steps" not in named:
                raise out_of_memory(kind)
            return ordinary(generator, prompt_ids, *rest, **named)

        monkeypatch.setattr(experiment.TextGenerator, "generate", generate)

    return make


@pytest.mark.parametrize("kind", ["cuda", "cpu", "python"])
def test_an_example_without_memory_is_told_of_and_stops_no_other(
    words, short_of_memory, tmp_path, capsys, kind
):
    # The rows are numbered 0 to 11: the last two are one character longer.
    short_of_memory(kind, len("number 10:"))
    flags = words(*GREEDY, "--random_shuffle", "false", prompts=12)
    assert run_script(benchmark.main, flags) == 1
    assert (
        "complete: 12 prompts, 160 tokens; 2 FAILED for want of memory" in capsys.readouterr().out
    )
    (path,) = find_runs(tmp_path / "logs")
    samples, record = read_samples(path), read_record(path)
    assert [one.index for one in samples if one.status == "out_of_memory"] == [10, 11]
    assert [one.prompt_tokens for one in samples[10:]] == [10, 10]
    assert record.metrics["counts"]["failed_prompts"] == 2
    assert record.metrics["counts"]["skipped_prompts"] == 0
    # The run is over; its exit code goes on saying that it lacks something.
    assert run_script(benchmark.main, flags) == 1


def test_want_of_memory_elsewhere_is_one_line(words, monkeypatch, capsys):
    def load(*_):
        raise out_of_memory("cuda")

    monkeypatch.setattr(experiment, "load_model", load)
    assert run_script(benchmark.main, words(*GREEDY)) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("error: out of memory (CUDA out of memory. Tried to allocate 20 GiB)")
    )


def test_other_errors_are_not_taken_for_want_of_memory(words, monkeypatch):
    def fails(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(experiment, "_decode", fails)
    with pytest.raises(RuntimeError, match="something else"):
        run_script(benchmark.main, words(*GREEDY))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_in_order(words, tmp_path, monkeypatch, capsys, sent):
    ordinary = experiment.measure_example

    def interrupted(cell, generator, index, item):
        if index == 2:
            os.kill(os.getpid(), sent)
        return ordinary(cell, generator, index, item)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "measure_example", interrupted)
        assert run_script(benchmark.main, words(*GREEDY, prompts=5)) == EXIT_INTERRUPTED
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    (path,) = find_runs(tmp_path / "logs")
    assert read_record(path).status == "interrupted"
    assert len(read_samples(path)) == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_echo_of_a_signal_breaks_no_cleaning_up():
    cleaned = []

    def main(_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            cleaned.append(True)

    assert run_script(main) == EXIT_INTERRUPTED
    assert cleaned


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_sweep_killed_at_random_moments_ends_as_an_unbroken_one(words, tmp_path, kills):
    grid = [*SWEEP_GRID, "--prune_methods", "base", "random", "--dropout_thresholds", "0.2"]
    draws, killed = random.Random(kills), 0
    flags = words(*grid, prompts=4)
    while killed < kills:
        started = subprocess.Popen(
            [sys.executable, "sweep.py", *flags],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # as in the tests themselves
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Most of the moments fall into decoding, and some into loading.
        before = progress_of(tmp_path / "logs")
        while started.poll() is None and progress_of(tmp_path / "logs") == before:
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 0.3))
        started.kill()
        started.wait(timeout=60)
        killed += 1
        for samples in outputs(tmp_path / "logs").values():
            indices = [one["index"] for one in samples]
            assert indices == sorted(set(indices))
    kept = outputs(tmp_path / "logs")
    assert run_script(sweep.main, flags) == 0
    assert run_script(sweep.main, words(*grid, folder="whole", prompts=4)) == 0
    found, whole = outputs(tmp_path / "logs"), outputs(tmp_path / "whole")
    assert found.keys() == whole.keys()
    for name, samples in found.items():
        for one, other in zip(samples, whole[name], strict=True):
            assert one == other
    assert all(samples == found[name][: len(samples)] for name, samples in kept.items())
    assert not list((tmp_path / "logs").glob("*.partial"))


def progress_of(folder):
    return sum(path.stat().st_size for path in folder.glob("*.jsonl")) if folder.exists() else 0
