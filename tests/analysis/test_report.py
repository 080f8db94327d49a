"""The page of a study: numbers of the tables under their runs, nothing loaded, texts escaped."""

import json
import re

import pytest

import analyze_logs
from analysis import report as report_module
from analysis import report_text
from analysis.comparison import SAME_PLAN, compare, pareto_front
from analysis.tables import make_tables
from benchmarks.made_up_runs import MadeUpRun, angular_plan, base_plan
from command_line.script import run_script
from tests.analysis.pages import make_report, parsed, write_study
from tests.analysis.test_older_logs import four
from tests.conftest import rewritten
from tests.made_up import AUTOREGRESSIVE, SPECULATIVE, read

HOSTILE = "</script><script>alert(1)</script><img src=http://a.b/c onerror=alert(2)>&'\""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    return folder


@pytest.fixture(scope="module")
def seen(study):
    return parsed(study)


def test_every_table_is_there_with_its_text_and_its_raw_numbers(study, seen):
    runs = read(study)
    tables = make_tables(runs, compare(runs))
    assert {table.name for table in tables} == set(seen.tables) - {""}
    for table in tables:
        rows = seen.tables[table.name][1:]
        assert len(rows) == len(table.rows)
        for raw, (_, cells) in zip(table.rows, rows, strict=True):
            named = any(row["log"] for row in table.rows)  # a row of several seeds has none
            shown = cells[1:-1] if named else cells
            columns = [one for one in table.columns.items() if one[0] != "run"]
            for (heading, show), (text, attributes) in zip(columns, shown, strict=True):
                assert text == show(raw), heading
                value = raw.get(getattr(show, "name", None))
                if value is not None:
                    assert float(attributes["data-v"]) == pytest.approx(value, rel=1e-8)


def test_every_row_of_a_run_carries_the_runs_id_and_log(study, seen):
    logs = {run.path.name: run.record.run_id for run in read(study)}
    named = [
        (cells[0][0], cells[-1][0])
        for rows in seen.tables.values()
        for attributes, cells in rows
        if "data-run" in attributes
    ]
    assert len(named) >= 3 * len(logs) - 2  # the autoregressive base runs are compared with none
    assert all(logs[log] == run_id for run_id, log in named)


def test_a_run_is_named_once_in_a_row(study):
    runs = read(study)
    places = {run.path.name: place for place, run in enumerate(runs)}
    for table in make_tables(runs, compare(runs)):
        content = report_text.table_content(table, places, runs)
        assert content["headings"].count("run") == (table.name != "summary_seeds")
        for row in content["rows"]:
            assert len(row["cells"]) == len(content["headings"])


