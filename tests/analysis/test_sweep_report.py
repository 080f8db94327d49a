"""The report of a sweep: table, heat maps, and notes on what they lack."""

import csv

import matplotlib.image
import pytest

from analysis import heat_maps, sweep_report
from benchmarks.made_up_runs import MadeUpRun, angular_plan, base_plan
from command_line.errors import UsageError
from runs.reader import find_runs, read_record
from tests.conftest import SWEEP_POINTS, rewritten

MAPS = ("sweep_tokens_per_second", "sweep_speedup", "sweep_acceptance")


def report(folder):
    sweep_report.report(find_runs(folder), folder)


def read_table(folder):
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def find_baseline(folder):
    (path,) = [path for path in find_runs(folder) if not read_record(path).exit_layer["original"]]
    return path


@pytest.fixture
def swept(run_sweep, monkeypatch, capsys):
    """The folder of a small sweep; no maps are drawn for its tests."""
    monkeypatch.setattr(sweep_report, "make_heat_maps", lambda *_: None)
    _, folder = run_sweep()
    capsys.readouterr()
    return folder


def test_plans_of_one_name_and_other_layers_have_maps_of_their_own(tmp_path, monkeypatch):
    """Other calibration texts may decide other layers."""
    for first in (2, 5):
        for exit_layer, drafts in SWEEP_POINTS[1:]:
            plan = angular_plan(2, first=first)
            run = MadeUpRun(plan=plan, examples=4, exit_layer=exit_layer, num_speculations=drafts)
            run.write(tmp_path)
    drawn = {}
    monkeypatch.setattr(
        heat_maps, "save_figure", lambda made, path: drawn.update({path.name: made})
    )
    report(tmp_path)
    titles = [axes.get_title() for axes in drawn["sweep_tokens_per_second"].axes]
    assert [title for title in titles if title] == ["human_eval, angular n=2"] * 2


def test_table_and_maps_show_the_grid(tmp_path, capsys):
    for plan in (base_plan(), angular_plan(2)):
        MadeUpRun(plan=plan, examples=4).write(tmp_path)
        for exit_layer, drafts in SWEEP_POINTS[1:]:
            run = MadeUpRun(plan=plan, examples=4, exit_layer=exit_layer, num_speculations=drafts)
            run.write(tmp_path)
    report(tmp_path)
    table = read_table(tmp_path)
    assert [(r["approach"], int(r["exit_layer"]), int(r["num_speculations"])) for r in table] == [
        (plan, *point) for plan in ("base", "angular") for point in SWEEP_POINTS[1:]
    ]
    for plan in ("base", "angular"):
        rows = [row for row in table if row["approach"] == plan]
        speeds = [float(row["tokens_per_second"]) for row in rows]
        assert [row["best"] == "True" for row in rows] == [s == max(speeds) for s in speeds]
        assert all(float(row["speculative_over_autoregressive"]) > 0 for row in rows)
    for name in MAPS:
        assert matplotlib.image.imread(tmp_path / f"{name}.png").size
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "| best" in capsys.readouterr().out


def test_a_log_without_counts_and_a_table_in_the_way_are_one_line_each(swept, capsys):
    path = next(path for path in find_runs(swept) if path != find_baseline(swept))
    with rewritten(path) as log:
        del log["counts"]
    report(swept)
    found = capsys.readouterr()
    assert f"warning: {path} cannot be read: it lacks 'counts'" in found.err
    assert found.out.count("| self_speculative") == 3
    (swept / "sweep.csv").unlink()
    (swept / "sweep.csv").mkdir()
    message = f"--output_dir {swept}: {swept / 'sweep.csv'} cannot be written .Is a directory."
    with pytest.raises(UsageError, match=message):
        report(swept)


def test_runs_of_other_threads_have_a_best_run_of_their_own(swept):
    for path in find_runs(swept):
        with rewritten(path) as log:
            if log["exit_layer"]["original"] == 2:
                log["timed"]["threads"] = 7
    report(swept)
    table = read_table(swept)
    assert [row["threads"] for row in table] == ["7", "7", "1", "1"]
    best = [row["best"] == "True" for row in table]
    assert (sum(best[:2]), sum(best[2:])) == (1, 1)


def test_missing_baselines_are_noted(swept, capsys):
    with rewritten(find_baseline(swept)) as log:
        log["timed"]["threads"] = 7
    report(swept)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: 4 runs have no autoregressive run of the same plan: the nearest differs in "
        "threads (7, not 1)"
    ]


def test_nothing_decoded_is_no_speed(run_sweep):
    _, folder = run_sweep("--max_steps", "1")
    table = read_table(folder)
    assert {(row["tokens_per_second"], row["best"]) for row in table} == {("", "False")}
    assert not (folder / "sweep_tokens_per_second.png").exists()


def test_maps_of_an_earlier_sweep_go_and_what_a_user_keeps_stays(run_sweep):
    """A grid of one point has no map."""
    _, folder = run_sweep("--exit_layer_first", "4", "--num_speculations_first", "3")
    assert not list(folder.glob("*.png"))
    old, kept = folder / "sweep_speedup_2.png", folder / "sweep_speedup_tuesday.png"
    for path in (old, kept):
        path.write_bytes(b"drawn before")
    report(folder)
    assert (old.exists(), kept.exists()) == (False, True)
