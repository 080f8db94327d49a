"""What is left of a cell is told before any model is read."""

import io
import sys

import benchmark
import cell_status
from command_line.script import run_script
from runs.reader import find_runs


def cell_flags(checkpoint, path, folder):
    common = ["--model", str(checkpoint), "--dataset", "custom_jsonl", "--data_path", str(path)]
    return [
        *common,
        *["--num_samples", "3", "--sample", "false", "--max_steps", "4"],
        *["--output_dir", str(folder)],
    ]


def test_the_status_of_a_cell_is_that_of_its_run(checkpoint, rows, tmp_path, monkeypatch, capsys):
    cell = cell_flags(checkpoint, rows, tmp_path / "logs")
    angular = [*cell, "--prune_method", "angular", "--prune_n", "2", "--calibration_samples", "4"]
    broken_off = [*cell, "--max_steps", "5"]
    for flags in (angular, broken_off):
        assert run_script(benchmark.main, flags) == 0
    path = next(p for p in find_runs(tmp_path / "logs") if '"max_steps": 5' in p.read_text())
    path.write_text(path.read_text().replace('"complete"', '"running"'))
    samples = path.with_suffix(".samples.jsonl")
    samples.write_text("".join(samples.read_text().splitlines(True)[:2]) + '{"torn')
    bad = [*cell, "--exit_layer", "0"]
    cells = [angular, broken_off, cell, bad]
    text = "".join("".join(f"{flag}\037" for flag in flags) + "\036" for flags in cells)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    capsys.readouterr()
    assert run_script(cell_status.main, []) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [
        ["complete", "0"],
        ["partial", "1"],
        ["missing", "3"],
        ["error", "0"],
    ]
    assert lines[1][2] == str(path)
    assert lines[3][2] == "--exit_layer 0: must be 1 to L - 1, or -1 for none"
