"""Plots show the runs' numbers; notes say what is left out."""

import random
from itertools import combinations

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import heat_maps, plots
from analysis.comparison import pareto_front
from analysis.figures import BLACK, PALETTE, NamedPoint, Panel, make_figure
from analysis.older_logs import read_objects
from analysis.plan_styles import plan_styles
from analysis.plots import make_plots
from benchmarks.made_up_runs import MadeUpRun, angular_plan, base_plan, random_plan
from tests.analysis.test_older_logs import four
from tests.made_up import AUTOREGRESSIVE, SPECULATIVE, read


def study(folder):
    seeded = [random_plan(0.2, seed) for seed in (1, 2)]
    for plan in (base_plan(), angular_plan(1), angular_plan(2), *seeded):
        for decoder in (AUTOREGRESSIVE, SPECULATIVE):
            MadeUpRun(plan=plan, examples=4, **decoder).write(folder)


def panel(figure):
    return figure.axes[0]


def test_axes_carry_units_and_keys_name_every_plan(tmp_path, figures):
    study(tmp_path)
    assert make_plots(read(tmp_path), "rouge-l", tmp_path) == []
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
    marks = ["lossless: no layer removed", "Pareto front of speed and quality"]
    assert keys == ["autoregressive", "self-speculative", *plans, *marks]


def test_plans_differ_in_shape_and_not_in_colour_alone(tmp_path):
    study(tmp_path)
    styles = plan_styles(read(tmp_path))
    for part in ("marker", "color", "linestyle"):
        assert len({style[part] for style in styles.values()}) == len(styles)


def linear(colour):
    rgb = numpy.array(to_rgb(colour))
    return numpy.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


# Machado, Oliveira and Fernandes (2009): what readers without green cones see.
DEUTERANOPIA = numpy.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)
TO_XYZ = numpy.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(rgb):
    x, y, z = numpy.cbrt(numpy.clip(TO_XYZ @ rgb, 0, 1) / (0.9505, 1.0, 1.089))
    return numpy.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_are_told_apart_without_green_cones_and_on_white_paper():
    colours = [linear(colour) for colour in (BLACK, *PALETTE)]
    seen = [lab(numpy.clip(DEUTERANOPIA @ colour, 0, 1)) for colour in colours]
    distances = [numpy.linalg.norm(one - other) for one, other in combinations(seen, 2)]
    assert min(distances) > 15
    luminances = [TO_XYZ[1] @ colour for colour in colours]
    assert all(1.05 / (luminance + 0.05) >= 2.9 for luminance in luminances)


numbers = st.integers(0, 6).map(float)


@given(st.lists(st.tuples(numbers, numbers)), st.booleans())
def test_nobody_on_the_front_is_dominated_and_everybody_off_it_is(points, less_is_better):
    def dominates(one, other):
        faster, better = one[0] - other[0], one[1] - other[1]
        better = -better if less_is_better else better
        return faster >= 0 and better >= 0 and (faster > 0 or better > 0)

    on_front = pareto_front(points, less_is_better)
    assert len(on_front) == len(points)
    for point, on in zip(points, on_front, strict=True):
        assert on != any(dominates(other, point) for other in points)


def named(points):
    """Return a figure of one panel with these points, and its labels."""

    def draw(axes):
        for x, y, _ in points:
            axes.plot(x, y, "o", markersize=5)
        return [NamedPoint(*point) for point in points]

    figure = make_figure([Panel("title", draw)], [], "heading")
    return figure, [text for text in panel(figure).texts if text.get_gid() == "point label"]


def boxes_of(figure, texts):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [Text.get_window_extent(text, canvas.get_renderer()) for text in texts]


@pytest.mark.parametrize("spread", [1.0, 0.01])
def test_few_points_are_named_beside_each_other_and_many_are_not(spread):
    draws = random.Random(3)
    points = [(draws.random() * spread, draws.random(), f"angular n={n}") for n in range(12)]
    figure, labels = named(points)
    assert len(labels) >= 10
    boxes = boxes_of(figure, labels)
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    frame = panel(figure).bbox
    for box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1
        for x, y, _ in points:
            assert not box.contains(*panel(figure).transData.transform((x, y)))
    assert named([*points, (0.5, 0.5, "one too many")])[1] == []


