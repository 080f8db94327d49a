"""A sweep runs a grid on one loaded model, and says which runs it skips, resumes and leaves out."""

import itertools
import json
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock

import sweep
from analysis import sweep_report
from command_line.errors import BusyError, FailedError, UsageError
from command_line.script import run_script
from pruning import measurements
from runs import experiment, sweep_runs, sweep_tries
from runs.reader import find_runs, read_record, read_samples
from runs.sweep_flags import GridArguments
from runs.sweep_outcome import Outcome
from tests.conftest import SWEEP_GRID, SWEEP_PLANS, SWEEP_POINTS, numbered, rewritten

ONE_POINT = ["--exit_layer_first", "4", "--num_speculations_first", "3"]
THREE_METHODS = [
    *("--prune_methods", "random", "base", "angular", "--prune_ns", "2", "1"),
    *("--dropout_thresholds", "0.3", "--prune_seed", "3", "--calibration_samples", "4"),
    *("--prune_seeds", "3"),
]


@pytest.fixture(autouse=True)
def without_maps(monkeypatch):
    monkeypatch.setattr(sweep_report, "make_heat_maps", lambda *_: None)


def records(folder):
    return [read_record(path) for path in find_runs(folder)]


def points(folder):
    return sorted(
        (
            record.plan["approach"],
            record.exit_layer["original"] or 0,
            record.identity["generation"]["num_speculations"] or 0,
        )
        for record in records(folder)
    )


def results(folder):
    """Return plan, model and output ids of each run, by run id."""
    return {
        record.run_id: (record.plan, record.model, [one.output_ids for one in read_samples(path)])
        for path in find_runs(folder)
        for record in [read_record(path)]
    }


def test_every_plan_has_every_point_and_its_baseline(run_sweep, monkeypatch, capsys):
    loads, ordinary = [], sweep_runs.load_model
    monkeypatch.setattr(sweep_runs, "load_model", lambda *all: loads.append(all) or ordinary(*all))
    monkeypatch.setattr(experiment, "load_model", None)
    code, folder = run_sweep(*SWEEP_PLANS)
    assert (code, len(loads)) == (0, 1)
    assert points(folder) == [
        (plan, *point) for plan in ("angular n=2", "base") for point in SWEEP_POINTS
    ]
    assert {record.status for record in records(folder)} == {"complete"}
    assert len({record.identity["data_fingerprint"] for record in records(folder)}) == 1
    out = capsys.readouterr().out
    assert "run 1 of 10: custom_jsonl, base, autoregressive; 20 prompts left\n" in out
    assert "run 10 of 10: custom_jsonl, angular n=2, exit layer 4, 3 drafts; 2 prompts left" in out
    assert "10 of 10 runs are complete" in out
    # A pruned run has no peak: the layers that it removed stay in memory for other runs.
    for record in records(folder):
        known = record.metrics["peak_memory_bytes"] is not None
        assert known == (record.plan["method"] == "base")


def test_a_run_is_what_the_benchmark_makes_of_it(run_sweep, run, monkeypatch):
    """Pruned and restored for other plans, the model decodes as if it had been loaded anew."""
    measured, ordinary = [], measurements.measure_states
    with monkeypatch.context() as patch:
        patch.setattr(
            measurements,
            "measure_states",
            lambda *all: measured.append(len(all[1])) or ordinary(*all),
        )
        code, folder = run_sweep(*THREE_METHODS, *ONE_POINT)
    assert (code, measured) == (0, [4])  # one measurement for both numbers of layers
    swept = results(folder)
    assert len(swept) == 8
    plans = [
        ["angular", "--prune_n", "1", "--calibration_samples", "4"],
        ["angular", "--prune_n", "2", "--calibration_samples", "4"],
        ["random", "--dropout_threshold", "0.3"],
        ["base"],
    ]
    drafting = ["--generation_strategy", "self_speculative", "--exit_layer", "4"]
    drafting += ["--num_speculations", "3"]
    for flags, decoder in itertools.product(plans, [[], drafting]):
        greedy = ["--sample", "false", "--max_steps", "8", "--random_shuffle", "true"]
        plan = ["--prune_method", *flags, "--prune_seed", "3"]
        _, alone, samples = run(*greedy, *decoder, *plan, samples="2")
        expected = alone.plan, alone.model, [one.output_ids for one in samples]
        assert swept[alone.run_id] == expected


