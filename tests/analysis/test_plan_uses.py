"""Plans measured twice: as models, and as drafters of the unpruned model."""

import csv
import json

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

import analyze_logs
from analysis.comparison import SAME_PLAN, compare, spread_over_seeds
from analysis.plan_names import METHODS
from analysis.plan_styles import METHOD_STYLES
from analysis.plan_tables import plans_table
from analysis.plan_uses import correlations, plan_uses, spearman
from analysis.plots import make_plots
from analysis.report import page
from analysis.row_parts import facts, order, run_columns
from analysis.tables import make_tables
from arguments.pruning import PRUNE_METHODS
from benchmarks.made_up_plans import plan_of
from benchmarks.made_up_runs import MadeUpRun, base_plan
from command_line.script import run_script
from pruning.plan import PrunePlan
from tests.analysis.pages import make_report
from tests.analysis.test_plots import overlapping
from tests.conftest import rewritten
from tests.made_up import AUTOREGRESSIVE, read

MEASURED = [name for name in METHODS if name not in ("base", "random", "layers")]


def write_study(folder, methods=("angular", "last"), ns=(2, 4), seeds=(1, 2, 3), k=(2, 4)):
    """Write each plan as a model, and as a drafter of base; fewer layers are worse at both."""
    MadeUpRun(nats=2.0, **AUTOREGRESSIVE).write(folder)
    MadeUpRun(exit_layer=8, num_speculations=2, seconds=0.9).write(folder)
    plans = [plan_of(method, n) for method in methods for n in ns]
    plans += [plan_of("random", n, seed) for n in ns for seed in seeds]
    for place, plan in enumerate(plans):
        lost = len(plan.removed_layers) + place / 100
        MadeUpRun(plan=plan, nats=2 + lost / 4, seconds=1 - lost / 40).write(folder)
        for drafts in k:
            run = MadeUpRun(draft_plan=plan, num_speculations=drafts, acceptance=1 - lost / 8)
            run.seconds = 0.5 + drafts / 100
            run.write(folder)
    return plans


def compared(folder):
    return compare(read(folder))


def test_every_criterion_has_a_place_and_a_look_of_its_own():
    assert set(METHODS) == set(METHOD_STYLES) == set(PRUNE_METHODS)
    for part in ("marker", "color"):
        assert len({style[part] for style in METHOD_STYLES.values()}) == len(METHODS)


def test_a_plan_is_its_own_model_and_its_own_drafter(tmp_path):
    plans = write_study(tmp_path)
    found = {use.name: use for use in plan_uses(compared(tmp_path))}
    assert set(found) == {"base", *(plan.approach for plan in plans)}
    for plan in plans:
        use = found[plan.approach]
        assert use.model.run.kept_layers == plan.kept_layers == use.plan.kept_layers
        assert {one.run.drafter.name for one in use.drafts} == {plan.approach}
        assert sorted(one.run.num_speculations for one in use.drafts) == [2, 4]
        for one in use.drafts:
            # Beside the unpruned model, whatever drafts.
            assert one.baselines[SAME_PLAN].method == "base"
            assert one.baselines[SAME_PLAN].strategy == "autoregressive"
        assert use.best_draft.run.num_speculations == 2  # the faster one
    (early,) = found["base"].drafts
    assert (early.run.exit_layer, early.run.drafter) == (8, None)


def test_the_log_perplexity_ratio_is_of_all_tokens_of_the_shared_prompts(tmp_path):
    write_study(tmp_path, methods=("angular",), ns=(4,), seeds=())
    (use,) = [use for use in plan_uses(compared(tmp_path)) if use.method == "angular"]
    sums = [one.examples.teacher_forced for one in read(tmp_path)]
    base, pruned = sorted(one["nats"].sum() / one["tokens"].sum() for one in sums if one)
    ratio = use.log_perplexity_ratio
    assert ratio.value == pytest.approx(pruned - base)
    assert ratio.low < ratio.value < ratio.high


