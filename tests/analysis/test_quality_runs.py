"""Runs on few prompts name the batched run that measured their plan's quality on more."""

import re

import pytest

from analysis import plots
from analysis.comparison import SAME_DECODER, compare, quality_intervals
from analysis.comparison_tables import sweep_table
from analysis.headline import headlines
from analysis.logged_runs import find_logged_runs
from analysis.plots import make_plots
from analysis.tables import make_tables
from benchmarks.made_up_runs import MadeUpRun, angular_plan, base_plan
from tests.analysis.pages import make_report, parsed
from tests.analysis.test_logged_runs import samples_of
from tests.conftest import rewritten
from tests.made_up import AUTOREGRESSIVE, SPECULATIVE, read

BATCHED = {"batch_size": 8, "tokens_per_second": 240.0, "seconds": 5.0, "tokens": 1200}
_SPEEDS = ("tokens_per_second", "time_per_token", "total_time", "decode_seconds")


def write_batched(folder, examples=30, batch_size=8, **changes):
    """Write a run whose prompts were decoded together, which have no seconds of their own."""
    identity = {"batch_size": batch_size} | changes.pop("identity", {})
    path = MadeUpRun(examples=examples, identity=identity, **AUTOREGRESSIVE, **changes).write(
        folder
    )
    with rewritten(path) as log:
        log["batched"] = BATCHED
        for name in _SPEEDS:
            log[name] = dict.fromkeys(log[name])
    with samples_of(path) as lines:
        for line in lines:
            line |= {"decode_seconds": None, "prefill_seconds": None, "steps": {}}
            line["batch"] = {"first": 0, "size": batch_size, "seconds": 1.0}
    return path


@pytest.fixture
def swept(tmp_path):
    """A sweep of two plans: quality on 30 prompts, speed of two decoders on 5."""
    for plan, score in ((base_plan(), 0.5), (angular_plan(2), 0.4)):
        write_batched(tmp_path, plan=plan, score=score)
        for decoder in (AUTOREGRESSIVE, SPECULATIVE):
            MadeUpRun(plan=plan, score=score, examples=5, **decoder).write(tmp_path)
    return tmp_path


def test_speed_runs_name_the_batched_run_of_their_plan(swept):
    compared = compare(read(swept))
    for one in compared:
        if one.run.is_batched:
            assert one.quality is None
        else:
            assert one.quality.run.is_batched
            assert one.quality.run.plan_name == one.run.plan_name
            assert one.quality.run.num_samples == 30


@pytest.mark.parametrize(
    "other",
    [
        {"identity": {"model_fingerprint": "files 1"}},
        {"identity": {"attention": "eager"}},
        {"dataset": "top_v2"},
        {"generation": {"max_steps": 9}},
        {"generation": {"sample": True}},
        {"plan": angular_plan(3)},
        {"examples": 4},
        {"batch_size": 1},
    ],
)
def test_a_run_that_writes_by_another_law_measures_another_quality(tmp_path, other):
    write_batched(tmp_path / "quality", **{"plan": angular_plan(2)} | other)
    MadeUpRun(plan=angular_plan(2), examples=5, **SPECULATIVE).write(tmp_path)
    assert [one.quality for one in compare(read(tmp_path))] == [None, None]


def test_the_run_with_most_prompts_counts_and_early_exits_have_none(tmp_path):
    for examples in (10, 40, 20):
        write_batched(tmp_path, examples=examples)
    MadeUpRun(examples=5, **SPECULATIVE).write(tmp_path)
    MadeUpRun(examples=5, exit_layer=8).write(tmp_path)
    found = {
        one.run.strategy: one.quality for one in compare(read(tmp_path)) if not one.run.is_batched
    }
    assert found["self_speculative"].run.num_samples == 40
    assert found["autoregressive"] is None


def test_batched_runs_change_quality_and_have_no_speed_up(swept):
    (one,) = (c for c in compare(read(swept)) if c.run.is_batched and c.run.removed_layers)
    assert one.baselines[SAME_DECODER].is_batched
    assert one.quality_changes["rouge-l"].value == pytest.approx(-0.1, abs=0.02)
    assert one.speedups == {SAME_DECODER: None}
    for spoken in (c for c in compare(read(swept)) if not c.run.is_batched):
        assert not any(run.is_batched for run in spoken.baselines.values())


