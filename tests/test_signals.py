"""A run that a signal ends keeps its finished examples, and the next start continues it."""

import os
import random
import signal
import time
from contextlib import suppress

import pytest

import benchmark
import sweep
from command_line.errors import EXIT_INTERRUPTED
from command_line.script import run_script
from runs.reader import find_runs, read_record, read_samples
from tests.conftest import GREEDY, SWEEP_GRID, before_example, outputs
from tests.script_starts import Starter


@pytest.fixture(autouse=True)
def _signals_as_in_a_terminal():
    """Handle SIGINT even if pytest is a background job, which a shell starts with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_in_order_and_the_run_goes_on(
    words, tmp_path, monkeypatch, capsys, sent
):
    with monkeypatch.context() as patch:
        before_example(patch, 2, lambda: os.kill(os.getpid(), sent))
        assert run_script(benchmark.main, words(*GREEDY, prompts=3)) == EXIT_INTERRUPTED
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    (path,) = find_runs(tmp_path / "logs")
    assert read_record(path).status == "interrupted"
    assert len(read_samples(path)) == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run_script(benchmark.main, words(*GREEDY, prompts=3)) == 0
    assert run_script(benchmark.main, words(*GREEDY, prompts=3, folder="whole")) == 0
    assert outputs(tmp_path / "logs") == outputs(tmp_path / "whole")


def test_an_echo_of_a_signal_breaks_no_cleaning_up(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")  # as under torchrun, which sends the echo
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


def test_an_ignored_signal_stays_ignored():
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
    logs, draws = tmp_path / "logs", random.Random(kills)
    prompts = 2 + kills // 2
    flags = words(*SWEEP_GRID, prompts=prompts)
    with Starter(dict(os.environ)) as starter:
        for _ in range(kills):
            before = size_of(logs)
            process, deadline = starter.begin("sweep", *flags), time.monotonic() + 60
            # Most moments fall into decoding, and some into loading.
            while size_of(logs) == before and is_alive(process):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(draws.uniform(0, 0.1))
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            assert starter.end()[0] in (0, -signal.SIGKILL)
            for samples in outputs(logs).values():
                indices = [one["index"] for one in samples]
                assert indices == sorted(set(indices))
    kept = outputs(logs)
    assert run_script(sweep.main, flags) == 0
    assert run_script(sweep.main, words(*SWEEP_GRID, folder="whole", prompts=prompts)) == 0
    assert outputs(logs) == outputs(tmp_path / "whole")
    assert all(samples == outputs(logs)[name][: len(samples)] for name, samples in kept.items())
    assert not list(logs.glob("*.partial"))


def size_of(folder):
    return sum(path.stat().st_size for path in folder.glob("*.jsonl")) if folder.exists() else 0


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