def test_drafters_of_other_layers_are_never_merged(tmp_path):
    """Another calibration may give another plan the same name."""
    for layers in ((5, 6), (7, 8)):
        plan = plan_of("angular", 2)
        kept = tuple(layer for layer in range(32) if layer not in layers)
        values = plan.to_dict() | {"kept_layers": kept}
        run = MadeUpRun(draft_plan=type(plan).from_dict(values), num_speculations=2)
        run.identity = {"draft_plan": layers}
        run.write(tmp_path)
    MadeUpRun(exit_layer=8, num_speculations=2).write(tmp_path)
    MadeUpRun().write(tmp_path)
    runs = [run for run in read(tmp_path) if run.num_speculations]
    assert len({run.decoder for run in runs}) == 3
    uses = plan_uses(compared(tmp_path))
    assert sorted(len(use.drafts) for use in uses) == [1, 1, 1]


def fitted_to(texts, patch="linear"):
    values = plan_of("last", 2, patch=patch).to_dict()
    return PrunePlan.from_dict(values | {"calibration": {"fingerprint": texts}})


def test_patches_of_other_texts_are_other_models_and_other_drafters(tmp_path):
    """Both have one name; outputs of one patch must not count against those of another."""
    for texts in ("a", "b"):
        plan = fitted_to(texts)
        for flags in (AUTOREGRESSIVE, {"exit_layer": 8, "num_speculations": 2}):
            run = MadeUpRun(plan=plan, **flags)
            run.identity = {"plan": ["linear", texts]}
            run.write(tmp_path)
        run = MadeUpRun(draft_plan=plan, num_speculations=2)
        run.identity = {"draft_plan": texts}
        run.write(tmp_path)
    MadeUpRun(**AUTOREGRESSIVE).write(tmp_path)
    found = compared(tmp_path)
    for one in found:
        if one.run.strategy == "self_speculative" and one.run.method == "last":
            assert one.baselines[SAME_PLAN].record.plan == one.run.record.plan
    uses = [use for use in plan_uses(found) if use.method == "last"]
    assert sorted(use.plan.key[2] for use in uses) == ["a", "b"]
    for use in uses:
        assert use.model.run.record.plan["calibration"]["fingerprint"] == use.plan.key[2]
        (draft,) = use.drafts
        assert draft.run.record.draft_plan["calibration"]["fingerprint"] == use.plan.key[2]


def test_an_unpatched_model_is_no_baseline_of_a_patched_one(tmp_path):
    MadeUpRun(plan=fitted_to("a"), exit_layer=8, num_speculations=2).write(tmp_path)
    MadeUpRun(plan=plan_of("last", 2), **AUTOREGRESSIVE).write(tmp_path)
    (one,) = [one for one in compared(tmp_path) if one.run.strategy == "self_speculative"]
    assert SAME_PLAN in one.missing
    assert one.equal_outputs is None


def test_rows_name_what_drafts_in_place_of_an_exit_layer(tmp_path):
    write_study(tmp_path, methods=("angular",), ns=(10, 2), seeds=())
    runs = sorted(read(tmp_path), key=order)
    show = run_columns(runs)["strategy"]
    assert [show(facts(run)) for run in runs if run.method == "base"] == [
        "autoregressive",
        "self_speculative E=8 k=2",
        *(f"pruned draft: angular n={n}, k={k}" for n in (2, 10) for k in (2, 4)),
    ]
    drafting = [facts(run) for run in runs if run.drafter]
    assert {(row["drafter"], row["drafter_layers"]) for row in drafting} == {
        ("angular n=2", 30),
        ("angular n=10", 22),
    }


