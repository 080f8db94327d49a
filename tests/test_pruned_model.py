"""Surgery removes exactly the layers that a plan names."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from arguments.pruning import PLAN_FILE, PruneArguments
from command_line.errors import UsageError
from pruned_model import PruneModel, count_parameters, make_plan, weight_bytes
from pruning.measurements import Measurements
from pruning.plan import PrunePlan
from tests.conftest import LAYERS, random_prompt, tiny_config

PROMPTS = [torch.tensor([random_prompt(length, seed=length)]) for length in (5, 9, 14)]


def never_called():
    raise AssertionError("this criterion needs no calibration")


@torch.inference_mode()
def logits(model, length=16):
    return model(input_ids=torch.tensor([random_prompt(length)]), use_cache=False).logits


def zeroed(model, layers):
    """A zeroed layer adds nothing to the residual stream."""
    for index in layers:
        model.model.layers[index].self_attn.o_proj.weight.zero_()
        model.model.layers[index].mlp.down_proj.weight.zero_()


@pytest.mark.parametrize("removed", [(0,), (2, 3), (1, 4), (0, 2, 5), (1, 2, 3, 4)])
def test_removed_equals_zeroed(model, removed):
    before = count_parameters(model)
    layer_parameters = count_parameters(model.model.layers[0])
    zeroed(model, removed)
    expected = logits(model)
    kept = tuple(index for index in range(LAYERS) if index not in removed)
    surgery = PruneModel(model, PrunePlan("test", LAYERS, kept))
    surgery.prune()
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-12)
    # Pruning removes weights, passes and cache; it does not merely zero them.
    assert count_parameters(model) == before - len(removed) * layer_parameters
    assert weight_bytes(model) == count_parameters(model) * 8
    assert model.config.num_hidden_layers == len(model.model.layers) == len(kept)
    cache = model(input_ids=PROMPTS[0], use_cache=True).past_key_values
    assert len(cache.layers) == len(kept)


@pytest.mark.parametrize("kept", [(0, 2, 5), (1,), tuple(range(LAYERS))])
def test_a_model_pruned_for_a_while_is_restored(model, kept):
    whole, layers = logits(model), list(model.model.layers)
    plan = PrunePlan("test", LAYERS, kept)
    with pytest.raises(KeyError), PruneModel(model, plan).for_a_while():
        assert model.config.num_hidden_layers == len(model.model.layers) == len(kept)
        pruned = logits(model)
        raise KeyError
    assert torch.equal(logits(model), whole)
    assert all(one is other for one, other in zip(model.model.layers, layers, strict=True))
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(LAYERS))
    PruneModel(model, plan).prune()
    assert torch.equal(logits(model), pruned)


def test_removed_layers_move_only_if_that_makes_room(model):
    """A CPU's layers lie on the host already."""
    surgery = PruneModel(model, PrunePlan("test", LAYERS, (0, 2)))
    assert not surgery.frees_memory


def test_base_removes_nothing_and_calibrates_nothing(model):
    plan = make_plan(PruneArguments(), Measurements(model, never_called))
    expected = logits(model)
    surgery = PruneModel(model, plan)
    surgery.prune()
    assert plan.removed_layers == ()
    assert torch.equal(logits(model), expected)
    assert surgery.report() == "base: all 6 layers kept"


def test_report_names_the_removed_layers(model):
    total, one = count_parameters(model), count_parameters(model.model.layers[0])
    surgery = PruneModel(model, PrunePlan("angular", LAYERS, (0, 3, 5), prune_n=3))
    surgery.prune()
    assert surgery.report() == (
        "angular n=3: removed 3 of 6 layers [1-2, 4]; "
        f"parameters {total:,} - {3 * one:,} = {total - 3 * one:,}"
    )


def test_a_plan_of_another_model_is_refused(model):
    with pytest.raises(ValueError, match="a plan for 7 layers cannot prune a model of 6"):
        PruneModel(model, PrunePlan("test", 7, (0, 1)))


def test_saved_model_reloads_in_transformers_with_the_same_logits(model, tokenizer, tmp_path):
    surgery = PruneModel(model, PrunePlan("angular", LAYERS, (0, 1, 4, 5), prune_n=2))
    surgery.prune()
    surgery.save(tokenizer, str(tmp_path / "deep" / "pruned"))
    folder = tmp_path / "deep" / "pruned"
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    assert torch.equal(logits(again), logits(model))
    assert again.config.num_hidden_layers == 4
    assert (folder / PLAN_FILE).is_file()
    assert [path.name for path in folder.parent.iterdir()] == ["pruned"]


def test_saving_leaves_other_folders_alone_and_nothing_half_done(model, tokenizer, tmp_path):
    surgery = PruneModel(model, PrunePlan("base", LAYERS, tuple(range(LAYERS))))
    (tmp_path / ".pruned.partial").mkdir()

    class Full:
        def save_pretrained(self, folder):
            raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="--save_pruned .*pruned: cannot be written .*No space"):
        surgery.save(Full(), str(tmp_path / "pruned"))
    assert [path.name for path in tmp_path.iterdir()] == [".pruned.partial"]


def test_layer_types_are_pruned_along():
    values = {**tiny_config().to_dict(), "model_type": "qwen2"}
    model = Qwen2ForCausalLM(Qwen2Config(**values)).eval()
    model.config.layer_types = [str(index) for index in range(LAYERS)]
    PruneModel(model, PrunePlan("test", LAYERS, (0, 2, 5))).prune()
    assert model.config.layer_types == ["0", "2", "5"]


def test_layer_types_come_back(model):
    model.config.layer_types = [str(index) for index in range(LAYERS)]
    with PruneModel(model, PrunePlan("test", LAYERS, (0, 2, 5))).for_a_while():
        assert model.config.layer_types == ["0", "2", "5"]
    assert model.config.layer_types == [str(index) for index in range(LAYERS)]


@pytest.mark.parametrize(
    ("kept", "exit_layer", "expected"),
    [((0, 1, 2, 3, 4, 5), 3, 3), ((0, 1, 4, 5), 3, 2), ((0, 1, 4, 5), 2, 2), ((2, 5), 4, 1)],
)
def test_exit_layers_count_original_layers(kept, exit_layer, expected):
    assert PrunePlan("test", LAYERS, kept).kept_exit_layer(exit_layer) == expected


@pytest.mark.parametrize(
    ("kept", "exit_layer", "message"),
    [
        ((2, 3, 5), 2, "--exit_layer 2: test keeps no layer below it"),
        ((0, 1, 2), 3, "--exit_layer 3: test keeps no layer from it on"),
        ((0, 1, 5), 6, "--exit_layer 6: must be 1 to 5"),
    ],
)
def test_exit_layers_without_layers_on_both_sides_are_refused(kept, exit_layer, message):
    with pytest.raises(UsageError, match=message):
        PrunePlan("test", LAYERS, kept).kept_exit_layer(exit_layer)
