"""A patched checkpoint reads back as the model in memory, or is refused in one line."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from arguments.model import ModelArguments
from arguments.pruning import PLAN_FILE
from models.checkpoint import find_checkpoint
from models.loading import read_model
from models.patches import AFTER, BEFORE, patch_weights, with_map
from pruned_model import PruneModel
from pruning.patch import fit_patch, with_patch
from pruning.plan import PrunePlan
from tests.conftest import random_prompt
from tests.loading import CPU, loaded, reconfigured, refusal, reweighed
from tests.self_speculation.test_offloading import ALL_ON_DISK, HALF

PROMPTS = [torch.tensor([random_prompt(length, seed=length)]) for length in (40, 9, 30)]
IDS = torch.tensor([random_prompt(50, seed=99)])
WIDTH = 32
# From the first layer on; in the middle; two, of which one to the end.
KEPT = [(2, 3, 4, 5), (0, 1, 4, 5), (0, 2, 3)]
MIDDLE = "model.layers.2.patch.weight"


@torch.inference_mode()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def check_same(found, model):
    """All bits are the same; kernels add up in an order that depends on where a weight lies."""
    weights = found.state_dict()
    assert all(torch.equal(weights[name], one) for name, one in model.state_dict().items())
    torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=1e-12)


def prune(model, kept, kind):
    layers = len(model.model.layers)
    plan = with_patch(PrunePlan("test", layers, kept), kind, PROMPTS, WIDTH)
    surgery = PruneModel(model, plan, fit_patch(model, kept, kind, PROMPTS))
    surgery.prune()
    return surgery


@pytest.fixture
def saved(model, tokenizer, tmp_path):
    """Save the tiny Llama, patched by a linear map in its middle; return the folder."""
    prune(model, (0, 1, 4, 5), "linear").save(tokenizer, str(tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.mark.parametrize("kept", KEPT[1:])
def test_a_folded_patch_is_part_of_an_ordinary_checkpoint(model, tokenizer, tmp_path, kept, capsys):
    prune(model, kept, "folded").save(tokenizer, str(tmp_path / "saved"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    check_same(again, model)
    check_same(loaded(tmp_path / "saved").model, model)
    assert json.loads((tmp_path / "saved" / PLAN_FILE).read_text())["patch"] == "folded"
    assert "plain transformers" not in capsys.readouterr().err


@pytest.mark.parametrize("kept", KEPT)
def test_a_linear_patch_comes_back_through_this_project(model, tokenizer, tmp_path, kept, capsys):
    prune(model, kept, "linear").save(tokenizer, str(tmp_path / "saved"))
    assert (
        f"warning: --save_pruned {tmp_path / 'saved'}: holds a linear patch, which this project "
        "reads; plain transformers would leave it out without an error\n"
    ) in capsys.readouterr().err
    again = loaded(tmp_path / "saved")
    check_same(again.model, model)
    assert patch_weights(again.model) == patch_weights(model) != []
    assert not any(weight.requires_grad for weight in again.model.parameters())
    names = again.plan_of_origin["patch_weights"]
    assert (again.plan_of_origin["patch"], names) == ("linear", patch_weights(model))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    assert not torch.allclose(logits(plain), logits(model), atol=0.1)


@pytest.mark.parametrize("placement", [HALF, ALL_ON_DISK])
@pytest.mark.parametrize("kind", ["linear", "folded"])
def test_patches_of_a_model_on_disk_are_those_of_one_in_memory(
    checkpoint, tokenizer, tmp_path, kind, placement
):
    whole, spread = (loaded(checkpoint, model_args=args).model for args in ("", placement))
    for model in (whole, spread):
        surgery = prune(model, (0, 2, 3), kind)
    torch.testing.assert_close(logits(spread), logits(whole), rtol=0, atol=1e-9)
    surgery.save(tokenizer, str(tmp_path / "saved"))
    for args in ("", placement):
        again = loaded(tmp_path / "saved", model_args=args).model
        torch.testing.assert_close(logits(again), logits(whole), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["linear", "folded", None])
@pytest.mark.parametrize("kept", [(0, 2, 3), (0, 1, 2), (2, 3), (0, 1, 3)])
def test_a_patched_checkpoint_is_pruned_and_saved_again(saved, tokenizer, tmp_path, kept, kind):
    """Layer 2 holds the first map: it gets another, is removed, or lies elsewhere."""
    model = loaded(saved).model
    if kind == "folded" and 0 not in kept:
        return
    if kind:
        surgery = prune(model, kept, kind)
    else:
        surgery = PruneModel(model, PrunePlan("test", 4, kept))
        surgery.prune()
    surgery.save(tokenizer, str(tmp_path / "again"))
    again = loaded(tmp_path / "again").model
    check_same(again, model)
    held = 2 in kept or (kind == "linear")
    assert bool(patch_weights(again)) == held


@pytest.mark.parametrize("name", [BEFORE, AFTER])
def test_two_maps_of_one_place_become_one(model, name):
    torch.manual_seed(0)
    layer = model.model.layers[3]
    maps = [torch.randn(WIDTH, WIDTH, dtype=torch.float64) for _ in range(2)]
    both = with_map(with_map(layer, name, maps[0]), name, maps[1])
    assert len(both._forward_pre_hooks) + len(both._forward_hooks) == 1
    later, earlier = maps if name == BEFORE else reversed(maps)
    torch.testing.assert_close(getattr(both, name).weight, later @ earlier)
    assert not hasattr(layer, name)


def test_linear_patches_learn_with_the_other_weights(saved, tmp_path):
    model = read_model(find_checkpoint(ModelArguments(str(saved))), CPU)
    assert all(weight.requires_grad for weight in model.parameters())
    model(input_ids=IDS).logits.sum().backward()
    assert model.model.layers[2].patch.weight.grad.abs().sum() > 0


def without(weights):
    del weights[MIDDLE]


def narrower(weights):
    weights[MIDDLE] = weights[MIDDLE][:, :5].contiguous()


def further(weights):
    weights["model.layers.0.patch.weight"] = weights[MIDDLE].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, f"the checkpoint lacks 1 weights, such as {MIDDLE}"),
        (narrower, f"its {MIDDLE} is of shape [32, 5], where its config.json says [32, 32]"),
        (
            further,
            "the checkpoint holds 1 weights that LlamaForCausalLM has no place for "
            "(model.layers.0.patch.weight)",
        ),
    ],
)
def test_weights_that_do_not_fit_the_plan_are_refused(saved, change, message):
    reweighed(saved, change)
    assert refusal(saved) == message


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "its plan says patch linear, and lacks patch_weights"),
        (3, "its plan says patch_weights 3, which is no list"),
        ([3], "its plan names the map 3, which its layers have no place for"),
        (["lm_head.weight"], "its plan names the map lm_head.weight, which its layers have no"),
        (["model.layers.4.patch.weight"], "its plan names the map model.layers.4.patch.weight, "),
    ],
)
def test_plans_that_name_no_maps_are_refused(saved, names, message):
    reconfigured(saved, PLAN_FILE, patch_weights=names)
    assert refusal(saved).startswith(message)


def test_maps_without_their_plan_are_refused(saved):
    (saved / PLAN_FILE).unlink()
    assert refusal(saved).endswith(f"has no place for ({MIDDLE})")
