"""Patches are the least-squares maps of their cuts, and change nothing else."""

import copy
import itertools

import numpy
import pytest
import torch
from torch import nn

from arguments.pruning import PruneArguments
from command_line.errors import UsageError
from models.patches import patch_weights
from pruned_model import PruneModel, count_parameters, make_plan, weight_bytes
from pruning import patch as patching
from pruning.measurements import Measurements
from pruning.patch import Patch, fit_patch, patched_layers, with_patch
from pruning.plan import PrunePlan, cuts
from tests.conftest import LAYERS, random_prompt
from tests.ranked import in_ranks

PROMPTS = [torch.tensor([random_prompt(length, seed=length)]) for length in (40, 9, 30, 21)]
OTHERS = torch.tensor([random_prompt(50, seed=99)])
WIDTH = 32
KINDS = ("linear", "folded")
# Cuts in the middle, several, to the end; and, for linear maps alone, from the first layer on.
KEPT = [(0, 1, 4, 5), (0, 2, 5), (0, 2, 3, 4), (0, 1), (0, 1, 2, 3, 5)]
KEPT_LATER = [(2, 3, 4, 5), (1, 3, 4), (5,)]


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Solve almost without a ridge; that of production is tested by itself."""
    monkeypatch.setattr(patching, "RIDGE", 1e-14)


def plan_of(kept, kind):
    return with_patch(PrunePlan("test", LAYERS, kept), kind, PROMPTS, WIDTH)


def pruned(model, kept, kind, prompts=PROMPTS):
    patch = fit_patch(model, kept, kind, prompts)
    return PruneModel(model, plan_of(kept, kind), patch)


@torch.inference_mode()
def logits(model, ids=OTHERS):
    return model(input_ids=ids, use_cache=False).logits


@torch.inference_mode()
def stream(model, prompts=PROMPTS):
    """Return the states before every layer and after the last, each (T, D) of all prompts."""
    hooked = [*model.model.layers, model.model.norm]
    noted = [[] for _ in hooked]
    hooks = [
        module.register_forward_pre_hook(lambda _, args, into=into: into.append(args[0][0]))
        for module, into in zip(hooked, noted, strict=True)
    ]
    for prompt in prompts:
        model(input_ids=prompt, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [torch.cat(states) for states in noted]


@torch.inference_mode()
def mlp_output(model, layer, prompts=PROMPTS):
    noted = []
    hook = model.model.layers[layer].mlp.register_forward_hook(lambda *args: noted.append(args[2]))
    for prompt in prompts:
        model(input_ids=prompt, use_cache=False)
    hook.remove()
    return torch.cat([each[0] for each in noted])


def make_linear(layer, matrix_DD):
    """Make a layer multiply its input by a matrix."""
    layer.forward = lambda states, **_: states @ matrix_DD


def random_matrix(seed):
    draws = torch.Generator().manual_seed(seed)
    noise = torch.randn(WIDTH, WIDTH, generator=draws, dtype=torch.float64)
    return torch.eye(WIDTH, dtype=torch.float64) + 0.1 * noise


@pytest.mark.parametrize("removed", [(2, 3), (0, 1), (4, 5), (1, 3, 4)])
def test_layers_that_are_linear_are_recovered(model, removed):
    for index in removed:
        make_linear(model.model.layers[index], random_matrix(index))
    expected = logits(model)
    kept = tuple(index for index in range(LAYERS) if index not in removed)
    with pruned(model, kept, "linear").for_a_while():
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_add_nothing_get_a_map_that_does_nothing(model, kept, kind):
    for index in set(range(LAYERS)) - set(kept):
        model.model.layers[index].self_attn.o_proj.weight.zero_()
        model.model.layers[index].mlp.down_proj.weight.zero_()
    expected = logits(model)
    with pruned(model, kept, kind).for_a_while():
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-9)


def test_a_linear_map_is_that_of_numpy(model):
    with torch.inference_mode():
        outputs = [
            model(input_ids=prompt, output_hidden_states=True, use_cache=False).hidden_states
            for prompt in PROMPTS
        ]
    before, after = (torch.cat([each[place][0] for each in outputs]) for place in (2, 4))
    expected = numpy.linalg.lstsq(before.numpy(), after.numpy(), rcond=None)[0]
    (found,) = fit_patch(model, (0, 1, 4, 5), "linear", PROMPTS).maps
    assert found.dtype == torch.float64
    numpy.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_folded_map_is_that_of_numpy(model):
    states, mlp = stream(model), mlp_output(model, 1)
    rest = states[4] - (states[2] - mlp)
    expected = numpy.linalg.lstsq(mlp.numpy(), rest.numpy(), rcond=None)[0]
    (found,) = fit_patch(model, (0, 1, 4, 5), "folded", PROMPTS).maps
    numpy.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_later_maps_begin_at_the_patched_model(model, kind):
    """The second map goes from states of the model with the first, to states of the whole model."""
    kept, first = (0, 2, 4, 5), (0, 2, 3, 4, 5)
    target = stream(model)[4]
    expected_first, expected_second = fit_patch(model, kept, kind, PROMPTS).maps
    (found_first,) = fit_patch(model, first, kind, PROMPTS).maps
    torch.testing.assert_close(found_first, expected_first)
    with PruneModel(model, plan_of(first, kind), Patch(kind, (found_first,))).for_a_while():
        before = stream(model)[2]
        source = mlp_output(model, 1) if kind == "folded" else before
    added = numpy.linalg.lstsq(source.numpy(), (target - before).numpy(), rcond=None)[0]
    numpy.testing.assert_allclose(expected_second, added + numpy.eye(WIDTH), rtol=0, atol=1e-6)


def error(model, kept, target):
    """Return the squared error of the states after each cut, of the calibration texts."""
    found, layers = stream(model), cuts(kept, LAYERS)
    removed = itertools.accumulate(map(len, layers))
    return [
        float(((found[cut.stop - gone] - target[cut.stop]) ** 2).sum())
        for cut, gone in zip(layers, removed, strict=True)
    ]


@pytest.mark.parametrize(("kind", "kept"), [*itertools.product(KINDS, KEPT), ("linear", (2, 3, 5))])
def test_a_patch_never_adds_to_the_error_of_the_calibration_texts(model, kind, kept):
    target = stream(model)
    with PruneModel(model, PrunePlan("test", LAYERS, kept)).for_a_while():
        plain = error(model, kept, target)
    with pruned(model, kept, kind).for_a_while():
        assert error(model, kept, target)[0] < plain[0]
        if len(plain) > 1:
            assert error(model, kept, target)[-1] < plain[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_ridge_hardly_moves_the_map(model, kind, monkeypatch):
    kept = (0, 1, 4, 5)
    target = stream(model)
    with pruned(model, kept, kind).for_a_while():
        (least,) = error(model, kept, target)
    monkeypatch.undo()
    with pruned(model, kept, kind).for_a_while():
        (found,) = error(model, kept, target)
    assert least <= found <= least * (1 + 1e-4)


@pytest.mark.parametrize(("kind", "kept"), [*itertools.product(KINDS, KEPT), ("linear", (2, 3, 5))])
def test_a_patched_model_is_restored_bit_by_bit(model, kind, kept):
    before, whole, layers = copy.deepcopy(model), logits(model), list(model.model.layers)
    surgery = pruned(model, kept, kind)
    hooks = [len(layer._forward_pre_hooks) + len(layer._forward_hooks) for layer in layers]
    with surgery.for_a_while():
        assert not torch.equal(logits(model), whole)
    assert torch.equal(logits(model), whole)
    assert list(model.model.layers) == layers
    assert hooks == [len(layer._forward_pre_hooks) + len(layer._forward_hooks) for layer in layers]
    state = model.state_dict()
    assert state.keys() == before.state_dict().keys()
    assert all(torch.equal(state[name], weight) for name, weight in before.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "kept"), [*itertools.product(KINDS, KEPT), *(("linear", one) for one in KEPT_LATER)]
)
def test_layers_away_from_cuts_are_the_models_own(model, kind, kept):
    layers, plan = list(model.model.layers), plan_of(kept, kind)
    made = patched_layers(layers, plan, fit_patch(model, kept, kind, PROMPTS))
    copies = {index for index, one in zip(kept, made, strict=True) if one is not layers[index]}
    found = cuts(kept, LAYERS)
    if kind == "folded":
        assert copies == {cut.start - 1 for cut in found}
    else:
        assert copies == {cut.stop if cut.stop < LAYERS else cut.start - 1 for cut in found}
    own = {parameter.data_ptr() for parameter in model.parameters()}
    new = [one for layer in made for one in layer.parameters() if one.data_ptr() not in own]
    assert len(new) == len(found)


@pytest.mark.parametrize(("kind", "added"), [("linear", 2 * WIDTH**2), ("folded", 0)])
def test_parameters_and_bytes_include_the_maps(model, kind, added):
    kept = (0, 2, 5)
    plain = copy.deepcopy(model)
    PruneModel(plain, PrunePlan("test", LAYERS, kept)).prune()
    surgery = pruned(model, kept, kind)
    surgery.prune()
    assert count_parameters(model) == count_parameters(plain) + added == surgery.parameters_after
    assert weight_bytes(model) == weight_bytes(plain) + 8 * added
    assert len(patch_weights(model)) == (2 if kind == "linear" else 0)
    line = surgery.report()
    assert line.startswith(f"test + {kind}: removed 3 of 6 layers [1, 3-4]; parameters 63,008 - ")
    assert f" = {count_parameters(model):,}; patched: 2 maps of 32 x 32" in line
    assert (f" + {added:,} = " in line) == (added > 0)


def test_a_map_is_part_of_a_bias_before_the_cut():
    values = {"in_features": 4, "out_features": 3, "bias": True}
    layer = nn.Module()
    layer.mlp = nn.Module()
    layer.mlp.down_proj = nn.Linear(**values, dtype=torch.float64)
    states, matrix = torch.randn(5, 4, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    folded = patching.with_folded_map(layer, matrix).mlp.down_proj
    expected = layer.mlp.down_proj(states) @ matrix
    torch.testing.assert_close(folded(states), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_weight_keeps_its_layout_and_dtype(model, kind):
    model.to(torch.bfloat16)
    for layer in model.model.layers:
        weight = layer.mlp.down_proj.weight
        weight.data = weight.data.t().contiguous().t()
    pruned(model, (0, 1, 4, 5), kind).prune()
    for layer in model.model.layers:
        assert not layer.mlp.down_proj.weight.is_contiguous()
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [3, 5])
def test_processes_get_the_maps_of_one_alone(model, kind, count):
    """Five processes have four texts: one has none."""
    kept = (0, 2, 5)
    expected = fit_patch(model, kept, kind, PROMPTS).maps
    copies = [copy.deepcopy(model) for _ in range(count)]

    def work(ranks):
        return fit_patch(copies[ranks.rank], kept, kind, PROMPTS, ranks).maps

    first, *others = in_ranks(count, work)
    for other in others:
        assert all(torch.equal(one, same) for one, same in zip(first, other, strict=True))
    for one, alone in zip(first, expected, strict=True):
        torch.testing.assert_close(one, alone, rtol=0, atol=1e-8)


@pytest.mark.parametrize("count", [1, 3])
def test_states_that_are_not_finite_end_all_processes(model, count):
    model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    copies = [copy.deepcopy(model) for _ in range(count)]

    def work(ranks):
        return fit_patch(copies[ranks.rank], (0, 1, 4, 5), "linear", PROMPTS, ranks)

    for found in in_ranks(count, work):
        assert isinstance(found, UsageError)
        assert "--prune_patch linear: states of the calibration texts are not finite" in str(found)


@pytest.mark.parametrize(
    ("flags", "tokens", "message"),
    [
        (
            {"prune_patch": "folded", "prune_layers": "0,3"},
            40,
            "--prune_patch folded: layers [0, 3] + folded lacks layer 0, and no MLP before it "
            "could take in the map; --prune_patch linear works",
        ),
        (
            {"prune_patch": "linear", "prune_method": "random", "dropout_threshold": 0.0},
            40,
            "--prune_patch linear: random p=0.0 seed=42 removes no layer that a patch could",
        ),
        (
            {"prune_patch": "linear", "prune_layers": "2"},
            31,
            "--calibration_samples 1: they have 31 tokens, and a patch needs at least 32, the "
            "width of a state",
        ),
    ],
)
def test_plans_that_no_patch_fits_are_refused(model, flags, tokens, message):
    arguments = PruneArguments(**{"prune_method": "layers"} | flags)
    prompts = [torch.tensor([random_prompt(tokens)])]
    with pytest.raises(UsageError) as refused:
        make_plan(arguments, Measurements(model, lambda: prompts))
    assert message in str(refused.value)


def test_a_model_that_stays_quantised_takes_linear_maps_alone(model):
    class Quantised(nn.Linear):
        pass

    model.model.layers[1].mlp.down_proj.__class__ = Quantised
    assert len(fit_patch(model, (0, 1, 4, 5), "linear", PROMPTS).maps) == 1
    with pytest.raises(UsageError, match="--prune_patch folded: the model stays quantised"):
        fit_patch(model, (0, 1, 4, 5), "folded", PROMPTS)


def test_a_plan_says_what_it_is_patched_with(model):
    arguments = PruneArguments(prune_method="angular", prune_n=2, prune_patch="linear")
    plan = make_plan(arguments, Measurements(model, lambda: PROMPTS))
    assert (plan.patch, plan.approach) == ("linear", "angular n=2 + linear")
    assert plan.calibration["tokens"] == 100
    assert PrunePlan.from_dict(plan.to_dict()) == plan
    assert make_plan(arguments, Measurements(model, lambda: PROMPTS[:3])).key != plan.key
    unpatched = make_plan(
        PruneArguments(prune_method="angular", prune_n=2), Measurements(model, lambda: PROMPTS)
    )
    assert unpatched.key != plan.key
    assert unpatched.kept_layers == plan.kept_layers


def test_cuts_are_maximal_runs():
    assert cuts((0, 2, 5), 6) == [range(1, 2), range(3, 5)]
    assert cuts((2, 3), 6) == [range(2), range(4, 6)]
    assert cuts(tuple(range(6)), 6) == []
