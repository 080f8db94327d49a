"""Runs are compared on the prompts of each category, and drawn."""

import dataclasses

import pytest

from analysis import plots
from analysis.categories import category_results
from analysis.comparison import SAME_PLAN, compare
from analysis.detail_tables import categories_table
from analysis.plots import make_plots
from benchmarks.made_up_runs import MadeUpRun, angular_plan, base_plan, random_plan
from tests.analysis.test_logged_runs import samples_of
from tests.analysis.test_plots import overlapping
from tests.made_up import AUTOREGRESSIVE, SPECULATIVE, read

CATEGORIES = ("coding", "math", "summarization")


def write(folder, plan=None, decoder=AUTOREGRESSIVE, categories=CATEGORIES, **changes):
    run = MadeUpRun("spec_bench", plan or base_plan(), examples=12, categories=categories)
    return dataclasses.replace(run, **decoder, **changes).write(folder)


def test_each_category_has_its_prompts_alone(tmp_path):
    write(tmp_path)
    path = write(tmp_path, decoder=SPECULATIVE, seconds=0.5)
    with samples_of(path) as lines:
        chosen = [line for line in lines if line["category"] == "math"]
        for line in chosen:
            line["decode_seconds"] /= 3
        rounds = [pair for line in chosen for pair in line["rounds"]]
    results = category_results(compare(read(tmp_path)))
    assert [one.category for one in results] == 2 * list(CATEGORIES)
    spoken = {one.category: one for one in results if one.run.num_speculations}
    assert {one.prompts for one in results} == {4}
    math, coding = spoken["math"], spoken["coding"]
    assert coding.speedup.value == pytest.approx(2, rel=0.05)
    assert math.speedup.value == pytest.approx(6, rel=0.05)
    assert math.speedup.low <= math.speedup.value <= math.speedup.high
    drafted, accepted = map(sum, zip(*rounds, strict=True))
    assert math.acceptance == pytest.approx(accepted / drafted)
    assert math.acceptance_length == pytest.approx(accepted / len(rounds) + 1)
    assert math.copied_share == pytest.approx(8 / 32)
    plain = next(one for one in results if not one.run.num_speculations)
    assert (plain.speedup, plain.acceptance, plain.acceptance_length) == (None, None, None)
    assert plain.speed.value == pytest.approx(31, rel=0.2)


def test_one_category_of_all_prompts_is_the_run(tmp_path):
    write(tmp_path, categories=("only",))
    write(tmp_path, decoder=SPECULATIVE, categories=("only",))
    for one in compare(read(tmp_path)):
        (result,) = category_results([one])
        assert result.speedup == one.speedups.get(SAME_PLAN)
        assert result.speed.value == pytest.approx(one.run.speed)


def test_prompts_without_categories_have_no_results(tmp_path):
    MadeUpRun().write(tmp_path)
    assert category_results(compare(read(tmp_path))) == []


def test_the_table_leaves_out_runs_and_columns_without_numbers(tmp_path):
    batched = {"identity": {"batch_size": 4}}
    write(tmp_path, **batched)
    assert categories_table(compare(read(tmp_path))).rows == []
    write(tmp_path)
    table = categories_table(compare(read(tmp_path)))
    assert len(table.rows) == len(CATEGORIES)
    assert "acceptance" not in table.columns
    write(tmp_path, decoder=SPECULATIVE, **batched)
    table = categories_table(compare(read(tmp_path)))
    assert {row["batch_size"] for row in table.rows if row["acceptance_rate"]} == {4}
    assert [table.columns["batch"](row) for row in table.rows] == 3 * ["4"] + 3 * ["1"]
    assert {table.columns["prompts"](row) for row in table.rows} == {"4"}


def test_every_category_and_plan_is_drawn(tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: kept.update({path.name: figure}))
    names = tuple(f"category of number {number}" for number in range(12))
    for plan in (base_plan(), angular_plan(2), *(random_plan(0.2, seed) for seed in (1, 2))):
        for decoder in (AUTOREGRESSIVE, SPECULATIVE, SPECULATIVE | {"num_speculations": 3}):
            write(tmp_path, plan, decoder, names)
    runs = read(tmp_path)
    make_plots(runs, "rouge-l", tmp_path, compare(runs))
    figure = kept["speedup_by_category"]
    titles = [" ".join(axes.get_title().split()) for axes in figure.axes]
    assert titles == [f"spec_bench, exit layer 8, {k} drafts" for k in (3, 6)]
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_yticklabels()] == sorted(names)
        marks = [line for line in axes.get_lines() if line.get_marker() in "*os"]
        assert len(marks) == 3 * len(names)  # two seeds are one mark
    assert overlapping(figure) == []


def test_titles_are_no_wider_than_axes_that_long_names_narrow(tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: kept.update({path.name: figure}))
    names = tuple(f"{number} long name of a category of prompts" for number in range(3))
    for decoder in (AUTOREGRESSIVE, SPECULATIVE, SPECULATIVE | {"num_speculations": 3}):
        write(tmp_path, None, decoder, names)
    runs = read(tmp_path)
    make_plots(runs, "rouge-l", tmp_path, compare(runs))
    figure = kept["speedup_by_category"]
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert axes.title.get_window_extent().width <= axes.bbox.width
        assert axes.title.get_window_extent().x1 <= figure.bbox.x1
