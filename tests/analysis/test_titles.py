"""Titles of panels: they differ, and say what the heading of their figure leaves out."""

from analysis.plots import make_plots
from benchmarks.made_up_runs import MadeUpRun, angular_plan
from tests.made_up import read


def test_groups_that_cannot_be_compared_get_panels_and_titles_of_their_own(tmp_path, figures):
    for data_seed, dtype in ((0, "float32"), (0, "bfloat16"), (1, "float32")):
        run = MadeUpRun(plan=angular_plan(1), data_seed=data_seed, runtime={"dtype": dtype})
        run.write(tmp_path)
    make_plots(read(tmp_path), "rouge-l", tmp_path)
    titles = [axes.get_title() for axes in figures["speed_and_quality"].axes[:3]]
    assert len(set(titles)) == 3
    assert all(title.startswith("human_eval\nprompts ") for title in titles)
    assert sum("dtype float32" in title for title in titles) == 2


def test_titles_name_what_the_heading_cannot(tmp_path, figures):
    """Two models on two data sets: each set has one group, and no title may be silent."""
    MadeUpRun(model="tiny", dataset="gsm8k").write(tmp_path)
    MadeUpRun(model="large").write(tmp_path)
    make_plots(read(tmp_path), "rouge-l", tmp_path)
    figure = figures["speed_and_quality"]
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert sorted(titles) == ["gsm8k\nmodel tiny", "human_eval\nmodel large"]
    assert figure.get_suptitle() == "bfloat16, made up"


def test_groups_of_one_data_set_differ_in_their_titles_beside_another_model(tmp_path, figures):
    for tokens in "ab":
        identity = {"prompt_tokens_fingerprint": tokens * 9}
        MadeUpRun(model="tiny", dataset="gsm8k", identity=identity).write(tmp_path)
    MadeUpRun(model="large").write(tmp_path)
    make_plots(read(tmp_path), "rouge-l", tmp_path)
    titles = [axes.get_title() for axes in figures["speed_and_quality"].axes[:3]]
    assert sorted(titles) == [
        "gsm8k\nmodel tiny, prompt tokens aaaaaa",
        "gsm8k\nmodel tiny, prompt tokens bbbbbb",
        "human_eval\nmodel large",
    ]


def test_titles_of_few_runs_name_what_a_heading_of_all_leaves_out(tmp_path, figures):
    """The model on human_eval has no pruned plan, so that its runs are in no such plot."""
    MadeUpRun(model="tiny", dataset="gsm8k").write(tmp_path)
    MadeUpRun(model="tiny", dataset="gsm8k", plan=angular_plan(1)).write(tmp_path)
    MadeUpRun(model="large").write(tmp_path)
    make_plots(read(tmp_path), "rouge-l", tmp_path)
    (panel,) = [axes for axes in figures["quality_by_layers_removed"].axes if axes.get_visible()]
    assert panel.get_title() == "gsm8k\nmodel tiny"
