"""The plans of a grid, and the pruned drafters that they make for the unpruned model."""

import itertools
import shlex

import pytest

import sweep
from analysis import sweep_report
from analysis.comparison import SAME_PLAN, compare
from analysis.logged_runs import find_logged_runs
from analysis.plan_uses import plan_uses
from analysis.run_commands import command_of
from arguments.pruning import METHODS, PATCHES
from arguments.run import MEASURED_GROUPS, RunArguments
from command_line.errors import UsageError
from command_line.flags import parse
from command_line.script import run_script
from pruning.plan import PrunePlan
from runs import sweep_runs
from runs.definition import define_run
from runs.reader import find_runs, read_record, read_samples
from runs.sweep_states import plan_name
from tests.conftest import common_flags

BY_NUMBER = [name for name, method in METHODS.items() if "prune_n" in method.needs]
MODEL = ["--model", "synthetic:llama", "--dataset", "human_eval"]


@pytest.fixture(autouse=True)
def without_maps(monkeypatch):
    monkeypatch.setattr(sweep_report, "make_heat_maps", lambda *_: None)


def swept(line):
    return sweep.parse_sweep([*MODEL, *line.split()])


def plans(line):
    return [run.prune for run in swept(line).first_runs()]


def names(line):
    return [plan_name(plan) for plan in plans(line)]


def test_every_criterion_by_number_has_a_plan_for_each_number_and_patch():
    line = f"--prune_methods base {' '.join(BY_NUMBER)} --prune_ns 2 3 2 --prune_seeds 7"
    line += f" --prune_patches {' '.join(PATCHES)}"
    found = [(one.prune_method, one.prune_n, one.prune_patch) for one in plans(line)]
    assert found[0] == ("base", None, "none")
    assert found[1:] == list(itertools.product(BY_NUMBER, (2, 3), PATCHES))


def test_random_plans_have_three_seeds_from_the_seed_on():
    assert names("--prune_methods random --prune_ns 4") == [
        f"random n=4 seed={seed}" for seed in (42, 43, 44)
    ]
    by_seed = names("--prune_methods random --dropout_thresholds 0.1 --prune_seed 7")
    assert by_seed == [f"random p=0.1 seed={seed}" for seed in (7, 8, 9)]


def test_random_plans_go_by_thresholds_unless_both_lists_are_asked_for():
    """Commands of earlier sweeps, whose numbers were those of angular plans, mean what they did."""
    line = "--prune_methods angular random --prune_ns 2 --dropout_thresholds 0.3 --prune_seeds 1"
    assert names(line) == ["angular n=2", "random p=0.3 seed=1"]
    both = names(f"{line} --random_by prune_n dropout_threshold")
    assert both == ["angular n=2", "random n=2 seed=1", "random p=0.3 seed=1"]


def test_each_word_of_layers_is_a_plan():
    assert names("--prune_methods layers --prune_layers 21,22,25 3,4 --prune_patches folded") == [
        "layers [21-22, 25] + folded",
        "layers [3-4] + folded",
    ]


def test_layers_named_in_another_order_are_one_plan():
    line = "--prune_methods layers --prune_layers 3,4 4,3 1 3,4 --num_speculations_last 1"
    assert [plan.prune_layers for plan in plans(line)] == ["3,4", "1"]


@pytest.mark.parametrize("patch", [None, *PATCHES[1:]])
def test_a_plan_is_named_before_it_is_known_as_its_log_names_it(patch):
    line = f"--prune_methods layers last --prune_layers 2,5,6 --prune_ns 2 --prune_patches {patch}"
    logged = [
        PrunePlan("layers", 9, (0, 1, 3, 4, 7, 8), patch=patch),
        PrunePlan("last", 9, (0, 1, 2, 3, 4, 5, 8), prune_n=2, patch=patch),
    ]
    assert names(line.replace("None", "none")) == [plan.approach for plan in logged]