def test_the_page_loads_nothing(study, seen):
    for tag, attributes in seen.tags:
        assert not {"src", "srcset", "background"} & set(attributes), tag
        assert attributes.get("href", "#").startswith(("#", "data:,")), tag
    (policy,) = (
        attributes["content"]
        for tag, attributes in seen.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    style = re.search(r"<style>(.*?)</style>", report_module.page(make_report(study)), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_hostile_names_stay_text(tmp_path):
    for decoder in (AUTOREGRESSIVE, SPECULATIVE):
        path = MadeUpRun(dataset=HOSTILE, plan=angular_plan(2), **decoder).write(tmp_path)
        with rewritten(path) as log:
            log["model"]["name"] = log["command"] = log["commit"] = HOSTILE
            log["runtime"]["versions"][HOSTILE] = HOSTILE
    found = parsed(tmp_path, notes=[HOSTILE], folders=[HOSTILE])
    assert [tag for tag, _ in found.tags].count("script") == 3
    assert "img" not in {tag for tag, _ in found.tags}
    assert found.text.count(HOSTILE) > 4
    assert HOSTILE in json.dumps(found.data["settings"]).replace('\\"', '"')


def test_plots_hold_the_runs_numbers(study, seen):
    runs = read(study)
    first = seen.data["settings"][0]
    points = first["plots"]["speed"]["speed_points"]
    assert len(points["run"]) == first["runs"] == 16
    for place, speed, score in zip(*(points[name] for name in ("run", "x", "y")), strict=True):
        run = runs[place]
        assert seen.data["runs"][place]["id"] == run.record.run_id
        assert (speed, score) == (run.speed, run.metric("predicted_text", "rouge-l"))
    front = first["plots"]["speed"]["speed_front"]
    on_front = pareto_front(list(zip(points["x"], points["y"], strict=True)), False)
    assert len(front["x"]) == sum(on_front)
    bars = first["plots"]["quality"]["quality_points"]
    assert sorted(bars["x"]) == sorted({run.plan_name: run.removed_layers for run in runs}.values())
    assert all(
        low <= y <= high
        for low, y, high in zip(*(bars[n] for n in ("low", "y", "high")), strict=True)
    )


def test_a_sweeps_map_has_a_cell_for_each_run_of_its_plan(study, seen):
    sweeps = seen.data["settings"][0]["sweeps"]
    assert set(sweeps) == {"base", "angular n=2", "random p=0.2 seed=1", "random p=0.2 seed=2"}
    cells = sweeps["base"]["sweep_cells"]
    assert sorted(zip(cells["y"], cells["x"], strict=True)) == [("12", "6"), ("8", "4"), ("8", "6")]
    compared = compare(read(study))
    for place, speedup in zip(cells["run"], cells["speedup"], strict=True):
        assert compared[place].speedup(SAME_PLAN) == speedup


def test_acceptance_has_a_point_for_every_position(seen):
    first = seen.data["settings"][0]["plots"]["acceptance"]
    lines = first["acceptance_lines"]
    assert sorted(map(len, lines["xs"])) == [4] * 4 + [6] * 8
    assert len(first["acceptance_points"]["x"]) == 4 * 4 + 8 * 6


def test_the_headline_tells_numbers_runs_prompts_and_commands(seen):
    assert "× [" in seen.text
    assert "over the fastest, compiled autoregressive decoding" in seen.text
    assert "over eager autoregressive decoding" in seen.text
    assert "20 prompts" in seen.text
    assert (
        "None of 12 pruned runs loses at most 0.01 of ROUGE-L (F-measure) on average" in seen.text
    )
    assert "made up" in seen.text


def test_each_condition_is_told_with_its_runs(study):
    conditions = {one["name"]: one for one in report_text.conditions_content(read(study))}
    assert conditions["compile"]["values"] == [
        {"text": "False", "runs": 16},
        {"text": "True", "runs": 2},
    ]
    wanted = {"model", "device", "dtype", "threads", "versions", "commit", "seed", "prompts"}
    assert wanted <= set(conditions)


def test_older_logs_alone_make_tables_and_say_what_is_missing(tmp_path):
    (tmp_path / "benchmark_20250427_222420.json").write_text(four())
    found = parsed(tmp_path)
    rows = found.tables["summary_metrics"][1:]
    assert rows[0][1][-1][0] == "benchmark_20250427_222420.json"
    assert "data-run" not in rows[0][0]
    assert found.data == {"runs": [], "settings": [], "figures": {}}
    assert "no run can be called the fastest" in found.text
    assert "Plots need the records" in found.text


def test_a_single_run_has_no_baseline_and_no_empty_promise(tmp_path):
    MadeUpRun(**SPECULATIVE).write(tmp_path)
    found = parsed(tmp_path)
    assert "No autoregressive run of the unpruned model to compare its speed with." in found.text
    assert "No pruned run has a base run of the same decoder" in found.text
    (setting,) = found.data["settings"]
    assert setting["plots"]["quality"] == {"quality_points": {}, "quality_trend": {}}
    assert setting["sweeps"] == {}


def test_long_tables_name_the_rows_that_they_leave_out(study, monkeypatch):
    monkeypatch.setattr(report_text, "ROWS", 5)
    found = parsed(study)
    assert len(found.tables["summary_metrics"]) == 1 + 5
    assert "13 more rows are left out here; summary_metrics.csv holds them." in found.text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("page.txt", "must end in .html"),
        ("folder.html", "is a folder; name a file that ends in .html"),
        ("a_file/page.html", "is a file; name a folder"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_early(tmp_path, capsys, value, reason):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "a_file").touch()
    (tmp_path / "logs").mkdir()  # without runs, which would be the later error
    flags = [str(tmp_path / "logs"), "--report", str(tmp_path / value)]
    assert run_script(analyze_logs.main, flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--report {tmp_path / value}: " in line
    assert line.endswith(reason)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("-1", "-1.0: must be at least 0"),
        ("inf", "inf: must be a finite number of at least 0"),
        ("nan", "nan: must be a finite number of at least 0"),
    ],
)
def test_a_negative_or_endless_loss_is_refused(tmp_path, capsys, value, reason):
    assert run_script(analyze_logs.main, [str(tmp_path), "--most_loss", value]) == 2
    assert f"--most_loss {reason}" in capsys.readouterr().err


def test_the_page_is_written_with_notes_and_without_plots(tmp_path, capsys):
    logs, target = tmp_path / "logs", tmp_path / "new" / "page.html"
    MadeUpRun(plan=angular_plan(2), **SPECULATIVE).write(logs)
    (logs / "benchmark_1_broken.json").write_text('{"schema_version": 1')
    flags = [str(logs), "--output_dir", str(tmp_path / "out"), "--no_plots"]
    assert run_script(analyze_logs.main, [*flags, "--report", str(target)]) == 0
    written = target.read_text(encoding="utf-8")
    assert "benchmark_1_broken.json cannot be read" in written
    assert "1 run has no base run of the same decoder" in written
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]
    assert target.stat().st_size < 2_000_000
    assert list((tmp_path / "out").glob("*.png")) == []
    capsys.readouterr()


def test_an_earlier_page_survives_a_full_disk(tmp_path, monkeypatch, capsys):
    logs, target = tmp_path / "logs", tmp_path / "page.html"
    MadeUpRun().write(logs)
    target.write_text("earlier")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_module, "replace_text", full)
    flags = [str(logs), "--output_dir", str(tmp_path / "out"), "--no_plots"]
    assert run_script(analyze_logs.main, [*flags, "--report", str(target)]) == 2
    assert f"--report {target}: cannot be written (No space left on device)" in (
        capsys.readouterr().err
    )
    assert target.read_text() == "earlier"


def test_a_pruned_plan_is_shown_with_its_loss_and_the_limits_of_that_number(tmp_path):
    for plan, score, seconds in ((base_plan(), 0.5, 0.5), (angular_plan(1), 0.495, 0.8)):
        MadeUpRun(plan=plan, score=score, seconds=seconds, examples=3).write(tmp_path)
    found = parsed(tmp_path, most_loss=0.05)
    assert "The only run whose plan loses at most 0.05 of ROUGE-L (F-measure) on average." in (
        found.text
    )
    assert "The fastest lossless setting is faster." in found.text
    (loss,) = re.findall(r"Its loss is ([-+.\d]+) \[([-+.\d]+), ([-+.\d]+)\]", found.text)
    beyond = "The interval reaches beyond the limit" in found.text
    assert beyond == (float(loss[2]) > 0.05)
