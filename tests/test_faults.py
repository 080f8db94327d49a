"""If a write fails or a file disappears, finished examples stay, and the next start continues."""

import errno
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

import benchmark
import correctness
from command_line.errors import FailedError
from command_line.script import run_script
from files import writing
from runs import measuring
from runs.reader import find_runs, read_record, read_samples
from runs.record import samples_path
from runs.writer import LogWriter
from tests.conftest import GREEDY, before_example, outputs
from tests.ranked import in_ranks, scripts_in_ranks
from tests.runs.test_record import record, sample


class FaultyDisk:
    """A disk that fails at one operation in a folder, and stores half of a write that fails."""

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
    flags = [*GREEDY, "--max_steps", "4"]
    with monkeypatch.context() as patch:
        disk = FaultyDisk(patch, tmp_path / "whole")
        assert run_script(benchmark.main, words(*flags, folder="whole", prompts=2)) == 0
    expected = outputs(tmp_path / "whole")
    assert disk.operations >= 8  # three to write the run's file, which happens twice, and samples
    for fails_at in range(1, disk.operations + 1):
        folder = tmp_path / f"fails at {fails_at}"
        command = words(*flags, folder=folder.name, prompts=2)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            FaultyDisk(patch, folder, fails_at)
            assert run_script(benchmark.main, command) in (1, 2)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert "--output_dir" in line
        assert "No space left on device" in line
        before = {name: samples for name, samples in outputs(folder).items() if samples}
        assert all(samples == expected[name][: len(samples)] for name, samples in before.items())
        assert run_script(benchmark.main, command) == 0
        assert outputs(folder) == expected
        (path,) = find_runs(folder)
        assert samples_path(path).read_bytes().count(b"\n") == 2
        assert read_record(path).status == "complete"


def test_any_write_of_two_processes_may_fail_once(words, tmp_path, monkeypatch, capsys):
    flags = [*GREEDY, "--max_steps", "4"]
    assert run_script(benchmark.main, words(*flags, folder="whole", prompts=2)) == 0
    (expected,) = said(tmp_path / "whole")
    # Writes, in any order: the run's file, two samples, the merged samples, the run's file again.
    for fails_at in (1, 3, 4, 5, 6, 8):
        folder = tmp_path / f"fails at {fails_at}"
        command = words(*flags, folder=folder.name, prompts=2)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            FaultyDisk(patch, folder, fails_at)
            assert set(scripts_in_ranks(patch, 2, benchmark.main, command)) <= {1, 2}
        assert capsys.readouterr().err.count("error: --output_dir") == 1
        kept = said(folder)
        assert scripts_in_ranks(monkeypatch, 2, benchmark.main, command) == [0, 0]
        assert said(folder) == [expected]
        assert all(one in expected for samples in kept for one in samples)
        (path,) = find_runs(folder)
        assert sorted(folder.iterdir()) == sorted([path, samples_path(path)])


def said(folder):
    """Return index and output of every sample, per run in a folder."""
    return [
        [(sample.index, sample.output_ids) for sample in read_samples(path)]
        for path in find_runs(folder)
    ]


@pytest.mark.parametrize("notices", [2, 3])
def test_a_folder_removed_under_two_processes_is_written_again_by_both(
    words, tmp_path, monkeypatch, capsys, notices
):
    """The leading process has examples 0, 2 and 4, the other 1, 3 and 5."""
    ordinary, folder = measuring.measure_examples, tmp_path / "logs"
    begun, removed = threading.Barrier(2), threading.Event()

    def removing(definition, decoder, keys, encoded):
        (key,) = keys
        if key.example in (2, 3):
            begun.wait(timeout=30)  # both have added an example
            if key.example == notices:
                shutil.rmtree(folder)
                removed.set()
            else:
                assert removed.wait(timeout=30)
                time.sleep(0.5)  # so that the other process notices first
        return ordinary(definition, decoder, keys, encoded)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure_examples", removing)
        codes = scripts_in_ranks(patch, 2, benchmark.main, words(*GREEDY, prompts=6))
    assert codes == [1, 1]
    assert "was removed during the run; what was finished is written" in capsys.readouterr().err
    (kept,) = said(folder)
    assert {0, 1, notices} <= {index for index, _ in kept}
    assert scripts_in_ranks(monkeypatch, 2, benchmark.main, words(*GREEDY, prompts=6)) == [0, 0]
    assert run_script(benchmark.main, words(*GREEDY, folder="whole", prompts=6)) == 0
    assert said(folder) == said(tmp_path / "whole")


def begin(folder, store=None):
    """Begin a run in two processes; return their writers."""
    writers = {}

    def work(ranks):
        with ranks.together():
            writers[ranks.rank] = LogWriter(str(folder), record(), ranks)

    assert in_ranks(2, work, store) == [None, None]
    return writers


def test_a_process_of_an_earlier_start_spoils_nothing(tmp_path):
    """Its leading process was killed, a new start began, and it still writes for a while."""
    old = begin(tmp_path)
    old[0].add(sample(0))
    old[1].add(sample(1))
    old[0].close()
    new = begin(tmp_path)
    assert new[0].done == new[1].done == {(0, 0), (0, 1)}
    new[1].add(sample(3))
    with pytest.raises(FailedError, match="was removed during the run"):
        old[1].add(sample(5))
    new[1].add(sample(7))
    new[0].add(sample(2))
    assert {0, 1, 2, 3, 7} <= {one.index for one in read_samples(new[0].path)}
    for writer in (old[1], *new.values()):
        writer.close()


def test_a_torn_line_in_a_part_costs_only_its_own_example(tmp_path, monkeypatch):
    """The part lies on another machine's disk, where the leading process does not see it."""
    first = begin(tmp_path)
    first[1].add(sample(1))
    with first[1]._file.path.open("a") as file:
        file.write('{"index": 3, "exam')
    for writer in first.values():
        writer.close()
    part = first[1]._file.path
    text = part.read_text()
    part.unlink()
    ordinary = LogWriter._begin_run

    def hidden(writer, found):
        ordinary(writer, found)
        part.write_text(text)

    monkeypatch.setattr(LogWriter, "_begin_run", hidden)
    second = begin(tmp_path)
    assert second[0].done == {(0, 1)}
    second[1].add(sample(3))
    second[1].add(sample(5))
    assert [one.index for one in read_samples(second[0].path)] == [1, 3, 5]
    for writer in second.values():
        writer.close()


@pytest.mark.parametrize("gone", ["samples", "folder"])
def test_files_removed_during_a_run_are_written_again(words, tmp_path, monkeypatch, capsys, gone):
    folder = tmp_path / "logs"
    remove = {
        "folder": lambda: shutil.rmtree(folder),
        "samples": lambda: samples_path(*find_runs(folder)).unlink(),
    }
    with monkeypatch.context() as patch:
        before_example(patch, 2, remove[gone])
        assert run_script(benchmark.main, words(*GREEDY, prompts=4)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "was removed during the run; what was finished is written again" in line
    (path,) = find_runs(folder)
    assert read_record(path).status == "failed"
    assert len(read_samples(path)) == 3
    assert run_script(benchmark.main, words(*GREEDY, prompts=4)) == 0
    assert run_script(benchmark.main, words(*GREEDY, folder="whole", prompts=4)) == 0
    assert outputs(folder) == outputs(tmp_path / "whole")


def test_a_folder_that_is_removed_and_cannot_be_made_again_is_one_line(
    words, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "logs"

    def replace_by_a_file():
        shutil.rmtree(folder)
        folder.touch()

    before_example(monkeypatch, 1, replace_by_a_file)
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