def test_tables_never_set_throughput_beside_speed(swept):
    runs = read(swept)
    tables = {table.name: table for table in make_tables(runs, compare(runs))}
    rows = tables["summary_timing"].rows
    columns = tables["summary_timing"].columns
    batched = [row for row in rows if row.get("batched_batch_size")]
    assert len(batched) == 2
    for row in rows:
        shown = columns["tokens/s"](row), columns["throughput, tokens/s"](row)
        assert shown == ("-", "240.0 (batch 8)") if row in batched else shown[1] == "-"
        assert (row["speed"] is None) == (row in batched)


def test_sweep_and_comparison_show_the_plans_quality_and_its_run(swept):
    runs = read(swept)
    compared = compare(runs)
    batched = {run.method: run for run in runs if run.is_batched}
    comparison = next(t for t in make_tables(runs, compared) if t.name == "summary_comparison")
    for table in (sweep_table(compared), comparison):
        for row in (row for row in table.rows if row["num_speculations"]):
            source = batched[row["approach"]]
            assert row["quality_run"] == source.record.run_id
            assert row["quality_log"] == source.path.name
            assert row["quality_prompts"] == 30
            assert row["quality_rouge-l"] == pytest.approx(source.quality("rouge-l"))
            changed = row["quality_change_rouge-l"]
            assert changed is None if row["approach"] == "base" else changed < -0.05
            assert table.columns["quality run"](row) == source.record.run_id


def test_without_batched_runs_no_column_names_one(tmp_path):
    MadeUpRun(**AUTOREGRESSIVE).write(tmp_path)
    MadeUpRun(**SPECULATIVE).write(tmp_path)
    assert "quality run" not in sweep_table(compare(read(tmp_path))).columns


def test_plots_show_speed_beside_the_quality_of_more_prompts(swept, monkeypatch):
    kept = {}
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: kept.update({path.name: figure}))
    runs = read(swept)
    make_plots(runs, "rouge-l", swept, compare(runs))
    (axes,) = kept["speed_and_quality"].axes
    assert axes.get_ylabel().endswith("on 30 prompts")
    heights = {line.get_ydata()[0] for line in axes.get_lines() if len(line.get_ydata()) == 1}
    assert heights == {run.quality("rouge-l") for run in runs if run.is_batched}
    assert len(kept["quality_by_layers_removed"].axes) == 1


def test_the_report_shows_the_quality_of_the_named_run(swept):
    found = parsed(swept, most_loss=0.5)
    runs = read(swept)
    batched = {run.method: run for run in runs if run.is_batched}
    pruned = next(one for one in compare(runs) if one.run is batched["angular"])
    loss = -pruned.quality_changes["rouge-l"].value
    assert re.search(
        rf"Its loss is \{loss:+.3f} \[[^]]+\] [^.]* on 30 prompts in run "
        + batched["angular"].record.run_id,
        found.text,
    )
    settings = [one for one in found.data["settings"] if one["plots"]["speed"]["speed_points"]]
    points = settings[0]["plots"]["speed"]["speed_points"]
    for place, score, scored in zip(*(points[n] for n in ("run", "y", "scored")), strict=True):
        source = batched[runs[place].method]
        assert score == source.quality("rouge-l")
        assert scored == f"30 prompts, run {source.record.run_id}"
    bars = settings[0]["plots"]["quality"]["quality_points"]
    assert {runs[place].path for place in bars["run"]} == {one.path for one in batched.values()}


def test_a_score_that_only_the_quality_run_has_is_plotted(tmp_path, monkeypatch):
    for plan in (base_plan(), angular_plan(2)):
        write_batched(tmp_path, plan=plan, nats=2.0)
        MadeUpRun(plan=plan, examples=5, **SPECULATIVE).write(tmp_path)
        MadeUpRun(plan=plan, examples=5, **AUTOREGRESSIVE).write(tmp_path)
    runs = read(tmp_path)
    study = plots.Study.of(runs, "nats_per_token", compare(runs))
    assert len(study.scored) == 6
    kept = {}
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: kept.update({path.name: figure}))
    assert make_plots(runs, "nats_per_token", tmp_path, compare(runs)) == []
    assert {"speed_and_quality", "quality_by_layers_removed"} <= set(kept)
    settings = parsed(tmp_path, quality="nats_per_token").data["settings"]
    assert sum(len(one["plots"]["speed"]["speed_points"].get("y", [])) for one in settings) == 4


