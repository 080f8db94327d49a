"""A run that is killed at any moment goes on, and ends as if it had never been."""

import json
import shutil

import pytest
from filelock import FileLock

import benchmark
from command_line.errors import EXIT_BUSY, EXIT_INTERRUPTED
from command_line.script import run_script
from pruning import measurements
from runs import experiment, measuring
from runs.reader import find_runs, read_record, read_samples
from runs.record import samples_path
from runs.writer import LogWriter, lock_name
from tests.conftest import ANGULAR, GREEDY, SPECULATIVE, before_example, timeless, write


class Killed(BaseException):
    """Ends a run as SIGKILL does: its writer is muted, and no handler knows the error."""


@pytest.fixture(scope="module")
def words(checkpoint, tmp_path_factory):
    """The flags of a run of five prompts."""
    rows = [{"prompt": f"number {i}:", "response": f"item {i}"} for i in range(12)]
    path = write(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)
    data = ["--dataset", "custom_jsonl", "--data_path", str(path), "--num_samples", "5"]
    spoken = [*GREEDY, *ANGULAR, *SPECULATIVE, "--exit_layer", "5"]
    return ["--model", str(checkpoint), "--dtype", "float64", *data, *spoken]


@pytest.fixture
def start(words, tmp_path):
    def run(*flags, folder="logs"):
        where = ["--output_dir", str(tmp_path / folder)]
        return run_script(benchmark.main, [*words, *where, *flags])

    return run


def log(folder):
    """The one run in a folder and its samples, without times."""
    (path,) = find_runs(folder)
    names = {path.name, samples_path(path).name}
    assert {found.name for found in folder.iterdir()} == names
    lines = samples_path(path).read_text().splitlines()
    return timeless(json.loads(path.read_text())), [timeless(json.loads(line)) for line in lines]


