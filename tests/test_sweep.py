"""A grid of cells on one loaded model: what is run, skipped and resumed."""

import json

import pytest

import pruned_model
import sweep
from command_line.errors import BusyError, UsageError
from command_line.script import run_script
from runs import experiment, measuring, sweep_runs
from runs.reader import find_runs, read_record, read_samples
from runs.sweep_grid import GridArguments
from runs.sweep_runs import Outcome
from tests.conftest import SWEEP_GRID, SWEEP_PLANS, SWEEP_POINTS, numbered, rewritten


def records(folder):
    return [read_record(path) for path in find_runs(folder)]


def cells(folder):
    return sorted(
        (
            record.plan["approach"],
            record.exit_layer["original"] or 0,
            record.identity["generation"]["num_speculations"] or 0,
        )
        for record in records(folder)
    )


def test_every_plan_has_every_point_and_its_baseline(run_sweep, capsys):
    code, folder = run_sweep(*SWEEP_PLANS)
    assert code == 0
    assert cells(folder) == [
        (plan, *point) for plan in ("angular n=2", "base") for point in SWEEP_POINTS
    ]
    assert {record.status for record in records(folder)} == {"complete"}
    prompts = {record.identity["data_fingerprint"] for record in records(folder)}
    assert len(prompts) == 1
    assert "10 of 10 cells are complete" in capsys.readouterr().out


def test_a_cell_is_what_the_benchmark_makes_of_it(run_sweep, run):
    """The same tokens, id and log, though the model was pruned before and is whole again."""
    methods = ["angular", "random", "base"]
    dropped = ["--dropout_thresholds", "0.3", "--prune_seed", "3"]
    code, folder = run_sweep(*SWEEP_PLANS, "--prune_methods", *methods, *dropped)
    assert code == 0
    found = {record.run_id: path for path in find_runs(folder) for record in [read_record(path)]}
    assert len(found) == 15
    plans = {
        "angular": ["--prune_n", "2", "--calibration_samples", "4"],
        "random": ["--dropout_threshold", "0.3"],
        "base": [],
    }
    for method, flags in plans.items():
        greedy = ["--sample", "false", "--max_steps", "8", "--random_shuffle", "true"]
        decoder = ["--generation_strategy", "self_speculative", "--exit_layer", "4"]
        plan = ["--prune_method", method, *flags, "--prune_seed", "3"]
        _, alone, samples = run(*greedy, *decoder, "--num_speculations", "3", *plan, samples="2")
        path = found[alone.run_id]
        swept = read_record(path)
        assert swept.plan == alone.plan
        assert swept.model == alone.model
        assert [s.output_ids for s in read_samples(path)] == [s.output_ids for s in samples]


def test_memory_that_removed_layers_share_is_not_called_the_runs(run_sweep):
    _, folder = run_sweep(*SWEEP_PLANS)
    for record in records(folder):
        known = record.metrics["peak_memory_bytes"] is not None
        assert known == (record.plan["method"] == "base")


def test_the_model_is_loaded_once(run_sweep, monkeypatch):
    loads = []
    ordinary = sweep_runs.load_model

    def counted(*arguments):
        loads.append(arguments)
        return ordinary(*arguments)

    monkeypatch.setattr(sweep_runs, "load_model", counted)
    monkeypatch.setattr(experiment, "load_model", None)
    assert run_sweep(*SWEEP_PLANS)[0] == 0
    assert len(loads) == 1


def test_distances_are_measured_once_for_every_prune_n(run_sweep, run, monkeypatch):
    """And each plan is the one that its own measurement would make."""
    measured = []
    ordinary = pruned_model.angular_distances

    def counted(model, prompts, *rest):
        measured.append(len(prompts))
        return ordinary(model, prompts, *rest)

    monkeypatch.setattr(pruned_model, "angular_distances", counted)
    code, folder = run_sweep(
        *SWEEP_PLANS, "--prune_methods", "angular", "--prune_ns", "2", "1", "3"
    )
    assert code == 0
    assert measured == [4]
    found = {record.run_id: record for record in records(folder)}
    flags = ["--sample", "false", "--max_steps", "8", "--random_shuffle", "true"]
    for count in ("1", "2", "3"):
        plan = ["--prune_method", "angular", "--prune_n", count, "--calibration_samples", "4"]
        _, alone, _ = run(*flags, *plan, samples="2")
        assert found[alone.run_id].plan == alone.plan


