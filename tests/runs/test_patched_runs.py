"""Runs fit the patches that flags ask for, once, and measure beside the unpruned model."""

import copy
import json

import pytest
import torch

import benchmark
from arguments.model import ModelArguments
from arguments.pruning import PLAN_FILE, PruneArguments
from command_line.script import run_script
from models.loading import LoadedModel
from pruned_model import PruneModel
from pruning.patch import fit_patch, with_patch
from pruning.plan import PrunePlan
from runs import preparation
from runs.passages import Passage
from runs.plan_group import PlanGroup
from runs.preparation import load_pruned
from runs.reader import find_runs, read_record, read_samples
from runs.teacher_forcing import TeacherForcing
from tests.conftest import GREEDY, LAYERS, SPECULATIVE, random_prompt, timeless
from tests.ranked import scripts_in_ranks
from tests.runs.test_teacher_forcing import arguments

LAST = ["--prune_method", "last", "--prune_n", "2", "--calibration_samples", "8"]
LINEAR, FOLDED = [*LAST, "--prune_patch", "linear"], [*LAST, "--prune_patch", "folded"]
PROMPTS = [torch.tensor([random_prompt(length, seed=length)]) for length in (40, 9)]
PASSAGES = [Passage(random_prompt(length, seed=length), 1) for length in (30, 12, 7)]
PLANS = [("linear", (0, 1, 4, 5)), ("folded", (0, 1, 4, 5)), ("linear", (0, 2, 3)), (None, (0, 1))]


def texts(samples):
    return [sample.output_ids for sample in samples]


@pytest.fixture
def fits(monkeypatch):
    """Count the patches that runs fit."""
    fitted = []

    def fit(model, kept, *rest):
        fitted.append(kept)
        return fit_patch(model, kept, *rest)

    monkeypatch.setattr(preparation, "fit_patch", fit)
    return fitted


@pytest.mark.parametrize("flags", [LINEAR, FOLDED])
def test_a_run_decodes_patched_and_losslessly(run, flags):
    _, plain, unpatched = run(*GREEDY, *LAST)
    code, record, samples = run(*GREEDY, *flags)
    assert code == 0
    assert texts(samples) != texts(unpatched)
    assert record.run_id != plain.run_id
    assert record.plan["patch"] == flags[-1]
    assert record.plan["kept_layers"] == plain.plan["kept_layers"]
    more = 32 * 32 if flags == LINEAR else 0
    assert record.model["parameters"] == plain.model["parameters"] + more
    _, _, drafted = run(*GREEDY, *SPECULATIVE, "--exit_layer", "3", *flags)
    assert texts(drafted) == texts(samples)


@pytest.mark.parametrize("flags", [LINEAR, FOLDED])
def test_a_saved_patch_decodes_like_the_run_that_saved_it(run, flags, tmp_path, capsys):
    folder = tmp_path / "saved"
    _, _, expected = run(*GREEDY, *flags, "--save_pruned", str(folder))
    assert ("plain transformers would leave it out" in capsys.readouterr().err) == (flags == LINEAR)
    assert run(*GREEDY, *flags, "--save_pruned", str(folder), "--max_steps", "9")[0] == 0
    capsys.readouterr()
    code, again, found = run(*GREEDY, "--model", str(folder))
    assert code == 0
    assert texts(found) == texts(expected)
    assert capsys.readouterr().err.count("UNEXPECTED") == 0
    assert again.model["plan_of_origin"]["patch"] == flags[-1]
    other = FOLDED if flags == LINEAR else LINEAR
    for change in (LAST, other, [*flags, "--calibration_samples", "9"]):
        assert run(*GREEDY, *change, "--save_pruned", str(folder))[0] == 2
        assert f"--save_pruned {folder}: exists already" in capsys.readouterr().err


def test_a_resumed_run_fits_its_patch_again(words, stop_at, fits, tmp_path):
    flags = [*GREEDY, *LINEAR]
    assert run_script(benchmark.main, words(*flags, folder="whole")) == 0
    undo = stop_at(2, KeyboardInterrupt)
    assert run_script(benchmark.main, words(*flags, folder="broken")) == 130
    undo()
    assert run_script(benchmark.main, words(*flags, folder="broken")) == 0
    assert len(fits) == 3
    found = []
    for folder in ("whole", "broken"):
        (path,) = find_runs(tmp_path / folder)
        found.append([timeless(json.loads(path.read_text()))["plan"], read_record(path).metrics])
    assert found[0][0] == found[1][0]
    assert found[0][1]["predicted_text"] == found[1][1]["predicted_text"]
    assert run_script(benchmark.main, words(*flags, folder="broken")) == 0
    assert len(fits) == 3  # a complete run needs no model


def test_a_resumed_run_takes_no_patch_of_other_texts(words, stop_at, tmp_path, capsys, monkeypatch):
    """Generated texts may differ from one start to the next."""
    undo = stop_at(2, KeyboardInterrupt)
    assert run_script(benchmark.main, words(*GREEDY, *LINEAR)) == 130
    undo()
    capsys.readouterr()
    monkeypatch.setattr(preparation, "texts_fingerprint", lambda texts: "others")
    assert run_script(benchmark.main, words(*GREEDY, *LINEAR)) == 2
    message = "--prune_patch linear: last n=2 + linear was begun with a patch of other calibration"
    assert message in capsys.readouterr().err