def test_only_plans_that_measure_name_a_calibration():
    line = "--prune_methods base last angular --prune_ns 2 --prune_patches none linear "
    line += "--calibration_dataset top_v2 --calibration_text generated --calibration_steps 9"
    for plan in plans(line):
        named = plan.calibration_dataset, plan.calibration_text, plan.calibration_steps
        expected = ("top_v2", "generated", 9) if plan.calibrates() else (None, "prompts", None)
        assert named == expected
        plan.check()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--prune_methods last", "--prune_methods last: needs --prune_ns"),
        ("--prune_methods random", "random: needs --dropout_thresholds or --prune_ns"),
        ("--prune_methods layers", "--prune_methods layers: needs --prune_layers"),
        ("--prune_methods layers --prune_layers 3,3", "--prune_layers 3,3: names layer 3 twice"),
        ("--prune_methods layers --prune_layers 3;4", "'3;4': must be layers with commas"),
        ("--prune_layers 3 4", "--prune_layers 3 4: only with --prune_methods layers"),
        ("--prune_ns 2", "--prune_ns 2: only with --prune_methods angular, random, last"),
        ("--prune_seeds 1 2", "--prune_seeds 1 2: only with --prune_methods random"),
        ("--random_by prune_n", "--random_by prune_n: only with --prune_methods random"),
        (
            "--prune_methods random --dropout_thresholds 0.1 --random_by prune_n",
            "--random_by prune_n: needs --prune_ns",
        ),
        (
            "--prune_methods random --dropout_thresholds 0.1 --prune_ns 2",
            "--prune_ns 2: only with --random_by dropout_threshold prune_n",
        ),
        ("--prune_patches linear", "--prune_patches linear: --prune_methods base removes nothing"),
        (
            "--prune_methods last --prune_ns 2 --calibration_text generated",
            "--calibration_text generated: only with criteria that measure",
        ),
        (
            "--prune_methods last --prune_ns 2 --drafters pruned",
            "--drafters pruned: needs base among --prune_methods",
        ),
        ("--drafters pruned", "--drafters pruned: needs a criterion among --prune_methods"),
        (
            "--prune_methods base last --prune_ns 2 --drafters pruned --exit_layer_first 3",
            "--exit_layer_first 3: only with --drafters early_exit",
        ),
        (
            "--prune_methods base last --prune_ns 2 --drafters pruned --quality_samples 3 "
            "--speed_samples 0",
            "--drafters pruned: drafts nothing with --speed_samples 0",
        ),
    ],
)
def test_flags_without_use_are_one_line(line, message):
    with pytest.raises(UsageError) as caught:
        swept(line)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prune_layers", "3,6"], "--prune_layers 3,6: names layer 6, and layers are 0 to 5"),
        (["--prune_layers", "0,1,2,3,4,5"], "removes all layers of the model"),
    ],
)
def test_layers_that_the_model_lacks_are_refused_before_it_is_read(
    run_sweep, flags, message, monkeypatch, capsys
):
    monkeypatch.setattr(sweep_runs, "load_model", None)
    assert run_sweep("--prune_methods", "layers", *flags)[0] == 2
    assert message in capsys.readouterr().err


def test_a_pruned_drafter_is_decided_by_the_flags_of_its_plan():
    line = "--prune_methods base angular random --prune_ns 2 --dropout_thresholds 0.1 "
    line += "--drafters pruned --prune_patches linear --quality_samples 9 --speed_samples 3"
    arguments = swept(line)
    base, *pruned = arguments.first_runs()
    verifier = arguments.baseline(base)
    for first in pruned:
        model = arguments.baseline(first)
        drafting = list(arguments.pruned_drafts(verifier, model.prune))
        assert [run.generation.num_speculations for run in drafting] == [1, 2, 3, 4, 5, 6]
        for run in drafting:
            # A plan as a model and as a drafter is one plan: same flags, seed and calibration.
            assert run.draft.pruning(run.prune) == model.prune
            assert run.prune.prune_method == "base"
            assert run.data == verifier.data == model.data
            assert run.generation.exit_layer == -1
            run.draft.check()


GRID = ["--num_speculations_first", "3", "--prune_methods", "base", "last", "random"]
PRUNED = [*GRID, "--prune_ns", "2", "--dropout_thresholds", "0.001", "--prune_seeds", "1"]