def test_a_sweep_that_was_stopped_goes_on(run_sweep, stop_at, capsys):
    undo = stop_at(1, KeyboardInterrupt)
    code, folder = run_sweep()
    assert code == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().out
    undo()
    assert run_sweep()[0] == 0
    assert cells(folder) == [("base", *point) for point in SWEEP_POINTS]
    (resumed,) = [record for record in records(folder) if record.resumed]
    assert resumed.status == "complete"
    _, unbroken = run_sweep(folder="unbroken")
    for one, other in zip(find_runs(folder), find_runs(unbroken), strict=True):
        assert [s.output_ids for s in read_samples(one)] == [
            s.output_ids for s in read_samples(other)
        ]


def test_complete_cells_are_not_run_again(run_sweep, monkeypatch):
    run_sweep()
    monkeypatch.setattr(measuring, "measure_example", None)
    assert run_sweep()[0] == 0


def test_exit_layers_without_layers_on_a_side_are_named_and_skipped(run_sweep, capsys):
    flags = ["--exit_layer_first", "1", "--exit_layer_last", "7", "--exit_layer_step", "1"]
    drafts = ["--num_speculations_first", "2", "--num_speculations_last", "2"]
    dropped = ["--prune_methods", "random", "--dropout_thresholds", "0.5", "--prune_seed", "1"]
    code, folder = run_sweep(*flags, *drafts, *dropped)
    assert code == 0
    kept = records(folder)[0].plan["kept_layers"]
    usable = [e for e in range(1, 6) if 0 < sum(layer < e for layer in kept) < len(kept)]
    assert [exit_layer for _, exit_layer, _ in cells(folder)] == [0, *usable]
    out = capsys.readouterr().out
    for exit_layer in {*range(1, 8)} - {*usable}:
        assert f"skipped: custom_jsonl, random p=0.5 seed=1, --exit_layer {exit_layer}: " in out


def test_no_exit_layer_left_is_an_error(run_sweep, capsys):
    code, folder = run_sweep("--exit_layer_first", "6", "--exit_layer_last", "9")
    assert (code, folder.exists()) == (2, False)
    assert "--exit_layer_first 6: " in (err := capsys.readouterr().err)
    assert "must be 1 to 5" in err


@pytest.mark.parametrize("first", ["6", "10"])
def test_exit_layers_that_begin_beyond_the_model_are_refused_before_it_is_loaded(
    first, checkpoint, rows, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sweep_runs, "load_model", None)
    flags = ["--model", str(checkpoint), "--dataset", "custom_jsonl", "--data_path", str(rows)]
    logs = tmp_path / "logs"
    code = run_script(sweep.main, [*flags, "--exit_layer_first", first, "--output_dir", str(logs)])
    assert (code, logs.exists()) == (2, False)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--exit_layer_first {first}: must be 1 to 5; the model has 6" in line


def test_a_run_that_another_plan_began_is_not_taken_up(run_sweep, stop_at, capsys):
    undo = stop_at(1, KeyboardInterrupt)
    _, folder = run_sweep(*SWEEP_PLANS, "--prune_methods", "angular")
    undo()
    (path,) = find_runs(folder)
    with rewritten(path) as log:
        removed = log["plan"]["removed_layers"]
        log["plan"]["kept_layers"] = [0, 1, 4, 5] if removed != [2, 3] else [0, 3, 4, 5]
    before = path.read_text()
    assert run_sweep(*SWEEP_PLANS, "--prune_methods", "angular")[0] == 2
    assert f"where now {removed} are; move its two files away" in capsys.readouterr().err
    assert path.read_text() == before
    assert len(find_runs(folder)) == 1 + 4  # the other cells of the plan went on


