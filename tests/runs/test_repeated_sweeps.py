"""A sweep of several passes alternates between the decoders of a plan."""

import itertools
import re

import pytest

import sweep
from analysis import sweep_report
from analysis.logged_runs import find_logged_runs
from command_line.errors import EXIT_INTERRUPTED, UsageError
from runs import measuring, sweep_runs
from runs.reader import find_runs, read_record, read_samples
from tests.conftest import SWEEP_GRID, outputs
from tests.ranked import scripts_in_ranks

# Three runs: the baseline, and exit layers 2 and 4.
POINTS = ["--num_speculations_first", "3"]
THREE = [*POINTS, "--repeats", "3"]


@pytest.fixture(autouse=True)
def without_maps(monkeypatch):
    monkeypatch.setattr(sweep_report, "make_heat_maps", lambda *_: None)


@pytest.fixture
def visited(monkeypatch):
    """Return a list that gets the exit layer and key of each example that is measured."""
    seen, ordinary = [], measuring.measure_examples

    def measured(definition, decoder, keys, encoded):
        seen.extend((definition.arguments.generation.exit_layer, *key) for key in keys)
        return ordinary(definition, decoder, keys, encoded)

    monkeypatch.setattr(measuring, "measure_examples", measured)
    return seen


def records(folder):
    return [read_record(path) for path in find_runs(folder)]


def test_passes_alternate_between_the_decoders_of_a_plan_and_every_second_one_goes_back(
    run_sweep, visited, capsys
):
    plans = ["--prune_methods", "base", "random", "--dropout_thresholds", "0.2"]
    plans += ["--prune_seeds", "42"]
    code, folder = run_sweep(*THREE, *plans)
    exits = [-1, 2, 4]
    passes = [(0, exits), (1, exits[::-1]), (2, exits)]
    of_a_plan = [(exit, p, i) for p, order in passes for exit in order for i in range(2)]
    assert (code, visited) == (0, of_a_plan * 2)
    for record in records(folder):
        assert (record.status, record.passes, record.resumed) == ("complete", 3, [])
        assert record.metrics["throughput"]["prompts"] == 2  # of the last pass
    out = capsys.readouterr().out
    assert "goes on" not in out
    lines = re.findall(r"run (\d) of 6, pass (\d) of 3: .*; (\d+) prompts left", out)
    numbers = [1, 2, 3, 3, 2, 1, 1, 2, 3, 4, 5, 6, 6, 5, 4, 4, 5, 6]
    assert [int(number) for number, _, _ in lines] == numbers
    assert [int(place) for _, place, _ in lines] == [1, 1, 1, 2, 2, 2, 3, 3, 3] * 2
    assert [int(left) for _, _, left in lines] == list(range(36, 0, -2))


def test_a_sweep_makes_the_run_that_the_benchmark_makes(run_sweep, run):
    _, folder = run_sweep(*THREE)
    greedy = ["--sample", "false", "--max_steps", "8", "--random_shuffle", "true"]
    _, alone, samples = run(*greedy, "--repeats", "3", samples="2")
    swept = outputs(folder)[alone.run_id]
    assert [one["output_ids"] for one in swept] == [one.output_ids for one in samples]
    assert [one["repeat"] for one in swept] == [one.repeat for one in samples]


def test_a_sweep_that_stopped_in_a_later_pass_goes_on(run_sweep, stop_at, visited, capsys):
    undo = stop_at(1, KeyboardInterrupt, 1)
    code, folder = run_sweep(*THREE)
    undo()
    assert code == EXIT_INTERRUPTED
    assert sorted(record.status for record in records(folder)) == [
        *("interrupted", "running", "running")
    ]
    capsys.readouterr()
    assert run_sweep(*THREE, "--dry_run", "true")[0] == 0
    listed = capsys.readouterr().out
    assert listed.count(" partial ") == 3
    assert "3 of 3 runs and 11 prompts are left" in listed
    assert run_sweep(*THREE)[0] == 0
    assert {(record.status, record.passes) for record in records(folder)} == {("complete", 3)}
    assert all(len(record.resumed) == 1 for record in records(folder))
    _, unbroken = run_sweep(*THREE, folder="unbroken")
    assert outputs(folder) == outputs(unbroken)
    capsys.readouterr()
    assert run_sweep(*THREE, "--dry_run", "true")[0] == 0
    assert "0 of 3 runs and 0 prompts are left" in capsys.readouterr().out


