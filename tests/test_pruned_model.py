"""Plans decide as published; surgery removes exactly the layers that they name."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

import pruning.angular as measuring
from arguments.pruning import PLAN_FILE, PruneArguments
from command_line.errors import UsageError
from processes.ranks import Ranks
from pruned_model import PruneModel, count_parameters, make_plan, weight_bytes
from pruning.angular import angular_distances
from pruning.plan import PrunePlan
from tests.conftest import LAYERS, random_prompt, tiny_config

PROMPTS = [torch.tensor([random_prompt(length, seed=length)]) for length in (5, 9, 14)]


def angular(model, count, prompts=PROMPTS):
    arguments = PruneArguments(prune_method="angular", prune_n=count)
    return make_plan(arguments, model, lambda: prompts)


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


def test_distances_are_those_of_the_definition(model):
    """transformers returns the residual stream at the last token."""
    found = angular_distances(model, PROMPTS)
    before_norm = []
    model.model.norm.register_forward_pre_hook(lambda _, args: before_norm.append(args[0]))
    total = torch.zeros(LAYERS + 1, LAYERS + 1, dtype=torch.float64)
    for prompt in PROMPTS:
        with torch.inference_mode():
            states = model(input_ids=prompt, output_hidden_states=True).hidden_states
        stream = [*states[:LAYERS], before_norm.pop()]
        for first in range(LAYERS + 1):
            for last in range(first, LAYERS + 1):
                cosine = torch.cosine_similarity(stream[first][0, -1], stream[last][0, -1], dim=0)
                total[first, last - first] += math.acos(min(1, cosine)) / math.pi / len(PROMPTS)
    for first in range(LAYERS + 1):
        for count in range(LAYERS + 1):
            if first + count > LAYERS:
                assert found[first, count].isnan()
            else:
                assert found[first, count] == pytest.approx(float(total[first, count]), abs=1e-7)


@pytest.mark.parametrize("count", [1, LAYERS - 2])
def test_angular_removes_the_block_of_least_distance_before_the_last_layer(model, count):
    plan = angular(model, count)
    distances = angular_distances(model, PROMPTS)
    first = min(range(LAYERS - count), key=lambda layer: distances[layer, count])
    assert plan.removed_layers == tuple(range(first, first + count))
    assert LAYERS - 1 in plan.kept_layers
    assert plan.scores["first_removed_layer"] == first
    assert plan.scores["distance"] == pytest.approx(float(distances[first, count]))
    assert plan.calibration == {"prompts": 3, "tokens": 5 + 9 + 14}


def test_angular_removes_layers_that_do_nothing(model):
    zeroed(model, (2, 3))
    assert angular(model, 2).removed_layers == (2, 3)


def test_the_last_layer_stays_even_if_it_does_nothing(model):
    zeroed(model, (LAYERS - 1,))
    assert LAYERS - 1 in angular(model, 1).kept_layers


@pytest.mark.parametrize("count", [LAYERS - 1, LAYERS, 99])
def test_prune_n_that_leaves_too_little_is_refused(model, count):
    with pytest.raises(UsageError, match=rf"--prune_n {count}: must be 1 to {LAYERS - 2}"):
        angular(model, count)


def test_calibration_keeps_only_last_tokens(model, monkeypatch):
    """Each prompt keeps L + 1 states with their own storage, not views of all positions."""
    seen = []
    ordinary = measuring._last_token_states

    def watched(*arguments):
        held = []
        stack = torch.stack

        def stacking(states):
            held.extend(states)
            return stack(states)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "stack", stacking)
            result = ordinary(*arguments)
        seen.append(held)
        return result

    monkeypatch.setattr(measuring, "_last_token_states", watched)
    angular_distances(model, PROMPTS)
    assert [len(states) for states in seen] == [LAYERS + 1] * len(PROMPTS)
    width = model.config.hidden_size
    assert all(s.untyped_storage().nbytes() == 8 * width for states in seen for s in states)


def test_calibration_leaves_no_hooks_behind(model):
    angular(model, 2)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_processes_without_prompts_share_the_distances_of_others(model):
    class Second(Ranks):
        """The second of two processes; the first measures the only prompt."""

        def gather(self, tensor):
            return [measuring._distances_of(model, PROMPTS[0])[None], tensor]

    found = angular_distances(model, PROMPTS[:1], Second(1, 2))
    torch.testing.assert_close(found, angular_distances(model, PROMPTS[:1]), equal_nan=True)


def random_plan(model, threshold, seed):
    arguments = PruneArguments(prune_method="random", dropout_threshold=threshold, prune_seed=seed)
    return make_plan(arguments, model, never_called)


def test_random_plans_follow_their_seed_alone(model):
    before = torch.random.get_rng_state()
    plans = [random_plan(model, 0.4, seed) for seed in (1, 1, 2, 3)]
    torch.manual_seed(99)
    assert plans[0] == plans[1] == random_plan(model, 0.4, 1)
    assert len({plan.kept_layers for plan in plans}) > 1
    torch.random.set_rng_state(before)
    random_plan(model, 0.4, 5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_drops_each_layer_with_the_threshold(model):
    plans = []
    for seed in range(500):
        try:
            plans.append(random_plan(model, 0.3, seed))
        except UsageError:
            continue
    rates = [sum(layer in plan.removed_layers for plan in plans) / 500 for layer in range(LAYERS)]
    # Four standard deviations of a share of 500 draws.
    assert all(abs(rate - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 500) for rate in rates)
    assert random_plan(model, 0.0, 0).removed_layers == ()


def test_a_random_plan_that_keeps_no_layer_is_refused(model):
    with pytest.raises(UsageError, match=r"--dropout_threshold 0.999: .* keeps no layer of 6"):
        random_plan(model, 0.999, 0)


def test_base_removes_nothing_and_calibrates_nothing(model):
    plan = make_plan(PruneArguments(), model, never_called)
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


def test_states_that_are_not_finite_are_refused(model):
    model.model.layers[2].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(UsageError, match="hidden states of the calibration prompts are not finite"):
        angular(model, 2)


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
