"""A patched plan drafts patched, in single runs and in sweeps, and loses nothing."""

import copy

import pytest
import torch
from torch import nn

from pruned_model import PruneModel
from pruning.patch import fit_patch
from pruning.plan import PrunePlan, drafting_plan
from runs.reader import find_runs, read_record, read_samples
from tests.conftest import GREEDY, LAYERS, random_prompt

DRAFTING = [
    *["--generation_strategy", "self_speculative", "--num_speculations", "3"],
    *["--drafter", "pruned", "--draft_prune_method", "last", "--draft_prune_n", "3"],
    *["--calibration_samples", "8", "--draft_prune_patch"],
]
PATCHED = ["--prune_method", "layers", "--prune_layers", "1", "--prune_patch", "linear"]
PROMPTS = [torch.tensor([random_prompt(40, seed=seed)]) for seed in (1, 2)]


def outputs(samples):
    return [sample.output_ids for sample in samples]


@pytest.mark.parametrize("kind", ["linear", "folded"])
@pytest.mark.parametrize("model_flags", [[], PATCHED])
def test_patched_drafters_change_no_output(run, kind, model_flags):
    model_flags = [*model_flags, *(["--calibration_samples", "8"] if model_flags else [])]
    _, _, plain = run(*GREEDY, *model_flags)
    code, record, samples = run(*GREEDY, *model_flags, *DRAFTING, kind)
    assert code == 0
    assert outputs(samples) == outputs(plain)
    assert record.draft_plan["patch"] == kind
    _, other, unpatched = run(*GREEDY, *model_flags, *DRAFTING, "none")
    assert other.run_id != record.run_id
    assert [sample.rounds for sample in samples] != [sample.rounds for sample in unpatched]


@pytest.mark.parametrize("kind", ["linear", "folded"])
@pytest.mark.parametrize("kept", [tuple(range(LAYERS)), (0, 1, 2, 4, 5)])
def test_a_patched_drafter_is_the_model_that_its_plan_makes(model, kind, kept):
    """Also for a pruned model: the map stands for all layers of the whole model left out."""
    plan = PrunePlan("test", LAYERS, kept)
    drafter = PrunePlan("test", LAYERS, (0, 1, 4, 5), patch=kind)
    drafting = drafting_plan(plan, drafter)
    patch = fit_patch(model, drafting.kept_layers, kind, PROMPTS)
    alone = copy.deepcopy(model)
    PruneModel(alone, drafting, patch).prune()
    surgery = PruneModel(model, plan)
    surgery.prune(releases=False)
    surgery.draft_with(drafter, patch)
    surgery.release()
    layers = surgery.draft_layers
    shared = sum(one is other for one, other in zip(layers, model.model.layers, strict=False))
    assert shared == (2 if kind == "linear" else 1)
    as_a_model = copy.deepcopy(model)
    as_a_model.model.layers = nn.ModuleList(copy.deepcopy(list(layers)))
    as_a_model.config.num_hidden_layers = len(layers)
    with torch.inference_mode():
        found, expected = (one(PROMPTS[0], use_cache=False).logits for one in (as_a_model, alone))
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_sweep_uses_each_patched_plan_as_model_and_as_drafter(run_sweep):
    flags = ["--prune_methods", "base", "last", "--prune_ns", "2", "--calibration_samples", "8"]
    flags += ["--prune_patches", "none", "linear", "folded"]
    flags += ["--drafters", "pruned", "early_exit", "--exit_layer_first", "4"]
    flags += ["--num_speculations_first", "3"]
    code, folder = run_sweep(*flags)
    assert code == 0
    models, drafts = {}, {}
    for path in find_runs(folder):
        record, ids = read_record(path), outputs(read_samples(path))
        if record.draft_plan:
            drafts[record.drafter_plan().approach] = record, ids
        elif record.identity["generation"]["generation_strategy"] == "autoregressive":
            models[record.prune_plan().approach] = record, ids
    names = {"last n=2", "last n=2 + linear", "last n=2 + folded"}
    assert set(drafts) == names
    assert set(models) == names | {"base"}
    for name, (record, ids) in drafts.items():
        assert record.drafter_plan() == models[name][0].prune_plan()
        assert ids == models["base"][1]
    rates = [one.metrics["acceptance_rate"]["token_weighted"] for one, _ in drafts.values()]
    assert len(set(rates)) > 1
    code, _ = run_sweep(*flags)  # all runs are complete: no patch is fitted
    assert code == 0