def test_a_runs_surprise_is_the_mean_over_prompts_that_its_interval_is_of(tmp_path):
    path = MadeUpRun(nats=2.0, **AUTOREGRESSIVE).write(tmp_path)
    with rewritten(path) as log:
        log["teacher_forced"] = {"nats_per_token": 9.0}  # another mean: over tokens
    (run,) = read(tmp_path)
    interval = quality_intervals(run)["nats_per_token"]
    assert run.quality("nats_per_token") == interval.value
    assert interval.low < interval.value < interval.high < 9


def test_a_batched_run_has_no_speed_and_leads_nothing_though_its_log_holds_one(tmp_path):
    path = write_batched(tmp_path)
    with rewritten(path) as log:
        log["tokens_per_second"]["token_weighted"] = 240.0  # of a last batch of one prompt
    (run,) = read(tmp_path)
    assert run.speed is None
    compared = compare([run])
    assert headlines(compared, "rouge-l", 0.01) == []
    assert "no run can be called the fastest" in parsed(tmp_path).text
    (timing,) = (t for t in make_tables([run], compared) if t.name == "summary_timing")
    assert timing.rows[0]["speed"] is None


@pytest.mark.parametrize("change", ["other rows", "another source", "other shots"])
def test_a_run_on_other_prompts_measures_another_quality(tmp_path, change):
    path = write_batched(tmp_path)
    MadeUpRun(examples=5, **SPECULATIVE).write(tmp_path)
    if change == "other rows":
        with samples_of(path) as lines:
            for line in lines:
                line["example_id"] = f"line {line['index'] + 1}"
    else:
        with rewritten(path) as log:
            new = {"source": "a file"} if change == "another source" else {"shots": ["line 90"]}
            log["data"]["evaluation"] |= new
    assert [one.quality for one in compare(read(tmp_path))] == [None, None]


def test_a_prompt_that_memory_ran_out_on_does_not_hide_the_others(tmp_path):
    path = write_batched(tmp_path)
    MadeUpRun(examples=5, **SPECULATIVE).write(tmp_path)
    with samples_of(path) as lines:
        lines[0]["status"] = "out_of_memory"
    with rewritten(path) as log:
        log["counts"]["failed_prompts"] = 1
    compared = compare(find_logged_runs([tmp_path]).runs)
    assert sorted(one.quality is None for one in compared) == [False, True]


def test_as_many_prompts_suffice_and_teacher_forced_runs_go_first(tmp_path):
    forced = write_batched(tmp_path, examples=5, nats=2.0, identity={"teacher_forced": True})
    newer = write_batched(tmp_path, examples=5)
    MadeUpRun(examples=5, **SPECULATIVE).write(tmp_path)
    found = {one.run.path: one.quality for one in compare(read(tmp_path))}
    assert found.pop(forced) is None
    assert len(found) == 2
    assert newer in found
    assert {one.run.path for one in found.values()} == {forced}


def test_a_newer_base_run_without_teacher_forcing_does_not_hide_its_forced_twin(tmp_path):
    forced = {"identity": {"teacher_forced": True}, "nats": 2.0}
    older = MadeUpRun(**forced, **AUTOREGRESSIVE).write(tmp_path)
    MadeUpRun(**AUTOREGRESSIVE).write(tmp_path)
    pruned = MadeUpRun(plan=angular_plan(2), **forced, **AUTOREGRESSIVE).write(tmp_path)
    (one,) = (one for one in compare(read(tmp_path)) if one.run.path == pruned)
    assert one.baselines[SAME_DECODER].path == older
    assert "nats_per_token" in one.quality_changes


def test_the_reports_header_tells_whose_numbers_and_which_intervals_there_are(swept):
    found = parsed(swept)
    assert "for shares and their changes from closed forms" in found.text
    assert "over timed passes too" in found.text
    table = make_report(swept).tables[2]
    place = 1 + list(table.columns).index("quality run")  # the row's own run leads
    of_speed = [cells for _, cells in found.tables[table.name][1:] if cells[place][0] != "-"]
    assert {cells[place][0] for cells in of_speed} == {
        run.record.run_id for run in read(swept) if run.is_batched
    }
    assert all(cells[0][0] != cells[place][0] for cells in of_speed)
