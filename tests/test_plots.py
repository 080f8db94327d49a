"""Plots are drawn from what the runs hold, and say what they leave out."""

import dataclasses

import pytest
from made_up import AUTOREGRESSIVE, SPECULATIVE, read
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import plots
from benchmarks.made_up_runs import MadeUpRun, angular_plan, base_plan, random_plan
from plots import make_plots


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is made, by its name, kept as it was laid out."""
    kept, save = {}, plots.save_figure

    def keep(figure, path):
        save(figure, path)
        kept[path.name] = figure

    monkeypatch.setattr(plots, "save_figure", keep)
    return kept


def study(folder, data_seeds=1):
    seeded = [random_plan(0.2, seed) for seed in (1, 2)]
    for data_seed in range(data_seeds):
        for plan in (base_plan(), angular_plan(1), angular_plan(2), *seeded):
            for decoder in (AUTOREGRESSIVE, SPECULATIVE):
                MadeUpRun(plan=plan, data_seed=data_seed, examples=4, **decoder).write(folder)


def panel(figure):
    return figure.axes[0]


def test_a_study_yields_four_plots_as_png_and_pdf(tmp_path):
    study(tmp_path / "logs")
    (tmp_path / "out").mkdir()
    assert make_plots(read(tmp_path / "logs"), "rouge-l", tmp_path / "out") == []
    names = {path.name for path in (tmp_path / "out").iterdir()}
    stems = (
        "quality_by_layers_removed",
        "speed_and_quality",
        "acceptance_by_draft_position",
        "angular_distance",
    )
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf")}


def test_axes_carry_units_and_keys_name_every_plan(tmp_path, figures):
    study(tmp_path)
    make_plots(read(tmp_path), "rouge-l", tmp_path)
    labels = {
        name: (panel(figure).get_xlabel(), panel(figure).get_ylabel())
        for name, figure in figures.items()
    }
    assert labels == {
        "quality_by_layers_removed": ("layers removed, of 32", "ROUGE-L (F-measure)"),
        "speed_and_quality": ("decoding speed (tokens/s)", "ROUGE-L (F-measure)"),
        "acceptance_by_draft_position": (
            "position in the draft (tokens)",
            "accepted (share of drafts there)",
        ),
        "angular_distance": ("first layer l (index, from 0)", "layers removed n"),
    }
    keys = [text.get_text() for text in figures["speed_and_quality"].legends[0].get_texts()]
    plans = ["base", "angular n=1", "angular n=2", "random p=0.2"]
    assert keys == ["autoregressive", "self-speculative", *plans]


def test_plans_differ_in_shape_and_not_in_colour_alone(tmp_path):
    study(tmp_path)
    styles = plots._plan_styles(read(tmp_path))
    assert len({style["marker"] for style in styles.values()}) == len(styles)
    assert all(float(style["color"]) <= 0.6 for style in styles.values())  # greys, none faint


def test_quality_falls_where_layers_go(tmp_path, figures):
    MadeUpRun(score=0.5, **AUTOREGRESSIVE).write(tmp_path)
    MadeUpRun(plan=angular_plan(2), score=0.3, **AUTOREGRESSIVE).write(tmp_path)
    MadeUpRun(plan=random_plan(0.2, 1), score=0.1, **AUTOREGRESSIVE).write(tmp_path)
    runs = read(tmp_path)
    make_plots(runs, "rouge-l", tmp_path)
    drawn = {}
    for container in panel(figures["quality_by_layers_removed"]).containers:
        line, _, (bars,) = container.lines
        ((x, y),) = zip(*line.get_data(), strict=True)
        ((_, low), (_, high)) = bars.get_segments()[0]
        assert low < y < high
        drawn[round(x)] = y
    removed = {run.removed_layers: run.metric("predicted_text", "rouge-l") for run in runs}
    assert drawn == pytest.approx(removed)


def test_an_interval_that_ends_at_zero_is_drawn_to_zero(tmp_path, figures):
    run = MadeUpRun(plan=angular_plan(2), score=0.0, **AUTOREGRESSIVE)
    run.write(tmp_path)
    make_plots(read(tmp_path), "rouge-l", tmp_path)
    (container,) = panel(figures["quality_by_layers_removed"]).containers
    assert container.lines[2][0].get_segments()[0][0][1] == 0


def test_acceptance_is_drawn_by_position_and_averaged_over_seeds(tmp_path, figures):
    study(tmp_path)
    runs = read(tmp_path)
    make_plots(runs, "rouge-l", tmp_path)
    lines = panel(figures["acceptance_by_draft_position"]).get_lines()
    assert len(lines) == 4
    seeds = [
        run.metric("acceptance_rate", "by_position")
        for run in runs
        if run.method == "random" and run.num_speculations
    ]
    expected = [sum(pair) / 2 for pair in zip(*seeds, strict=True)]
    assert lines[-1].get_ydata() == pytest.approx(expected)
    assert list(lines[-1].get_xdata()) == [1, 2, 3, 4, 5, 6]


def test_the_map_of_distances_marks_the_block_that_went(tmp_path, figures):
    study(tmp_path)
    make_plots(read(tmp_path), "rouge-l", tmp_path)
    axes = panel(figures["angular_distance"])
    marks = {tuple(int(v[0]) for v in line.get_data()) for line in axes.get_lines()}
    assert marks == {(20, 1), (20, 2)}
    image = axes.get_images()[0].get_array()
    assert image[5, 3] == pytest.approx(5 / 32)
    # Blocks that would take the last layer are no candidates and stay blank.
    assert image.mask[5, 27]
    assert not image.mask[5, 26]


def test_groups_that_cannot_be_compared_get_panels_and_titles_of_their_own(tmp_path, figures):
    for data_seed, dtype in ((0, "float32"), (0, "bfloat16"), (1, "float32")):
        MadeUpRun(plan=angular_plan(1), data_seed=data_seed, runtime={"dtype": dtype}).write(
            tmp_path
        )
    make_plots(read(tmp_path), "rouge-l", tmp_path)
    titles = [axes.get_title() for axes in figures["speed_and_quality"].axes[:3]]
    assert len(set(titles)) == 3
    assert all(title.startswith("human_eval\nprompts ") for title in titles)
    assert sum("dtype float32" in title for title in titles) == 2


def test_more_groups_than_panels_are_told_of(tmp_path, figures):
    study(tmp_path, data_seeds=plots.PANELS + 1)
    notes = make_plots(read(tmp_path), "rouge-l", tmp_path)
    assert "speed_and_quality shows 12 of 13 groups of comparable runs" in notes[1]


def test_older_logs_and_runs_without_drafts_leave_plots_out(tmp_path, figures):
    MadeUpRun().write(tmp_path)
    make_plots(read(tmp_path), "rouge-l", tmp_path)
    assert set(figures) == {"speed_and_quality"}
    figures.clear()
    older = [dataclasses.replace(run, record=None) for run in read(tmp_path)]
    assert make_plots(older, "rouge-l", tmp_path) == []
    assert figures == {}


@pytest.mark.parametrize("quality", ["rouge-l", "edit_distance"])
def test_no_text_overlaps(tmp_path, figures, quality):
    """Titles, labels, ticks and keys of a full page, as they are laid out."""
    for number, dataset in enumerate(("cnn_dm_lm", "human_eval", "xsum_summarization", "top_v2")):
        for plan in (base_plan(), *map(angular_plan, (1, 2, 3)), random_plan(0.2, 1)):
            for decoder in (AUTOREGRESSIVE, SPECULATIVE):
                run = MadeUpRun(dataset, plan, **decoder, score=0.1 + number / 10)
                run.write(tmp_path)
    make_plots(read(tmp_path), quality, tmp_path)
    for figure in figures.values():
        assert overlapping(figure) == []


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [*figure.legends[0].get_texts(), figure._suptitle]
    for axes in figure.axes:
        if axes.get_visible():
            texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
                texts += [label for place, label in ticks if low <= place <= high]
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in texts
        if text.get_text() and text.get_visible()
    ]
    return [
        (one, other)
        for index, (one, box) in enumerate(boxes)
        for other, other_box in boxes[index + 1 :]
        if box.overlaps(other_box)
    ]
