"""Angular distances and block influences are those of their papers, from one pass."""

import itertools
import math

import pytest
import torch

from arguments.pruning import PruneArguments
from processes.ranks import Ranks
from pruned_model import make_plan
from pruning import states
from pruning.states import measure_states
from self_speculation.uncached_llama import UncachedLlama
from tests.conftest import LAYERS
from tests.pruning.plans import PROMPTS, TOKENS, measured, plan_of, zeroed
from tests.ranked import in_ranks


@torch.inference_mode()
def streams(model):
    """Return x(0) .. x(L) of each text, as transformers computes them."""
    before_norm, found = [], []
    hook = model.model.norm.register_forward_pre_hook(lambda _, args: before_norm.append(args[0]))
    for prompt in PROMPTS:
        hidden = model(input_ids=prompt, output_hidden_states=True).hidden_states
        found.append([*hidden[:LAYERS], before_norm.pop()])
    hook.remove()
    return found


def cosine(one, other):
    return float(one @ other / (one.norm() * other.norm()))


def test_distances_are_those_of_the_definition(model):
    found, texts = measure_states(model, PROMPTS).distances, streams(model)
    for first in range(LAYERS + 1):
        for count in range(LAYERS + 1):
            if first + count > LAYERS:
                assert found[first, count].isnan()
                continue
            ends = [(text[first][0, -1], text[first + count][0, -1]) for text in texts]
            angles = [math.acos(min(1, cosine(*pair))) / math.pi for pair in ends]
            assert found[first, count] == pytest.approx(sum(angles) / len(PROMPTS), abs=1e-7)


def test_influences_are_those_of_the_definition(model):
    found, texts = measure_states(model, PROMPTS).influences, streams(model)
    for layer in range(LAYERS):
        cosines = [
            cosine(one, other)
            for text in texts
            for one, other in zip(text[layer][0], text[layer + 1][0], strict=True)
        ]
        assert len(cosines) == TOKENS
        assert found[layer] == pytest.approx(1 - sum(cosines) / TOKENS, abs=1e-12)


@pytest.mark.parametrize("count", [1, LAYERS - 2])
def test_angular_removes_the_block_of_least_distance_before_the_last_layer(model, count):
    plan = plan_of(model, "angular", count)
    distances = measure_states(model, PROMPTS).distances
    first = min(range(LAYERS - count), key=lambda layer: distances[layer, count])
    assert plan.removed_layers == tuple(range(first, first + count))
    assert plan.scores["first_removed_layer"] == first
    assert plan.scores["distance"] == pytest.approx(float(distances[first, count]))
    assert plan.calibration == {"prompts": 4, "tokens": TOKENS}


@pytest.mark.parametrize("method", ["angular", "block_influence"])
def test_layers_that_do_nothing_are_removed(model, method):
    zeroed(model, (2, 3))
    assert plan_of(model, method, 2).removed_layers == (2, 3)


def test_angular_keeps_the_last_layer_even_if_it_does_nothing(model):
    zeroed(model, (LAYERS - 1,))
    assert LAYERS - 1 in plan_of(model, "angular", 1).kept_layers
    assert plan_of(model, "block_influence", 1).removed_layers == (LAYERS - 1,)


@pytest.mark.parametrize("count", [1, 4])
def test_block_influence_removes_the_least(model, count):
    plan = plan_of(model, "block_influence", count)
    influences = measure_states(model, PROMPTS).influences
    assert plan.scores["layers"] == influences.tolist()
    assert plan.scores["order"] == influences.argsort().tolist()
    assert plan.removed_layers == tuple(sorted(influences.argsort()[:count].tolist()))


@pytest.mark.parametrize("methods", [("angular", "block_influence"), ("taylor", "angular")])
def test_one_pass_over_each_text_serves_all_criteria(model, monkeypatch, methods):
    passed, plans, ordinary = [], [], UncachedLlama.embed
    watched = lambda llama, ids: passed.append(ids.tolist()) or ordinary(llama, ids)  # noqa: E731
    monkeypatch.setattr(UncachedLlama, "embed", watched)
    shared = measured(model, needed=methods)
    for method in methods:
        for count in (1, 3):
            plans.append(make_plan(PruneArguments(prune_method=method, prune_n=count), shared))
    assert passed == [prompt.tolist() for prompt in PROMPTS]
    pairs = itertools.product(methods, (1, 3))
    assert plans == [plan_of(model, method, count) for method, count in pairs]


def test_a_text_leaves_only_its_sums_and_no_hooks(model):
    _, sums = states.read_text(UncachedLlama(model), model.model.layers, PROMPTS[0])
    assert sums.untyped_storage().nbytes() == 8 * ((LAYERS + 1) ** 2 + LAYERS)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_last_tokens_are_no_views_of_all_positions(model):
    held = torch.zeros(1, 50, 8, dtype=torch.float64)
    assert states._last_token(held).untyped_storage().nbytes() == 8 * 8


@pytest.mark.parametrize("count", [2, 6])
def test_processes_measure_shares_and_agree_to_the_last_bit(model, monkeypatch, count):
    passed, ordinary = [], states.read_text

    def counted(llama, layers, text):
        passed.append(text.tolist())
        return ordinary(llama, layers, text)

    alone = measure_states(model, PROMPTS)
    monkeypatch.setattr(states, "read_text", counted)

    def work(ranks: Ranks):
        with ranks.together():
            return measure_states(model, PROMPTS, ranks)

    for found in in_ranks(count, work):
        assert torch.equal(found.influences, alone.influences)
        assert found.distances.numpy().tobytes() == alone.distances.numpy().tobytes()
    assert len(passed) == len(PROMPTS)