def test_a_dry_run_lists_pruned_drafts_beside_the_base_runs(run_sweep, capsys):
    flags = ["--drafters", "pruned", "early_exit", "--exit_layer_first", "4", "--dry_run", "true"]
    assert run_sweep(*PRUNED, *flags)[0] == 0
    lines = [
        line.partition("missing   custom_jsonl, ")[2]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert lines[:-1] == [
        "base, autoregressive",
        "base, exit layer 4, 3 drafts",
        "base, pruned draft last n=2, 3 drafts",
        "base, pruned draft random p=0.001 seed=1, 3 drafts",
        "last n=2, autoregressive",
        "last n=2, exit layer 4, 3 drafts",
        "random p=0.001 seed=1, autoregressive",
        "random p=0.001 seed=1, exit layer 4, 3 drafts",
    ]


def test_new_criteria_run_as_models(run_sweep):
    methods = ["--prune_methods", "last", "layers", "random", "--prune_ns", "2"]
    flags = ["--prune_layers", "1,3", "--exit_layer_first", "4", "--num_speculations_first", "3"]
    code, folder = run_sweep(*methods, *flags)
    assert code == 0
    found = {}
    for path in find_runs(folder):
        record = read_record(path)
        found.setdefault(record.plan["approach"], []).append(record.prune_plan().removed_layers)
    assert {name: runs[0] for name, runs in found.items() if "random" not in name} == {
        "last n=2": (3, 4),
        "layers [1, 3]": (1, 3),
    }
    randoms = [runs for name, runs in found.items() if name.startswith("random n=2 seed=4")]
    assert [len(runs) for runs in found.values()] == [2] * 5
    assert len(randoms) == 3
    assert all(len(removed) == 2 for runs in randoms for removed in runs)


def test_plans_draft_for_the_unpruned_model_as_the_benchmark_would(run_sweep, run):
    """One plan for both uses: the same layers, and the unpruned model's own output."""
    methods = ["--prune_methods", "base", "last", "angular", "random", "--prune_ns", "2"]
    methods += ["--prune_seeds", "1", "--calibration_samples", "4", "--num_speculations_first", "3"]
    code, folder = run_sweep(*methods, "--drafters", "pruned", "early_exit")
    assert code == 0
    models, drafts, outputs = {}, {}, {}
    for path in find_runs(folder):
        record = read_record(path)
        outputs[record.run_id] = [one.output_ids for one in read_samples(path)]
        strategy = record.identity["generation"]["generation_strategy"]
        if record.draft_plan:
            drafts[record.drafter_plan().approach] = record
        elif strategy == "autoregressive":
            models[record.prune_plan().approach] = record
    assert set(drafts) == set(models) - {"base"} == {"last n=2", "angular n=2", "random n=2 seed=1"}
    for name, record in drafts.items():
        assert record.drafter_plan() == models[name].prune_plan()
        assert record.plan["method"] == "base"
        assert outputs[record.run_id] == outputs[models["base"].run_id]
        assert record.metrics["acceptance_rate"]["token_weighted"] is not None
    greedy = ["--sample", "false", "--max_steps", "8", "--random_shuffle", "true"]
    drafting = ["--generation_strategy", "self_speculative", "--num_speculations", "3"]
    drafting += ["--drafter", "pruned", "--draft_prune_n", "2", "--draft_prune_method"]
    for method, seed in (("last", "42"), ("angular", "42"), ("random", "1")):
        flags = ["--prune_seed", seed, "--calibration_samples", "4"]
        _, alone, _ = run(*greedy, *drafting, method, *flags, samples="2")
        assert alone.run_id in {record.run_id for record in drafts.values()}
    for logged in (one for one in find_logged_runs([folder]).runs if one.drafter):
        logged.record.command = "sweep.py"  # pytest is no sweep
        words = shlex.split(command_of(logged))[2:]
        repeated = RunArguments(*parse(words, "", *MEASURED_GROUPS))
        assert define_run(repeated, None).run_id == logged.record.run_id
    table = (folder / "sweep.csv").read_text()
    assert table.count("angular n=2") == 1
    assert run_sweep(*methods, "--drafters", "pruned", "early_exit")[0] == 0


def test_quality_and_drafts_of_a_plan_are_of_one_calibration(checkpoint, rows, tmp_path):
    flags = ["--prune_methods", "base", "angular", "--prune_ns", "2", "--calibration_samples", "4"]
    flags += ["--drafters", "pruned", "--num_speculations_first", "3", "--repeats", "2"]
    flags += ["--num_speculations_last", "3", "--sample", "false", "--max_steps", "8"]
    split = ["--quality_samples", "4", "--speed_samples", "2"]
    folder = tmp_path / "logs"
    line = [*common_flags(checkpoint, rows, folder), *flags, *split]
    assert run_script(sweep.main, line) == 0
    uses = {use.name: use for use in plan_uses(compare(find_logged_runs([folder]).runs))}
    assert set(uses) == {"base", "angular n=2"}
    use = uses["angular n=2"]
    (draft,) = use.drafts
    assert use.model.run.kept_layers == draft.run.drafter.kept_layers
    assert draft.speedup(SAME_PLAN) and draft.run.record.passes == 2
    assert use.quality("nats_per_token") == use.model.quality.run.quality("nats_per_token")


def test_a_drafter_that_keeps_every_layer_is_named_and_skipped(run_sweep, capsys):
    code, folder = run_sweep(*PRUNED, "--drafters", "pruned", "early_exit")
    assert code == 0
    drafted = [read_record(path).draft_plan for path in find_runs(folder)]
    assert [plan["approach"] for plan in drafted if plan] == ["last n=2"]
    out = capsys.readouterr().out
    line = "skipped: custom_jsonl, base, pruned draft random p=0.001 seed=1: keeps every layer"
    assert line in out
