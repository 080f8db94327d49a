"""What a sweep tells of its cells: table, heat maps, and notes on what they lack."""

import csv

import matplotlib.image

from runs.reader import find_runs, read_record
from tests.conftest import SWEEP_PLANS, SWEEP_POINTS, rewritten

MAPS = ("sweep_tokens_per_second", "sweep_speedup", "sweep_acceptance")


def read_table(folder):
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_table_and_maps_tell_of_the_grid(run_sweep, capsys):
    code, folder = run_sweep(*SWEEP_PLANS)
    table = read_table(folder)
    assert [(r["approach"], int(r["exit_layer"]), int(r["num_speculations"])) for r in table] == [
        (plan, *point) for plan in ("base", "angular") for point in SWEEP_POINTS[1:]
    ]
    for plan in ("base", "angular"):
        rows = [row for row in table if row["approach"] == plan]
        speeds = [float(row["tokens_per_second"]) for row in rows]
        assert [row["best"] == "True" for row in rows] == [s == max(speeds) for s in speeds]
        assert all(float(row["speculative_over_autoregressive"]) > 0 for row in rows)
    for name in MAPS:
        assert matplotlib.image.imread(folder / f"{name}.png").size
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "| best" in capsys.readouterr().out


def test_what_cannot_be_read_or_written_is_told_in_one_line(run_sweep, capsys):
    _, folder = run_sweep()
    path = next(path for path in find_runs(folder) if read_record(path).exit_layer["original"])
    with rewritten(path) as log:
        del log["counts"]
    capsys.readouterr()
    assert run_sweep()[0] == 0
    found = capsys.readouterr()
    assert f"warning: {path} cannot be read: it lacks 'counts'" in found.err
    assert found.out.count("| self_speculative") == 3
    (folder / "sweep.csv").unlink()
    (folder / "sweep.csv").mkdir()
    assert run_sweep()[0] == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.endswith(
        f"--output_dir {folder}: {folder / 'sweep.csv'} cannot be written (Is a directory)"
    )


def test_cells_of_other_threads_have_a_best_one_of_their_own(run_sweep):
    _, folder = run_sweep()
    for path in find_runs(folder):
        with rewritten(path) as log:
            if log["exit_layer"]["original"] == 2:
                log["timed"]["threads"] = 7
    assert run_sweep()[0] == 0
    table = read_table(folder)
    assert [row["threads"] for row in table] == ["7", "7", "1", "1"]
    best = [row["best"] == "True" for row in table]
    assert (sum(best[:2]), sum(best[2:])) == (1, 1)


def test_baselines_that_a_sweep_lacks_are_told_of(run_sweep, capsys):
    _, folder = run_sweep()
    (path,) = [path for path in find_runs(folder) if not read_record(path).exit_layer["original"]]
    with rewritten(path) as log:
        log["timed"]["threads"] = 7
    capsys.readouterr()
    assert run_sweep()[0] == 0
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
    _, folder = run_sweep()
    old, kept = folder / "sweep_speedup_2.png", folder / "sweep_speedup_tuesday.png"
    for path in (old, kept):
        path.write_bytes(b"drawn before")
    assert run_sweep()[0] == 0
    assert (old.exists(), kept.exists()) == (False, True)
