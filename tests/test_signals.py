"""A run that a signal ends, or that is killed, keeps what was finished, and goes on."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import benchmark
import sweep
from command_line.errors import EXIT_INTERRUPTED
from command_line.script import run_script
from runs import measuring
from runs.reader import find_runs, read_record, read_samples
from tests.conftest import GREEDY, SWEEP_GRID, outputs

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _signals_as_in_a_terminal():
    """A job in the background is started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_in_order(words, tmp_path, monkeypatch, capsys, sent):
    ordinary = measuring.measure_example

    def interrupted(cell, generator, index, item):
        if index == 2:
            os.kill(os.getpid(), sent)
        return ordinary(cell, generator, index, item)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure_example", interrupted)
        assert run_script(benchmark.main, words(*GREEDY, prompts=5)) == EXIT_INTERRUPTED
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    (path,) = find_runs(tmp_path / "logs")
    assert read_record(path).status == "interrupted"
    assert len(read_samples(path)) == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_echo_of_a_signal_breaks_no_cleaning_up(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")  # as torchrun does, which sends the echo
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


def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def main(_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return 0

    assert run_script(main) == 0
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_without_torchrun_every_ctrl_c_counts(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    counted = []

    def main(_):
        for _ in range(3):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            except KeyboardInterrupt:
                counted.append(True)
        return 0

    assert run_script(main) == 0
    assert len(counted) == 3


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
