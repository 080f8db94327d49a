"""A log is one valid JSON object at every moment, and reads back as it was written."""

import json
import subprocess

import pytest

from command_line.errors import FailedError, UsageError
from files import writing
from files.commit import current_commit
from runs.reader import find_runs, read_record, read_samples
from runs.record import RunRecord, SampleRecord, samples_path
from runs.writer import LogWriter


def record(**changes):
    values = {
        "identity": {"model": "tiny", "seed": 1},
        "command": "benchmark.py",
        "arguments": {},
        "model": {"name": "tiny"},
        "plan": {"method": "base"},
        "exit_layer": {"original": None, "kept": None},
        "runtime": {"device": "cpu"},
    }
    return RunRecord(**values | changes)


def sample(index):
    return SampleRecord(index, f"x{index}", 3, "ünï", prediction="日本", output_ids=[1, 2])


def test_a_run_reads_back(tmp_path):
    writer = LogWriter(str(tmp_path / "logs"), record())
    for index in range(3):
        writer.add(sample(index))
    writer.finish("complete", {"counts": {"prompts": 3}, "total_time": {"mean": None}})
    (path,) = find_runs(tmp_path)
    assert path == writer.path
    found, samples = read_record(path), read_samples(path)
    assert found == writer.record
    assert found.metrics["total_time"] == {"mean": None}
    assert samples == [sample(index) for index in range(3)]
    assert json.loads(path.read_text())["run_id"] == found.run_id


@pytest.fixture
def full_disk(monkeypatch):
    """Fills the disk when called."""

    def full(_):
        raise OSError(28, "No space left on device")

    return lambda: monkeypatch.setattr(writing.os, "fsync", full)


def test_the_file_is_valid_before_the_run_is_over(tmp_path, full_disk):
    """However the run ends."""
    writer = LogWriter(str(tmp_path), record())
    writer.add(sample(0))

    def is_running():
        names = {writer.path.name, samples_path(writer.path).name}
        assert {path.name for path in tmp_path.iterdir()} == names
        assert read_samples(writer.path) == [sample(0)]
        return read_record(writer.path).status == "running"

    assert is_running()
    with pytest.raises(ValueError, match="not JSON compliant"):
        writer.finish("complete", {"value": float("nan")})
    assert is_running()
    full_disk()
    with pytest.raises(FailedError, match="No space left on device.; what was finished before is"):
        writer.finish("complete", {})
    assert is_running()


def test_runs_are_found_oldest_first_whatever_their_folder(tmp_path):
    for name in ("b/benchmark_1_x.json", "a/benchmark_2_x.json", "benchmark_3_x.samples.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [path.name for path in find_runs(tmp_path)] == [
        "benchmark_1_x.json",
        "benchmark_2_x.json",
    ]


def test_the_run_id_names_what_defines_a_run():
    assert record().run_id == record(command="other", started="now").run_id
    assert record().run_id == record(identity={"seed": 1, "model": "tiny"}).run_id
    assert record().run_id != record(identity={"seed": 2, "model": "tiny"}).run_id


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path, full_disk):
    with pytest.raises(ValueError, match="not JSON compliant"):
        LogWriter(str(tmp_path), record(plan={"distance": float("nan")}))
    full_disk()
    with pytest.raises(UsageError, match="cannot be written .No space left on device"):
        LogWriter(str(tmp_path), record())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--output_dir .*/file/logs: cannot be written"):
        LogWriter(str(tmp_path / "file" / "logs"), record())


def test_other_schemas_are_refused(tmp_path):
    path = tmp_path / "benchmark_1_x.json"
    for text in ['{"schema_version": 99}', "[]", "{}"]:
        path.write_text(text)
        with pytest.raises(ValueError, match="has schema version"):
            read_record(path)


def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    def git(*command):
        subprocess.run(["git", "-C", tmp_path, *command], check=True, capture_output=True)

    monkeypatch.setattr("files.commit.__file__", str(tmp_path / "commit.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert current_commit() is None
    git("init", "-q")
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    git(*author, "commit", "-q", "--allow-empty", "-m", "first")
    clean = current_commit()
    assert len(clean) == 40
    (tmp_path / "new.py").write_text("")
    assert current_commit() == clean + "+changes"
