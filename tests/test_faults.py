"""Whatever write fails or is undone, what was finished is kept, and a next start goes on."""

import errno
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed

import benchmark
import correctness
from command_line.errors import FailedError
from command_line.script import run_script
from files import writing
from runs import measuring
from runs.reader import find_runs, read_record, read_samples
from runs.record import samples_path
from runs.writer import LogWriter, RunWriter
from tests.conftest import ANGULAR, GREEDY, SPECULATIVE, outputs
from tests.ranked import in_ranks, scripts_in_ranks
from tests.runs.test_record import record, sample

SPOKEN = [*GREEDY, *ANGULAR, *SPECULATIVE, "--exit_layer", "5"]


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
        monkeypatch.setattr(writing.os, "fsync", synced)

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
        assert run_script(benchmark.main, words(*SPOKEN, folder="whole", prompts=3)) == 0
    expected = outputs(tmp_path / "whole")
    assert disk.operations >= 9  # the run's file twice, three operations each, and three samples
    for fails_at in range(1, disk.operations + 1):
        folder = tmp_path / f"fails at {fails_at}"
        flags = words(*SPOKEN, folder=folder.name, prompts=3)
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


def test_any_write_of_two_processes_may_fail_once(words, tmp_path, monkeypatch, capsys):
    flags = words(*GREEDY, folder="whole", prompts=4)
    assert run_script(benchmark.main, flags) == 0
    (expected,) = said(tmp_path / "whole")
    for fails_at in range(1, 12):
        folder = tmp_path / f"fails at {fails_at}"
        flags = words(*GREEDY, folder=folder.name, prompts=4)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            FaultyDisk(patch, folder, fails_at)
            assert set(scripts_in_ranks(patch, 2, benchmark.main, flags)) <= {1, 2}
        assert capsys.readouterr().err.count("error: --output_dir") == 1
        kept = said(folder)
        assert scripts_in_ranks(monkeypatch, 2, benchmark.main, flags) == [0, 0]
        assert said(folder) == [expected]
        assert all(one in expected for samples in kept for one in samples)
        (path,) = find_runs(folder)
        assert sorted(folder.iterdir()) == sorted([path, samples_path(path)])


def said(folder):
    """The outputs of every run in a folder, by index."""
    return [
        [(sample.index, sample.output_ids) for sample in read_samples(path)]
        for path in find_runs(folder)
    ]


@pytest.mark.parametrize("notices", [2, 3])
def test_a_folder_removed_under_two_processes_is_written_again_by_both(
    words, tmp_path, monkeypatch, capsys, notices
):
    """The leading one does examples 0, 2 and 4, the other 1, 3 and 5."""
    ordinary, folder = measuring.measure_example, tmp_path / "logs"
    finished = threading.Semaphore(0)

    def removing(cell, generator, index, item):
        if index == notices:
            assert finished.acquire(timeout=30) and finished.acquire(timeout=30)
            time.sleep(0.3)
            shutil.rmtree(folder)
        elif index > 1:
            time.sleep(1)  # so that the other one notices first
        finished.release()
        return ordinary(cell, generator, index, item)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure_example", removing)
        codes = scripts_in_ranks(patch, 2, benchmark.main, words(*GREEDY, prompts=6))
    assert codes == [1, 1]
    assert "was removed during the run; what was finished is written" in capsys.readouterr().err
    (kept,) = said(folder)
    assert {0, 1, notices} <= {index for index, _ in kept}
    assert scripts_in_ranks(monkeypatch, 2, benchmark.main, words(*GREEDY, prompts=6)) == [0, 0]
    assert run_script(benchmark.main, words(*GREEDY, folder="whole", prompts=6)) == 0
    assert said(folder) == said(tmp_path / "whole")


def test_a_process_of_an_earlier_start_spoils_nothing(tmp_path):
    """One that goes on for a while after its leading one was killed, and a new start began."""
    store, old, new = torch.distributed.HashStore(), {}, {}

    def begin(writers, store):
        def work(ranks):
            with ranks.together():
                writers[ranks.rank] = RunWriter(str(tmp_path), record(), ranks)

        assert in_ranks(2, work, store) == [None, None]

    begin(old, store)
    old[0].add(sample(0))
    old[1].add(sample(1))
    old[0].close()
    begin(new, torch.distributed.HashStore())
    assert new[0].done == new[1].done == {0, 1}
    new[1].add(sample(3))
    with pytest.raises(FailedError, match="was removed during the run"):
        old[1].add(sample(5))
    new[1].add(sample(7))
    new[0].add(sample(2))
    assert {0, 1, 2, 3, 7} <= {one.index for one in read_samples(new[0].path)}
    for writer in (old[1], *new.values()):
        writer.close()


def test_a_torn_line_in_a_part_costs_only_its_own_example(tmp_path, monkeypatch):
    """On another machine's disk, where the leading process does not see it."""

    def begin(store=None):
        writers = {}

        def work(ranks):
            with ranks.together():
                writers[ranks.rank] = RunWriter(str(tmp_path), record(), ranks)

        assert in_ranks(2, work, store or torch.distributed.HashStore()) == [None, None]
        return writers

    first = begin()
    first[1].add(sample(1))
    with first[1]._file.path.open("a") as file:
        file.write('{"index": 3, "exam')
    for writer in first.values():
        writer.close()
    part = first[1]._file.path
    text = part.read_text()
    part.unlink()
    ordinary = RunWriter._begin_run

    def hidden(writer, found):
        ordinary(writer, found)
        part.write_text(text)

    monkeypatch.setattr(RunWriter, "_begin_run", hidden)
    second = begin()
    assert second[0].done == {1}
    second[1].add(sample(3))
    second[1].add(sample(5))
    assert [one.index for one in read_samples(second[0].path)] == [1, 3, 5]
    for writer in second.values():
        writer.close()


@pytest.mark.parametrize("gone", ["samples", "folder"])
def test_what_is_removed_during_a_run_is_written_again(words, tmp_path, monkeypatch, capsys, gone):
    ordinary, folder = measuring.measure_example, tmp_path / "logs"

    def removing(cell, generator, index, item):
        if index == 2 and gone == "folder":
            shutil.rmtree(folder)
        if index == 2 and gone == "samples":
            samples_path(*find_runs(folder)).unlink()
        return ordinary(cell, generator, index, item)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure_example", removing)
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
    ordinary, folder = measuring.measure_example, tmp_path / "logs"

    def replaced_by_a_file(cell, generator, index, item):
        if index == 1:
            shutil.rmtree(folder)
            folder.write_text("")
        return ordinary(cell, generator, index, item)

    monkeypatch.setattr(measuring, "measure_example", replaced_by_a_file)
    assert run_script(benchmark.main, words(*GREEDY)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "--output_dir" in line


def test_a_folder_removed_under_a_check_is_written_again(words, tmp_path, monkeypatch, capsys):
    ordinary, folder = LogWriter.add, tmp_path / "logs"

    def removing(log, verdict):
        if verdict.index == 2:
            shutil.rmtree(folder)
        ordinary(log, verdict)

    monkeypatch.setattr(LogWriter, "add", removing)
    spoken = ["--exit_layer", "3", "--num_speculations", "2", "--max_steps", "8"]
    assert run_script(correctness.main, words(*spoken, prompts=4)) == 1
    assert "was removed during the run; what was finished is written" in capsys.readouterr().err
    (path,) = folder.glob("*.json")
    assert len(json.loads(path.read_text())["examples"]) == 3