def test_a_cell_that_fails_stops_no_other(run_sweep, monkeypatch, capsys):
    ordinary = sweep_runs.perform_run

    def failing(cell, command, prepare):
        if cell.arguments.generation.exit_layer == 2:
            raise UsageError("this one cannot run")
        return ordinary(cell, command, prepare)

    monkeypatch.setattr(sweep_runs, "perform_run", failing)
    code, folder = run_sweep()
    assert code == 2
    assert cells(folder) == [("base", *point) for point in [(0, 0), (4, 1), (4, 3)]]
    found = capsys.readouterr()
    assert found.err.count("this one cannot run") == 2
    assert "3 of 5 cells are complete" in found.out


def test_data_sets_lie_in_one_folder(run_sweep, tmp_path, checkpoint):
    folder = tmp_path / "data"
    folder.mkdir()
    numbered(folder / "custom_jsonl.jsonl", range(6))
    rows = [{"document": f"d{i}", "summary": f"s{i}"} for i in range(4)]
    # Not one of the suffixes that were looked for: the hub was asked instead.
    (folder / "xsum.json").write_text(json.dumps(rows))
    code = run_script(
        sweep.main,
        ["--model", str(checkpoint), "--datasets", "custom_jsonl", "xsum_summarization"]
        + ["--data_dir", str(folder), "--num_samples", "2", *SWEEP_GRID]
        + ["--output_dir", str(tmp_path / "logs")],
    )
    assert code == 0
    assert len(records(tmp_path / "logs")) == 10
    named = {record.identity["dataset"] for record in records(tmp_path / "logs")}
    assert named == {"custom_jsonl", "xsum_summarization"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--exit_layer_last", "1"],
            "--exit_layer_last 1: is below --exit_layer_first 2: the range",
        ),
        (["--num_speculations_last", "0"], "--num_speculations_last 0: is below"),
        (["--exit_layer_step", "0"], "--exit_layer_step 0: must be at least 1"),
        (["--exit_layer_first", "0"], "--exit_layer_first 0: must be at least 1"),
        (["--prune_ns", "2"], "--prune_ns 2: only with --prune_methods angular"),
        (["--prune_methods", "angular"], "--prune_methods angular: needs --prune_ns"),
        (["--prune_methods", "random"], "--prune_methods random: needs --dropout_thresholds"),
        (["--prune_methods", "angular", "--prune_ns", "2", "9"], "--prune_ns 9: must be 1 to 4"),
        (["--exit_layer", "3"], "--exit_layer 3: the grid sets it"),
        (["--generation_strategy", "self_speculative"], "--exit_layer -1: "),
        (["--datasets", "custom_jsonl", "human_eval"], "is of one data set; name a --data_dir"),
        (["--data_dir", "/nowhere"], "--data_dir /nowhere: is no folder"),
        (["--data_dir", "."], "--data_dir .: contradicts --data_path"),
        (["--calibration_dataset", "human_eval"], "only with --prune_methods angular"),
        (["--dropout_thresholds", "2", "--prune_methods", "random"], "must be in [0, 1)"),
    ],
)
def test_bad_grids_are_one_line(run_sweep, flags, message, monkeypatch, capsys):
    monkeypatch.setattr(sweep_runs, "load_model", None)  # they are seen before
    code, folder = run_sweep(*flags)
    assert (code, folder.exists()) == (2, False)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in line


def test_ranges_hold_both_ends():
    grid = GridArguments(2, 8, 3, 1, 5, 2)
    assert (grid.exit_layers(99), grid.draft_lengths()) == ([2, 5, 8], [1, 3, 5])
    assert GridArguments().exit_layers(4) == [1, 2, 3]


def test_the_exit_code_is_that_of_a_real_failure():
    busy, bad = BusyError("busy"), UsageError("bad")
    outcomes = [
        *(Outcome(), Outcome(failed=[bad]), Outcome(failed=[busy, bad]), Outcome(failed=[busy])),
        *(Outcome(short_of_memory=1), Outcome(failed=[busy], short_of_memory=1)),
    ]
    assert [one.exit_code for one in outcomes] == [0, 2, 2, 75, 1, 1]
