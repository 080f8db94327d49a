"""A training's log has all its lines in the end, and draws a plot."""

import pytest

from files.writing import LineFile
from tests.trainings import lines
from training.log import LOG_NAME, TrainingLog


@pytest.fixture
def log(tmp_path):
    log = TrainingLog(tmp_path, 2)
    yield log
    log.close()


def steps(folder):
    return [line["step"] for line in lines(folder, "step")]


def test_a_full_disk_costs_the_log_no_line_in_the_end(log, tmp_path, monkeypatch, capsys):
    log.add("step", step=1)

    def full(file, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LineFile, "add", full)
    log.add("step", step=2)
    assert "the log lacks a line (No space left on device)" in capsys.readouterr().err
    monkeypatch.undo()
    log.add("step", step=3)
    log.add("step", step=4)
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_a_removed_log_comes_back_with_all_its_lines(log, tmp_path, capsys):
    log.add("step", step=1)
    (tmp_path / LOG_NAME).unlink()
    log.add("step", step=2)
    assert "the log lacks a line (was removed during the run)" in capsys.readouterr().err
    log.add("step", step=3)
    assert steps(tmp_path) == [1, 2, 3]


def test_the_plot_is_written_as_png_and_pdf(log, tmp_path):
    log.plot()
    assert [path.name for path in tmp_path.iterdir()] == [LOG_NAME]
    for step in (1, 2):
        log.add("step", step=step, tokens=9 * step, loss={"1": 2.5, "2": 2.0})
    log.add("eval", step=2, tokens=18, acceptance=[0.5, 1.0])
    log.plot()
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".pdf", ".png"}


def test_a_log_goes_on_after_an_incomplete_line_and_without_later_steps(tmp_path):
    known = '{"kind": "step", "step": 1}\n{"kind": "step", "step": 3}\n{"kind": "st\n'
    (tmp_path / LOG_NAME).write_text(known)
    log = TrainingLog(tmp_path, 2)
    log.add("step", step=3)
    log.close()
    assert steps(tmp_path) == [1, 3]
    assert len((tmp_path / LOG_NAME).read_text().splitlines()) == 2