@pytest.fixture(scope="module")
def unbroken(words, tmp_path_factory):
    """The log of the run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("unbroken") / "logs"
    assert run_script(benchmark.main, [*words, "--output_dir", str(folder)]) == 0
    return log(folder)


@pytest.fixture(scope="module")
def begun(words, tmp_path_factory):
    """The folder of a run that was killed in its third and its fourth example."""
    folder = tmp_path_factory.mktemp("begun") / "logs"

    def kill():
        raise Killed

    for killed_at in (2, 3):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(LogWriter, "finish", lambda self, *_: self.close())
            before_example(patch, killed_at, kill)
            run_script(benchmark.main, [*words, "--output_dir", str(folder)])
    return folder


@pytest.fixture
def killed_twice(begun, tmp_path):
    """A copy of the killed run."""
    (path,) = find_runs(shutil.copytree(begun, tmp_path / "logs"))
    assert read_record(path).status == "running"
    assert len(read_samples(path)) == 3
    return path


def test_a_run_killed_twice_ends_as_an_unbroken_one(
    start, killed_twice, unbroken, tmp_path, monkeypatch, capsys
):
    plan = read_record(killed_twice).plan
    with monkeypatch.context() as patch:
        patch.setattr(measurements, "measure_states", None)  # its plan is kept
        assert start() == 0
    assert f"{killed_twice.name} goes on: 3 of 5 prompts are done" in capsys.readouterr().out
    assert log(tmp_path / "logs") == unbroken
    record = read_record(killed_twice)
    assert record.plan == plan
    assert len(record.resumed) == 2
    assert record.resumed[0]["runtime"] == record.runtime
    assert [sample.index for sample in read_samples(killed_twice)] == [0, 1, 2, 3, 4]


def test_a_complete_run_is_not_run_again_but_saves_its_model(
    start, unbroken, tmp_path, monkeypatch, capsys
):
    assert start() == 0
    before = {path: path.read_bytes() for path in (tmp_path / "logs").iterdir()}
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "load_model", None)
        assert start() == 0
    out = capsys.readouterr().out
    assert "is complete; another --output_dir runs it again" in out
    assert "tokens/s" in out
    assert {path: path.read_bytes() for path in (tmp_path / "logs").iterdir()} == before
    save = ["--save_pruned", str(tmp_path / "pruned")]
    for _ in range(2):
        assert start(*save) == 0
        assert (tmp_path / "pruned" / "prune_plan.json").is_file()
        assert log(tmp_path / "logs") == unbroken
    other = ["--prune_n", "3", "--exit_layer", "4"]
    assert start(*other) == 0
    assert start(*other, *save) == 2  # the folder holds another model


@pytest.mark.parametrize("torn", ['{"index": 3, "example_id": "li', "\0\0\0", '{"index": 3}'])
def test_a_damaged_last_line_is_dropped_with_a_warning(
    start, killed_twice, unbroken, tmp_path, capsys, torn
):
    with samples_path(killed_twice).open("a") as file:
        file.write(torn)
    assert len(read_samples(killed_twice)) == 3
    assert start() == 0
    assert "the last line is damaged and dropped" in capsys.readouterr().err
    assert log(tmp_path / "logs") == unbroken


def test_a_last_line_that_lacks_only_its_end_is_kept(
    start, killed_twice, unbroken, tmp_path, capsys
):
    file = samples_path(killed_twice)
    file.write_text(file.read_text().rstrip("\n"))
    assert start() == 0
    assert "damaged" not in capsys.readouterr().err
    assert log(tmp_path / "logs") == unbroken


def test_damage_elsewhere_is_refused_and_nothing_lost(start, killed_twice, capsys):
    file = samples_path(killed_twice)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "}", lines[2]]) + "\n")
    before = file.read_bytes()
    assert start() == 2
    err = capsys.readouterr().err
    assert "line 2 of" in err
    assert "move the run's two files away to begin anew" in err
    assert file.read_bytes() == before
    killed_twice.write_text("{")
    assert start() == 2
    assert f"{killed_twice.name} cannot be taken up" in capsys.readouterr().err
    assert killed_twice.read_text() == "{"


def test_what_a_kill_while_writing_left_is_swept_away(start, killed_twice, unbroken, tmp_path):
    killed_twice.with_suffix(".json.partial").write_text('{"run_id"')
    samples_path(killed_twice).unlink()  # killed before its first sample
    assert start() == 0
    assert log(tmp_path / "logs") == unbroken


def test_a_second_process_on_the_same_run_says_so_and_leaves(start, killed_twice, capsys):
    run_id = read_record(killed_twice).run_id
    before = samples_path(killed_twice).read_bytes()
    with FileLock(killed_twice.parent / lock_name(run_id)):
        assert start() == EXIT_BUSY
        err = capsys.readouterr().err.splitlines()[-1]
        assert err.endswith(f"another process is at work on this run, {run_id}")
        assert samples_path(killed_twice).read_bytes() == before
        assert start("--seed", "1", "--sample", "true", folder="other") == 0
    assert start() == 0


def test_another_release_goes_on_with_a_warning(start, killed_twice, monkeypatch, capsys):
    first = read_record(killed_twice).commit
    monkeypatch.setattr(measuring, "current_commit", lambda: "f" * 40)
    assert start() == 0
    assert "was begun with another commit; its log tells both" in capsys.readouterr().err
    record = read_record(killed_twice)
    assert (record.commit, record.resumed[-1]["commit"]) == (first, "f" * 40)


def test_a_run_that_cannot_begin_leaves_no_folder(start, tmp_path):
    assert start("--prune_n", "5") == 2
    assert not (tmp_path / "logs").exists()


def test_a_run_with_a_seed_beyond_64_bits_goes_on(start, stop_at, tmp_path):
    seed = ["--seed", "123456789012345678901234"]
    undo = stop_at(1, KeyboardInterrupt)
    assert start(*seed) == EXIT_INTERRUPTED
    undo()
    assert start(*seed) == 0
    (path,) = find_runs(tmp_path / "logs")
    assert read_record(path).status == "complete"
