"""The greedy search finds what brute force finds, goes on from earlier searches, and saves work."""

import math

import pytest
import torch

from pruned_model import PruneModel
from pruning.perplexity_search import PerplexitySearch
from pruning.plan import PrunePlan
from self_speculation.uncached_llama import UncachedLlama
from tests.conftest import LAYERS, random_prompt
from tests.pruning.plans import PROMPTS, measured, plan_of, zeroed


@torch.inference_mode()
def perplexity(model, kept, prompts=PROMPTS):
    """Return the perplexity of a pruned model by transformers' own loss."""
    plan, nats, tokens = PrunePlan("test", LAYERS, tuple(kept)), 0.0, 0
    with PruneModel(model, plan).for_a_while():
        for prompt in prompts:
            predicted = prompt.shape[1] - 1
            if predicted:
                mean = model(input_ids=prompt, labels=prompt, use_cache=False).loss
                nats, tokens = nats + float(mean) * predicted, tokens + predicted
    return math.exp(nats / tokens)


def brute_force(model, count, prompts=PROMPTS):
    """Return the layers in the order of their removal, with the perplexity after each."""
    left, steps = list(range(LAYERS)), []
    for _ in range(count):
        found = {
            layer: perplexity(model, [one for one in left if one != layer], prompts)
            for layer in left
        }
        best = min(found, key=found.__getitem__)
        left.remove(best)
        steps.append((best, found))
    return steps


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("head", [1 << 24, 5 * 258])
def test_the_search_equals_brute_force(model, monkeypatch, attention, head):
    monkeypatch.setattr("self_speculation.uncached_llama._HEAD_ELEMENTS", head)
    model.config._attn_implementation = attention
    prompts = [*PROMPTS, torch.tensor([[7]]), *PROMPTS[:1]]
    plan, expected = plan_of(model, "perplexity", 2, prompts), brute_force(model, 2, prompts)
    assert [step["layer"] for step in plan.scores["steps"]] == [layer for layer, _ in expected]
    assert plan.removed_layers == tuple(sorted(layer for layer, _ in expected))
    whole = perplexity(model, range(LAYERS), prompts)
    assert plan.scores["perplexity"] == pytest.approx(whole, rel=1e-5)
    for step, (best, all_found) in zip(plan.scores["steps"], expected, strict=True):
        found = {int(layer): value for layer, value in step["candidates"].items()}
        assert found.keys() == all_found.keys()
        assert step["perplexity"] == found[best]
        for layer, value in found.items():
            # A candidate is out only if it is worse than the best.
            assert value == pytest.approx(all_found[layer], rel=1e-5) if value else layer != best


def test_candidates_that_cannot_win_are_out_early(model, monkeypatch):
    monkeypatch.setattr("self_speculation.uncached_llama._HEAD_ELEMENTS", 258)
    rows, ordinary = [], UncachedLlama.log_probabilities
    monkeypatch.setattr(
        UncachedLlama,
        "log_probabilities",
        lambda llama, states: rows.append(len(states)) or ordinary(llama, states),
    )
    steps = PerplexitySearch(model, PROMPTS).result(2)["steps"]
    values = [value for step in steps for value in step["candidates"].values()]
    assert None in values
    predicted = sum(prompt.shape[1] - 1 for prompt in PROMPTS)
    complete = sum(value is not None for value in values) + 1  # and the whole model
    assert predicted * complete < sum(rows) < predicted * (len(values) + 1)


def test_a_search_for_more_goes_on_from_a_search_for_fewer(model, monkeypatch):
    steps, ordinary = [], PerplexitySearch._step
    shared, alone = measured(model), measured(model).removals(3)
    monkeypatch.setattr(
        PerplexitySearch, "_step", lambda *given: steps.append(0) or ordinary(*given)
    )
    first = shared.removals(2)
    assert len(steps) == 2
    assert shared.removals(3) == alone
    assert shared.removals(1)["steps"] == alone["steps"][:1] == first["steps"][:1]
    assert len(steps) == 3


def test_leading_layers_run_once_per_step(model, monkeypatch):
    ran, layer_class = [], type(model.model.layers[0])
    ordinary = layer_class.forward

    def watched(layer, *given, **named):
        ran.append(layer.self_attn.layer_idx)
        return ordinary(layer, *given, **named)

    monkeypatch.setattr(layer_class, "forward", watched)
    PerplexitySearch(model, PROMPTS[:1]).result(1)
    # Once before all candidates; then each layer for the candidates before it.
    assert [ran.count(layer) for layer in range(LAYERS)] == [1 + layer for layer in range(LAYERS)]


def test_texts_of_equal_length_are_read_together(model, monkeypatch):
    shapes, ordinary = [], UncachedLlama.embed
    monkeypatch.setattr(
        UncachedLlama,
        "embed",
        lambda llama, ids: shapes.append(tuple(ids.shape)) or ordinary(llama, ids),
    )
    monkeypatch.setattr("pruning.perplexity_search._BATCH_TOKENS", 24)
    prompts = [torch.tensor([random_prompt(9, seed=seed)]) for seed in range(3)]
    PerplexitySearch(model, [*prompts, *PROMPTS[:1]]).result(1)
    assert shapes == [(1, 4), (2, 8), (1, 8)]


def test_of_equals_the_first_is_removed(model):
    zeroed(model, range(LAYERS))
    steps = measured(model).removals(2)["steps"]
    assert [step["layer"] for step in steps] == [0, 1]
    assert {*steps[0]["candidates"].values()} == {steps[1]["perplexity"]}


def test_the_best_of_the_last_step_come_first(model, monkeypatch):
    """Those that were out, too: by the sum that they would have had."""
    monkeypatch.setattr("self_speculation.uncached_llama._HEAD_ELEMENTS", 4 * 258)
    search = PerplexitySearch(model, PROMPTS)
    (best, found), *_ = brute_force(model, 1)
    assert [step["layer"] for step in search.result(1)["steps"]] == [best]
    values = search._steps[0]["candidates"]
    known = sorted((layer for layer in found if values[str(layer)]), key=found.__getitem__)
    assert known[0] == best
    complete = [layer for layer in search._candidates if layer in known]
    assert complete == known[1:]
    # An estimate may err between two that are alike; it must not take the worst for the best.
    worst = max(found, key=found.__getitem__)
    assert search._candidates[0] != worst