def test_seeds_of_random_drafters_have_a_spread(tmp_path):
    write_study(tmp_path, methods=(), ns=(2,))
    groups = spread_over_seeds(compared(tmp_path))
    assert [sorted(group) for group in groups] == [[1, 2, 3]] * 3  # as models, and of both lengths
    table = plans_table(compared(tmp_path))
    *seeds, together = [row for row in table.rows if row["approach"] == "random"]
    assert together["param"] == "n=2, 3 seeds [range]"
    for name in ("acceptance_rate", "speedup_as_model", "log_perplexity_ratio"):
        values = [row[name] for row in seeds]
        assert together[name] == pytest.approx(numpy.mean(values))
        assert (together[f"{name}_low"], together[f"{name}_high"]) == (min(values), max(values))


def test_predicted_over_measured_is_of_the_same_run(tmp_path):
    write_study(tmp_path, methods=("last",), ns=(2,), seeds=())
    (row,) = [row for row in plans_table(compared(tmp_path)).rows if row["approach"] == "last"]
    (best,) = [
        one
        for one in compared(tmp_path)
        if one.run.drafter and one.run.num_speculations == row["num_speculations"]
    ]
    predicted = best.run.metric("speedup_over_full_steps", "predicted")
    assert row["predicted_over_measured"] == pytest.approx(predicted / best.speedup(SAME_PLAN))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12))
def test_spearman_is_scipys_and_lies_in_its_interval(points):
    x, y = numpy.array(points, dtype=float).T
    found = spearman(x, y)
    if not (numpy.ptp(x) and numpy.ptp(y)):
        assert found is None
        return
    assert found.value == pytest.approx(spearmanr(x, y).statistic)
    assert (found.low is None) == (len(points) < 5)
    if found.low is not None:
        assert -1 - 1e-9 <= found.low <= found.high <= 1 + 1e-9


def test_plans_that_lose_more_draft_worse(tmp_path):
    plans = write_study(tmp_path, ns=(1, 3, 5, 7), seeds=())
    found = correlations(plan_uses(compared(tmp_path)))
    assert [(one.length, one.plans) for one in found] == [(2, len(plans)), (4, len(plans))]
    for one in found:
        assert -1 <= one.coefficient.low <= one.coefficient.value < -0.7


def test_plans_that_make_one_model_are_one_in_the_correlation(tmp_path, figures):
    """Criteria that agree are no further evidence; a patch makes another model."""
    write_study(tmp_path, methods=("last",), ns=(1, 2, 3), seeds=())
    before = correlations(plan_uses(compared(tmp_path)))
    same = PrunePlan.from_dict(plan_of("last", 3).to_dict() | {"method": "taylor", "scores": None})
    for plan in (same, plan_of("last", 3, patch="linear")):
        MadeUpRun(plan=plan, nats=2.75).write(tmp_path)
        MadeUpRun(draft_plan=plan, num_speculations=2, acceptance=0.5).write(tmp_path)
    found = compared(tmp_path)
    assert [one.plans for one in before] == [3, 3]
    assert [one.plans for one in correlations(plan_uses(found))] == [4, 3]
    make_plots(read(tmp_path), "rouge-l", tmp_path, found)
    (title,) = [axes.get_title() for axes in figures["plan_correlation"].axes]
    assert "4 distinct plans" in title


def test_without_drafters_there_is_no_correlation(tmp_path):
    write_study(tmp_path, k=())
    assert correlations(plan_uses(compared(tmp_path))) == []
    names = {table.name for table in make_tables(read(tmp_path), compared(tmp_path))}
    assert "plan_correlations" not in names


def test_plots_of_all_criteria_can_be_read(tmp_path, figures):
    write_study(tmp_path, MEASURED, ns=(2, 6), k=(2,))
    for patch in ("linear", "folded"):
        plan = plan_of("last", 2, patch=patch)
        MadeUpRun(plan=plan, nats=2.2).write(tmp_path)
        MadeUpRun(draft_plan=plan, num_speculations=2, acceptance=0.7).write(tmp_path)
    assert make_plots(read(tmp_path), "rouge-l", tmp_path, compared(tmp_path)) == []
    for figure in figures.values():
        assert overlapping(figure) == []
    titles = [axes.get_title() for axes in figures["plan_correlation"].axes]
    assert len(titles) == 1
    assert f"{len(MEASURED) * 2 + 6 + 2} distinct plans" in titles[0]
    assert titles[0].splitlines()[1].startswith("Spearman -0.")
    assert len(figures["plan_uses"].axes) == 3