def test_a_sweep_that_was_stopped_goes_on_until_nothing_is_left(
    run_sweep, stop_at, monkeypatch, capsys
):
    undo = stop_at(1, KeyboardInterrupt)
    code, folder = run_sweep(*ONE_POINT)
    assert code == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().out
    undo()
    assert run_sweep(*ONE_POINT)[0] == 0
    assert points(folder) == [("base", 0, 0), ("base", 4, 3)]
    assert [record.status for record in records(folder) if record.resumed] == ["complete"]
    _, unbroken = run_sweep(*ONE_POINT, folder="unbroken")
    assert results(folder) == results(unbroken)
    monkeypatch.setattr(sweep_runs, "load_model", None)
    capsys.readouterr()
    assert run_sweep(*ONE_POINT)[0] == 0
    assert "2 of 2 runs are complete" in capsys.readouterr().out


def test_a_dry_run_lists_what_is_left_and_changes_nothing(run_sweep, monkeypatch, capsys):
    _, folder = run_sweep(*ONE_POINT)
    path, other = sorted(find_runs(folder), key=lambda one: "self_spec" in one.read_text())
    with rewritten(path) as log:
        log["status"] = "running"
    samples = path.with_suffix(".samples.jsonl")
    samples.write_text(samples.read_text().splitlines(True)[0] + '{"torn')
    other.write_text("{")
    before = {one: one.read_bytes() for one in folder.iterdir()}
    monkeypatch.setattr(sweep_runs, "load_model", None)
    capsys.readouterr()
    methods = ["--prune_methods", "base", "random", "--dropout_thresholds", "0.3"]
    methods += ["--prune_seeds", "42"]
    assert run_sweep(*methods, *ONE_POINT, "--dry_run", "true")[0] == 0
    assert {one: one.read_bytes() for one in folder.iterdir()} == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"1/4  partial   custom_jsonl, base, autoregressive: {path}"
    assert lines[1].startswith(
        f"2/4  error     custom_jsonl, base, exit layer 4, 3 drafts: {other}: "
    )
    assert lines[2:] == [
        "3/4  missing   custom_jsonl, random p=0.3 seed=42, autoregressive",
        "4/4  missing   custom_jsonl, random p=0.3 seed=42, exit layer 4, 3 drafts",
        "4 of 4 runs and 5 prompts are left",
    ]


def test_exit_layers_without_layers_on_a_side_are_named_and_skipped(run_sweep, capsys):
    flags = ["--exit_layer_first", "1", "--exit_layer_last", "7", "--exit_layer_step", "1"]
    flags += ["--num_speculations_first", "3", "--prune_methods", "random"]
    flags += ["--dropout_thresholds", "0.5", "--prune_seeds", "1"]
    assert run_sweep(*flags, "--dry_run", "true")[0] == 0
    assert "6 of 6 runs" in capsys.readouterr().out  # no log knows the plan: every exit layer
    code, folder = run_sweep(*flags)
    assert code == 0
    kept = records(folder)[0].plan["kept_layers"]
    usable = [e for e in range(1, 6) if 0 < sum(layer < e for layer in kept) < len(kept)]
    assert [exit_layer for _, exit_layer, _ in points(folder)] == [0, *usable]
    out = capsys.readouterr().out
    for exit_layer in {*range(1, 8)} - {*usable}:
        assert f"skipped: custom_jsonl, random p=0.5 seed=1, --exit_layer {exit_layer}: " in out
    # A dry run reads from the logs which exit layers the plan allows.
    assert run_sweep(*flags, "--dry_run", "true")[0] == 0
    assert f"0 of {1 + len(usable)} runs and 0 prompts are left" in capsys.readouterr().out


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
    assert f"where now {removed} are, or with another patch; move" in capsys.readouterr().err
    assert path.read_text() == before
    assert len(find_runs(folder)) == 1 + 4  # the other runs of the plan went on


@pytest.fixture
def fail_at_exit_layer_2(monkeypatch):
    """Return a function that makes runs that draft at exit layer 2 fail with an error."""
    ordinary = sweep_runs.perform_run

    def fail(error):
        def failing(run, *rest):
            if run.arguments.generation.exit_layer == 2:
                raise error
            return ordinary(run, *rest)

        monkeypatch.setattr(sweep_runs, "perform_run", failing)

    return fail


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (UsageError("cannot run"), 2, "cannot run"),
        (RuntimeError("shapes differ\nmore"), 1, "RuntimeError: shapes differ"),
        (torch.OutOfMemoryError("CUDA error: out of memory"), 1, "out of memory"),
    ],
)
def test_a_run_that_fails_stops_no_other(
    run_sweep, fail_at_exit_layer_2, error, expected, message, capsys
):
    fail_at_exit_layer_2(error)
    code, folder = run_sweep()
    assert code == expected
    assert points(folder) == [("base", *point) for point in [(0, 0), (4, 1), (4, 3)]]
    found = capsys.readouterr()
    for drafts in (1, 3):
        line = f"error: custom_jsonl, base, exit layer 2, {drafts} drafts: "
        assert sum(line in one and message in one for one in found.err.splitlines()) == 1
    assert found.err.count("Traceback") == 2 * ("shapes" in message)
    assert "3 of 5 runs are complete" in found.out