def test_no_empty_panel_is_drawn_where_the_grid_has_a_place_left():
    panels = [Panel(str(number), lambda axes: None) for number in range(8)]
    figure = make_figure(panels, [], "heading")
    assert [axes.get_visible() for axes in figure.axes] == [True] * 8 + [False]


def test_numbers_on_a_heat_map_can_be_read():
    for place in numpy.linspace(0, 1, 21):
        colour = numpy.array(colormaps[heat_maps._COLOURS](place))
        ink = TO_XYZ[1] @ linear(heat_maps.readable_on(place))
        paper = TO_XYZ[1] @ linear(colour[:3])
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5


def test_points_that_coincide_share_a_label():
    _, labels = named([(1, 1, "base"), (1, 1, "angular n=1"), (2, 2, "angular n=2")])
    assert [label.get_text() for label in labels] == ["base\nangular n=1", "angular n=2"]


def test_whole_models_are_marked_and_the_front_is_drawn(tmp_path, figures):
    for plan, seconds in ((base_plan(), 1.0), (angular_plan(1), 0.8), (angular_plan(2), 2.0)):
        score = 0.2 if seconds == 2.0 else seconds / 2
        MadeUpRun(plan=plan, seconds=seconds, score=score, **AUTOREGRESSIVE).write(tmp_path)
    runs = read(tmp_path)
    make_plots(runs, "rouge-l", tmp_path)
    axes = panel(figures["speed_and_quality"])
    points = {
        run.param: (
            run.metric("tokens_per_second", "token_weighted"),
            run.metric("predicted_text", "rouge-l"),
        )
        for run in runs
    }
    (front,) = [line for line in axes.get_lines() if line.get_gid() == "front"]
    assert list(zip(*front.get_data(orig=True), strict=True)) == [points[""], points["n=1"]]
    rings = [line for line in axes.get_lines() if line.get_markersize() == 15]
    assert [(*ring.get_xdata(), *ring.get_ydata()) for ring in rings] == [points[""]]
    assert {text.get_text() for text in axes.texts} == {"base", "angular n=1", "angular n=2"}


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
    MadeUpRun(plan=angular_plan(2), score=0.0, **AUTOREGRESSIVE).write(tmp_path)
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


def test_the_map_of_distances_marks_the_removed_block(tmp_path, figures):
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


def test_a_title_leaves_out_what_a_group_has_no_value_of(tmp_path, figures):
    for ngrams in (None, 3):
        MadeUpRun(generation={"no_repeat_ngram_size": ngrams}, examples=4).write(tmp_path)
    make_plots(read(tmp_path), "rouge-l", tmp_path)
    titles = {axes.get_title() for axes in figures["speed_and_quality"].axes[:2]}
    assert titles == {"human_eval", "human_eval\nno_repeat_ngram_size 3"}


def test_more_groups_than_panels_leave_a_note(tmp_path, figures, monkeypatch):
    monkeypatch.setattr(plots, "PANELS", 1)
    for data_seed in range(2):
        MadeUpRun(data_seed=data_seed, examples=4).write(tmp_path)
    (note,) = make_plots(read(tmp_path), "rouge-l", tmp_path)
    assert "speed_and_quality shows 1 of 2 groups of comparable runs" in note
    assert len(figures["speed_and_quality"].axes) == 1


def test_older_logs_and_runs_without_drafts_leave_plots_out(tmp_path, figures):
    MadeUpRun().write(tmp_path)
    make_plots(read(tmp_path), "rouge-l", tmp_path)
    assert set(figures) == {"speed_and_quality"}
    figures.clear()
    assert make_plots([read_objects(four(), tmp_path)], "rouge-l", tmp_path) == []
    assert figures == {}


@pytest.mark.parametrize("quality", ["rouge-l", "edit_distance"])
def test_no_text_overlaps(tmp_path, figures, quality):
    """Titles, labels, ticks and keys of a full page."""
    for number, dataset in enumerate(("cnn_dm_lm", "human_eval", "xsum_summarization", "top_v2")):
        for plan in (base_plan(), *map(angular_plan, (1, 2, 3)), random_plan(0.2, 1)):
            for decoder in (AUTOREGRESSIVE, SPECULATIVE):
                run = MadeUpRun(dataset, plan, **decoder, score=0.1 + number / 10, examples=4)
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