class Killed(BaseException):
    """Ends a sweep like a signal that kills its process."""


def test_a_kill_between_passes_leaves_runs_that_are_in_progress(run_sweep, monkeypatch, tmp_path):
    ordinary, calls = sweep_runs.perform_run, itertools.count()

    def killing(*all):
        if next(calls) == 4:
            raise Killed
        return ordinary(*all)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sweep_runs, "perform_run", killing)
        run_sweep(*THREE)
    folder = tmp_path / "logs"
    assert {(record.status, record.ended) for record in records(folder)} == {("running", None)}
    found = find_logged_runs([folder])
    assert (found.runs, found.unfinished) == ([], 3)
    later = "2 of 2 prompts done and 2 in later passes, and is left out"
    assert sum(later in warning for warning in found.warnings) == 1
    assert run_sweep(*THREE)[0] == 0
    _, unbroken = run_sweep(*THREE, folder="unbroken")
    assert outputs(folder) == outputs(unbroken)
    assert [len(run.examples.seconds_by_pass[0]) for run in find_logged_runs([folder]).runs] == [
        *(3, 3, 3)
    ]


def test_runs_that_were_finished_with_fewer_passes_are_refused_and_stop_no_other(run_sweep, capsys):
    _, folder = run_sweep(*POINTS, "--exit_layer_last", "2")
    two = [*POINTS, "--repeats", "2"]
    capsys.readouterr()
    assert run_sweep(*two, "--dry_run", "true")[0] == 0
    listed = capsys.readouterr().out
    assert listed.count(" error ") == listed.count("was finished with 1 pass") == 2
    assert "3 of 3 runs and 4 prompts are left" in listed
    assert run_sweep(*two)[0] == 2
    err = capsys.readouterr().err
    assert err.count("--repeats 2: run ") == err.count("use another --output_dir") == 2
    assert sorted(record.passes for record in records(folder)) == [1, 1, 2]


def test_a_run_that_fails_is_not_tried_again_in_a_later_pass(run_sweep, monkeypatch, capsys):
    ordinary, failed = sweep_runs.perform_run, []

    def failing(run, *rest):
        if run.arguments.generation.exit_layer == 2:
            failed.append(run)
            raise UsageError("cannot run")
        return ordinary(run, *rest)

    monkeypatch.setattr(sweep_runs, "perform_run", failing)
    code, folder = run_sweep(*THREE)
    assert (code, len(failed)) == (2, 1)
    assert [record.passes for record in records(folder)] == [3, 3]
    assert "2 of 3 runs are complete" in capsys.readouterr().out


def test_a_sweep_of_several_processes_makes_the_same_passes(
    run_sweep, words, tmp_path, monkeypatch
):
    _, alone = run_sweep(*THREE, folder="one")
    flags = words(*SWEEP_GRID, *THREE, folder="many", prompts=2)
    assert scripts_in_ranks(monkeypatch, 2, sweep.main, flags) == [0, 0]
    many = tmp_path / "many"
    for path in find_runs(many):
        assert {one.ranks for one in read_samples(path)} == {2}
    assert {name: _ids(samples) for name, samples in outputs(many).items()} == {
        name: _ids(samples) for name, samples in outputs(alone).items()
    }
    assert not list(many.glob("*.rank*"))


def _ids(samples):
    return [(one["repeat"], one["index"], one["output_ids"]) for one in samples]