class Killed(BaseException):
    """Ends a run like a signal that kills its process."""


@pytest.mark.parametrize("kind", [Killed, RuntimeError, FailedError])
def test_a_run_that_ends_its_process_twice_is_given_up(
    run_sweep, fail_at_exit_layer_2, kind, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SWEEP_TRIES", str(tmp_path / "tries"))
    error = kind("CUDA error: device-side assert triggered")
    if kind is FailedError:
        error.__cause__ = RuntimeError(str(error))
    fail_at_exit_layer_2(error)
    flags = ["--num_speculations_first", "3"]
    for tries in (1, 2):
        if kind is Killed:
            with pytest.raises(Killed):
                run_sweep(*flags)
        else:
            assert run_sweep(*flags)[0] == 1
            assert "run_tests goes on with the rest" in capsys.readouterr().err
        assert len((tmp_path / "tries").read_text().splitlines()) == tries
        assert points(tmp_path / "logs") == [("base", 0, 0)]
    assert run_sweep(*flags)[0] == 1
    assert points(tmp_path / "logs") == [("base", 0, 0), ("base", 4, 3)]
    message = "custom_jsonl, base, exit layer 2, 3 drafts: given up: its process died"
    assert message in capsys.readouterr().err
    assert len((tmp_path / "tries").read_text().splitlines()) == 2


@pytest.fixture
def sweep_data_sets(tmp_path, checkpoint, capsys):
    """Run sweep.py on data sets with more flags; return exit code, output and messages."""

    def run(*names_and_flags):
        model = ["--model", str(checkpoint), "--num_samples", "2", *SWEEP_GRID, *ONE_POINT]
        line = [*model, "--output_dir", str(tmp_path / "logs"), "--datasets", *names_and_flags]
        return run_script(sweep.main, line), *capsys.readouterr()

    return run


def test_data_sets_lie_in_one_folder_and_those_that_cannot_be_read_stop_no_other(
    sweep_data_sets, tmp_path
):
    (tmp_path / "data").mkdir()
    numbered(tmp_path / "data" / "custom_jsonl.jsonl", range(6))
    rows = [{"document": f"d{i}", "summary": f"s{i}"} for i in range(4)]
    # Sweeps once did not look for this suffix, and asked the hub.
    (tmp_path / "data" / "xsum.json").write_text(json.dumps(rows))
    here = ["--data_dir", str(tmp_path / "data")]
    names = ["custom_jsonl", "cnn_dm_lm", "xsum_summarization"]
    code, out, err = sweep_data_sets(*names, *here)
    named = [record.identity["dataset"] for record in records(tmp_path / "logs")]
    assert sorted(named) == ["custom_jsonl"] * 2 + ["xsum_summarization"] * 2
    assert code == 2
    assert "4 of 5 runs are complete" in out
    assert err.count("error: cnn_dm_lm, base, autoregressive: --dataset cnn_dm_lm: ") == 1
    code, _, err = sweep_data_sets("cnn_dm_lm", *here)
    assert code == 2
    (line,) = err.splitlines()
    assert "error: --dataset cnn_dm_lm: " in line


def test_local_rows_and_flags_that_one_data_set_refuses_stop_no_other(sweep_data_sets, tmp_path):
    (tmp_path / "data").mkdir()
    numbered(tmp_path / "data" / "custom_jsonl.jsonl", range(4))
    (tmp_path / "data" / "xsum.jsonl").write_text("no row\n")
    here = ["--data_dir", str(tmp_path / "data"), "--dry_run", "true"]
    code, listed, _ = sweep_data_sets("custom_jsonl", "xsum_summarization", *here)
    assert (code, listed.count(" missing ")) == (0, 2)
    assert "xsum.jsonl" in next(line for line in listed.splitlines() if " error " in line)
    assert sweep_data_sets("xsum_summarization", *here)[0] == 2
    lacking = ["--data_dir", str(tmp_path), "--dry_run", "true"]
    code, listed, _ = sweep_data_sets("custom_jsonl", "human_eval", *lacking)
    assert (code, listed.count(" missing "), listed.count("holds no rows of custom")) == (0, 2, 1)
    executed = ["--execute_code", "true", "--dry_run", "true"]
    code, listed, _ = sweep_data_sets("human_eval", "top_v2", *executed)
    assert (code, listed.count(" missing ")) == (0, 2)
    assert "--execute_code true: --dataset top_v2 has no tests" in listed
    assert sweep_data_sets("top_v2", *executed)[0] == 2


def test_a_plan_that_keeps_no_layer_stops_no_other(run_sweep, capsys):
    methods = ["--prune_methods", "random", "--dropout_thresholds", "0.999", "0.1"]
    methods += ["--prune_seeds", "42"]
    code, folder = run_sweep(*methods, *ONE_POINT)
    assert (code, len(records(folder))) == (2, 2)
    line = "error: custom_jsonl, random p=0.999 seed=42, autoregressive: "
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--exit_layer_last", "1"],
            "--exit_layer_last 1: is below --exit_layer_first 2: the range",
        ),
        (["--exit_layer_step", "0"], "--exit_layer_step 0: must be at least 1"),
        (["--exit_layer_first", "10", "--exit_layer_last", "12"], "10: must be 1 to 5; the model"),
        (["--prune_ns", "2"], "--prune_ns 2: only with --prune_methods angular"),
        (["--prune_methods", "angular"], "--prune_methods angular: needs --prune_ns"),
        (["--prune_methods", "random"], "--prune_methods random: needs --dropout_thresholds"),
        (["--prune_methods", "angular", "--prune_ns", "2", "9"], "--prune_ns 9: must be 1 to 4"),
        (["--exit_layer", "3"], "--exit_layer 3: the grid sets it"),
        (["--datasets", "custom_jsonl", "human_eval"], "is of one data set; name a --data_dir"),
        (["--data_dir", "."], "--data_dir .: contradicts --data_path"),
        (["--calibration_dataset", "human_eval"], "only with criteria that measure (angular"),
        (["--dropout_thresholds", "2", "--prune_methods", "random"], "must be in [0, 1)"),
    ],
)
def test_bad_grids_are_one_line(run_sweep, flags, message, monkeypatch, capsys):
    monkeypatch.setattr(sweep_runs, "load_model", None)  # refused before the weights are read
    code, folder = run_sweep(*flags)
    assert (code, folder.exists()) == (2, False)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in line


