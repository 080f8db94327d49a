"""Taylor importance and magnitude are those of their paper, and leave the model as it was."""

import pytest
import torch
from torch import nn

from arguments.pruning import PruneArguments
from command_line.errors import UsageError
from pruned_model import count_parameters, make_plan
from pruning.measurements import Measurements
from pruning.weights import magnitudes, taylor
from tests.conftest import LAYERS
from tests.pruning.plans import PROMPTS, TOKENS, never_called, plan_of, zeroed

NAMES = [
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
]


def weights_of(layer):
    return [layer.get_submodule(name).weight for name in NAMES]


def expected_taylor(model):
    """Return the scores from transformers' own loss, of each text with its tokens as labels."""
    model.requires_grad_(True)
    predicted = TOKENS - len(PROMPTS)
    for prompt in PROMPTS:
        mean = model(input_ids=prompt, labels=prompt, use_cache=False).loss
        (mean * (prompt.shape[1] - 1) / predicted).backward()
    scores = []
    for layer in model.model.layers:
        score = 0.0
        for weight in weights_of(layer):
            for gradients, values in zip(weight.grad.tolist(), weight.tolist(), strict=True):
                score += sum(abs(g * w) for g, w in zip(gradients, values, strict=True))
        scores.append(score)
    model.zero_grad()
    model.requires_grad_(False)
    return scores


def test_taylor_scores_are_those_of_transformers_own_loss(model):
    found, _ = taylor(model, PROMPTS)
    assert found == pytest.approx(expected_taylor(model), rel=1e-6)  # in float32


def test_gradients_are_added_up_before_absolute_values(model):
    """Otherwise texts whose gradients cancel would count twice."""
    each = [taylor(model, [prompt])[0][0] for prompt in PROMPTS[:2]]
    weights = [(prompt.shape[1] - 1) / (4 + 8) for prompt in PROMPTS[:2]]
    both = taylor(model, PROMPTS[:2])[0][0]
    assert both < 0.999 * sum(one * share for one, share in zip(each, weights, strict=True))


def test_magnitudes_are_sums_of_absolute_weights(model):
    for layer, found in zip(model.model.layers, magnitudes(model), strict=True):
        rows = [row for weight in weights_of(layer) for row in weight.tolist()]
        assert found == pytest.approx(sum(abs(value) for row in rows for value in row), rel=1e-12)
        # The scales of the two norms do not count.
        assert sum(len(row) for row in rows) == count_parameters(layer) - 2 * 32


@pytest.mark.parametrize("method", ["taylor", "magnitude"])
@pytest.mark.parametrize("count", [1, 4])
def test_the_least_scores_are_removed(model, method, count):
    plan = plan_of(model, method, count)
    scores = taylor(model, PROMPTS)[0] if method == "taylor" else magnitudes(model)
    order = sorted(range(LAYERS), key=lambda layer: scores[layer])
    assert plan.scores == {"layers": pytest.approx(scores), "order": order}
    assert plan.removed_layers == tuple(sorted(order[:count]))
    assert plan.prune_n == count


def test_layers_without_weights_go_first(model):
    for name in NAMES:
        model.model.layers[4].get_submodule(name).weight.zero_()
    assert plan_of(model, "magnitude", 1).removed_layers == (4,)
    zeroed(model, (1,))
    assert set(plan_of(model, "taylor", 2).removed_layers) == {1, 4}


def test_magnitude_reads_no_texts(model):
    arguments = PruneArguments(prune_method="magnitude", prune_n=2)
    plan = make_plan(arguments, Measurements(model, never_called))
    assert plan.calibration is None


@pytest.mark.parametrize("fails", [False, True])
def test_flags_and_gradients_are_restored(model, monkeypatch, fails):
    parameters = list(model.parameters())
    parameters[3].requires_grad_(True)
    parameters[3].grad = torch.ones_like(parameters[3])
    flags = [one.requires_grad for one in parameters]
    if fails:
        monkeypatch.setattr("pruning.weights._backward", None)
        with pytest.raises(TypeError):
            taylor(model, PROMPTS)
    else:
        taylor(model, PROMPTS)
    assert [one.requires_grad for one in parameters] == flags
    assert torch.equal(parameters[3].grad, torch.ones_like(parameters[3]))
    assert all(one.grad is None for index, one in enumerate(parameters) if index != 3)
    assert not any(one._post_accumulate_grad_hooks for one in parameters)


def test_gradients_can_be_had_under_inference_mode(model):
    expected = taylor(model, PROMPTS)[0]
    with torch.inference_mode():
        assert taylor(model, [prompt.clone() for prompt in PROMPTS])[0] == expected


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_codes_of_quantised_weights_are_no_magnitudes(model, method):
    projection = model.model.layers[1].mlp.down_proj
    codes = torch.zeros(projection.weight.shape, dtype=torch.int8)
    projection.weight = nn.Parameter(codes, requires_grad=False)
    with pytest.raises(UsageError, match=f"--prune_method {method}: weights that stay quantised"):
        plan_of(model, method, 2)


def test_the_head_may_run_on_few_positions_at_a_time(model, monkeypatch):
    expected = taylor(model, PROMPTS)[0]
    monkeypatch.setattr("self_speculation.uncached_llama._HEAD_ELEMENTS", 3 * 258)
    assert taylor(model, PROMPTS)[0] == pytest.approx(expected, rel=1e-9)


def test_a_gradient_is_freed_as_soon_as_it_is_added(model):
    held, ordinary = [], nn.Parameter.register_post_accumulate_grad_hook

    def watched(parameter, hook):
        def add(weight):
            held.append(sum(one.grad is not None for one in model.parameters()))
            hook(weight)

        return ordinary(parameter, add)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Parameter, "register_post_accumulate_grad_hook", watched)
        taylor(model, PROMPTS)
    assert held == [1] * len(PROMPTS) * LAYERS * len(NAMES)