def test_processes_decode_with_one_patch(words, monkeypatch, tmp_path):
    flags = [*GREEDY, *LINEAR]
    assert run_script(benchmark.main, words(*flags, folder="one")) == 0
    main = words(*flags, folder="three")
    assert scripts_in_ranks(monkeypatch, 3, benchmark.main, main) == [0, 0, 0]
    one, three = (find_runs(tmp_path / folder)[0] for folder in ("one", "three"))
    assert texts(read_samples(one)) == texts(read_samples(three))


def patched(model, kind, kept):
    plan = PrunePlan("test", LAYERS, kept)
    if kind is None:
        return PruneModel(model, plan)
    return PruneModel(
        model, with_patch(plan, kind, PROMPTS, 32), fit_patch(model, kept, kind, PROMPTS)
    )


def sums_alone(model, kind, kept):
    surgery = patched(model, kind, kept)
    surgery.prune(releases=False)
    loaded = LoadedModel(model, None, "tiny", "0", None)
    return TeacherForcing(arguments(batch_size=2), loaded, surgery).measure(PASSAGES)


def by_transformers(model, unpruned):
    """Return nats and KL of each passage, from whole passes of transformers."""
    found = []
    for passage in PASSAGES:
        ids = torch.tensor([passage.ids])
        with torch.inference_mode():
            said, target = (one(ids).logits[0, :-1].log_softmax(-1) for one in (model, unpruned))
        nats = -said.gather(1, ids[0, 1:, None]).sum()
        found.append((float(nats), float((target.exp() * (target - said)).sum())))
    return found


@pytest.mark.parametrize(("kind", "kept"), PLANS[:3])
def test_a_patched_plan_is_compared_with_the_unpatched_model(model, kind, kept):
    unpruned = copy.deepcopy(model)
    changed = copy.deepcopy(model)
    patched(changed, kind, kept).prune()
    expected = by_transformers(changed, unpruned)
    found = sums_alone(model, kind, kept)
    assert [one.nats for one in found] == pytest.approx([nats for nats, _ in expected], abs=1e-6)
    assert [one.kl_nats for one in found] == pytest.approx([kl for _, kl in expected], abs=1e-6)


def test_plans_that_differ_in_their_patch_alone_are_measured_apart(model):
    """They share leading layers, up to the first layer that a map changes."""
    expected = [sums_alone(copy.deepcopy(model), *plan) for plan in PLANS]
    surgeries = [patched(model, *plan) for plan in PLANS]
    patches = {one.plan.key: one.patch for one in surgeries if one.patch}
    first = surgeries[0]
    with first.for_a_while():
        loaded = LoadedModel(model, None, "tiny", "0", None)
        forcing = TeacherForcing(arguments(batch_size=2), loaded, first, patches)
        found = forcing.measure_plans([one.plan for one in surgeries], PASSAGES)
    for one, alone in zip(found, expected, strict=True):
        assert [sums.nats for sums in one] == pytest.approx([sums.nats for sums in alone])
        assert [sums.kl_nats for sums in one] == pytest.approx([sums.kl_nats for sums in alone])
    group = PlanGroup([one.plan for one in surgeries], patches)
    assert len(group.begin(first.plan)) == len(PLANS)


def test_a_missing_patch_is_no_measurement_without_it(model):
    first, other = patched(model, *PLANS[0]), patched(model, *PLANS[1])
    with first.for_a_while():
        loaded = LoadedModel(model, None, "tiny", "0", None)
        forcing = TeacherForcing(arguments(), loaded, first)
        with pytest.raises(AssertionError, match="a patched plan comes with its patch"):
            forcing.measure_plans([other.plan], PASSAGES)


def test_a_patch_is_fitted_after_cheap_checks(checkpoint, fits, rows, capsys, run):
    code, _, _ = run(*GREEDY, *SPECULATIVE, "--exit_layer", "6", *LINEAR)
    assert (code, fits) == (2, [])
    assert "--exit_layer 6: must be 1 to 5" in capsys.readouterr().err


def test_a_model_prepared_in_python_is_patched(checkpoint, rows, tmp_path):
    flags = {"calibration_dataset": "custom_jsonl", "calibration_path": str(rows)}
    pruning = PruneArguments(
        prune_method="layers",
        prune_layers="2,3",
        prune_patch="linear",
        save_pruned=str(tmp_path / "saved"),
        **flags,
    )
    prepared = load_pruned(ModelArguments(str(checkpoint), dtype="float64"), pruning)
    assert prepared.plan.patch == "linear"
    again = load_pruned(ModelArguments(str(tmp_path / "saved"), dtype="float64"), PruneArguments())
    ids = torch.tensor([random_prompt(20)])
    with torch.inference_mode():
        one, other = (each.loaded.model(ids).logits for each in (prepared, again))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    plan = json.loads((tmp_path / "saved" / PLAN_FILE).read_text())
    assert plan["patch_weights"] == ["model.layers.2.patch.weight"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--prune_method", "layers", "--prune_layers", "0,3", "--prune_patch", "folded"],
            "--prune_patch folded: layers [0, 3]",
        ),
        ([*LINEAR, "--calibration_samples", "1"], "--calibration_samples 1: they have "),
        (
            ["--prune_method", "random", "--dropout_threshold", "0", "--prune_patch", "linear"],
            "removes no layer that a patch could replace",
        ),
    ],
)
def test_patches_that_cannot_be_fitted_end_a_run_in_one_line(run, flags, message, capsys):
    code, record, _ = run(*GREEDY, *flags)
    assert (code, record) == (2, None)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in line