def test_scores_mark_the_layers_that_plans_remove(tmp_path, figures):
    plans = [plan_of("taylor", n) for n in (2, 4)]
    for plan in plans:
        MadeUpRun(plan=plan).write(tmp_path)
    MadeUpRun(draft_plan=plan_of("perplexity", 3), num_speculations=2).write(tmp_path)
    make_plots(read(tmp_path), "rouge-l", tmp_path, compared(tmp_path))
    search, layers = sorted(figures["layer_scores"].axes, key=lambda axes: axes.get_title())
    marks = {int(text.xy[0]): int(text.get_text()) for text in layers.texts}
    two, four = (set(plan.removed_layers) for plan in plans)
    assert marks == dict.fromkeys(two, 2) | dict.fromkeys(four - two, 4)
    assert len(search.get_lines()[0].get_xdata()) == 1 + 3  # the whole model, and each step


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("taylor", {"layers": [0.1, 0.2]}),
        ("magnitude", {"layers": ["much"] * 32}),
        ("block_influence", {"order": [0, 0]}),
        ("taylor", {"order": [32]}),
        ("perplexity", {"steps": [{"layer": 40, "perplexity": 1.0}]}),
        ("perplexity", {"steps": [{"layer": 4, "perplexity": "low"}]}),
        ("perplexity", {"steps": [{}]}),
        ("perplexity", {"perplexity": "low"}),
        ("angular", {"distances": [1]}),
    ],
)
@pytest.mark.parametrize("place", ["plan", "draft_plan"])
def test_scores_of_another_kind_are_one_line(tmp_path, capsys, method, change, place):
    more = {} if place == "plan" else {"num_speculations": 2}
    path = MadeUpRun(**{place: plan_of(method, 2)}, **more).write(tmp_path)
    MadeUpRun(dataset="gsm8k").write(tmp_path)
    with rewritten(path) as log:
        log[place]["scores"] |= change
    out = str(tmp_path / "out")
    assert run_script(analyze_logs.main, [str(tmp_path), "--output_dir", out, "--no_plots"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cannot be read" in line]
    assert str(path) in line


@pytest.mark.parametrize("place", ["plan", "draft_plan"])
def test_an_unknown_criterion_is_one_line(tmp_path, capsys, place):
    path = MadeUpRun(draft_plan=plan_of("last", 2), num_speculations=2).write(tmp_path)
    with rewritten(path) as log:
        log[place]["method"] = "magic"
    assert run_script(analyze_logs.main, [str(tmp_path), "--no_plots"]) == 2
    assert "plan by magic, which is no known criterion" in capsys.readouterr().err


def test_files_and_report_hold_the_plans(tmp_path):
    logs, out = tmp_path / "logs", tmp_path / "out"
    write_study(logs, methods=("angular",), ns=(2,), seeds=(1, 2))
    report = tmp_path / "report.html"
    flags = ["--output_dir", str(out), "--report", str(report), "--no_plots"]
    assert run_script(analyze_logs.main, [str(logs), *flags]) == 0
    with (out / "plans.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["approach"] for row in rows] == ["base", "random", "random", "angular", "random"]
    assert (out / "plan_correlations.csv").exists()
    assert "draft angular n=2 k=2" in report.read_text()


def test_a_pruned_drafter_may_lead_the_report(tmp_path):
    MadeUpRun(**AUTOREGRESSIVE).write(tmp_path)
    MadeUpRun(draft_plan=plan_of("last", 2), num_speculations=2, seconds=0.3).write(tmp_path)
    text = page(make_report(tmp_path))
    headline = text.partition('id="headline"')[2].partition('id="plots"')[0]
    assert "base self-speculative draft last n=2 k=2" in headline
    assert json.dumps(base_plan().approach) in text