def test_ranges_hold_both_ends():
    grid = GridArguments(2, 8, 3, 1, 5, 2)
    assert (grid.exit_layers(99), grid.draft_lengths()) == ([2, 5, 8], [1, 3, 5])
    assert GridArguments().exit_layers(4) == [1, 2, 3]


def test_the_exit_code_is_that_of_a_real_failure():
    busy, bad = ("a", BusyError("busy")), ("b", UsageError("bad"))
    outcomes = [
        *(Outcome(), Outcome(failed=[bad]), Outcome(failed=[busy, bad]), Outcome(failed=[busy])),
        *(Outcome(short_of_memory=1), Outcome(failed=[busy], short_of_memory=1)),
    ]
    assert [one.exit_code for one in outcomes] == [0, 2, 2, 75, 1, 1]


def test_a_plan_that_cannot_be_measured_stops_no_other(run_sweep, monkeypatch, tmp_path, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setenv("SWEEP_TRIES", str(tmp_path / "tries"))
    monkeypatch.setattr("pruning.measurements.measure_states", full)
    code, folder = run_sweep(*SWEEP_PLANS, *ONE_POINT)
    assert (code, len(records(folder))) == (1, 2)
    assert "custom_jsonl, angular n=2, autoregressive: out of memory" in capsys.readouterr().err
    assert (tmp_path / "tries").read_text() == ""


def test_a_run_that_is_held_is_waited_for_before_the_weights_are_read(
    run_sweep, monkeypatch, tmp_path
):
    _, folder = run_sweep(*ONE_POINT)
    held = next(one for one in records(folder) if one.exit_layer["original"])
    for path in folder.glob(f"*{held.run_id}*"):
        path.unlink()
    monkeypatch.setenv("SWEEP_TRIES", str(tmp_path / "tries"))
    monkeypatch.setattr("runs.sweep_runs.load_model", lambda *_: pytest.fail("weights are read"))
    with FileLock(folder / f".{held.run_id}.lock"):
        assert run_sweep(*ONE_POINT)[0] == BusyError.exit_code


def test_a_device_that_answers_no_more_ends_the_sweep(monkeypatch):
    error = RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for synchronize, ends in ((Mock(), False), (Mock(side_effect=error), True)):
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        assert sweep_tries.ends_the_device(error) == ends
