"""Teacher-forced sums equal those of a plain loop over transformers' own model."""

import copy
import dataclasses

import pytest
import torch

from arguments.generation import GenerationArguments
from arguments.measuring import MeasureArguments
from arguments.model import ModelArguments
from arguments.prompts import DataArguments
from arguments.pruning import PruneArguments
from arguments.run import LogArguments, RunArguments
from command_line.errors import UsageError
from models.loading import LoadedModel
from pruned_model import PruneModel
from pruning.plan import PrunePlan
from runs.passages import Passage, windows
from runs.teacher_forcing import TeacherForcing
from self_speculation.uncached_llama import UncachedLlama
from tests.conftest import LAYERS, random_prompt

PLANS = {
    "base": (0, 1, 2, 3, 4, 5),
    "angular": (0, 1, 4, 5),
    "random": (1, 2, 4),
    "first": (1, 2, 3, 4, 5),
    "last": (0, 1, 2, 3, 4),
}


def arguments(batch_size=1, **flags):
    data = DataArguments(dataset="custom_jsonl", data_path="rows.jsonl")
    generation = GenerationArguments(**flags)
    measure = MeasureArguments(batch_size=batch_size)
    model, log = ModelArguments("tiny"), LogArguments()
    return RunArguments(model, data, PruneArguments(), generation, log, measure)


def forcing(model, kept, tokenizer=None, origin=None, **flags):
    plan = PrunePlan("test", LAYERS, kept)
    pruned = PruneModel(model, plan)
    pruned.prune(releases=False)
    loaded = LoadedModel(model, tokenizer, "tiny", "0", origin)
    return TeacherForcing(arguments(**flags), loaded, pruned)


def cut(model, kept):
    """Return a copy of transformers' model with these layers alone."""
    other = copy.deepcopy(model)
    other.model.layers = torch.nn.ModuleList(other.model.layers[index] for index in kept)
    other.config.num_hidden_layers = len(kept)
    return other


def by_hand(measured, unpruned, ids, window, stride):
    """Predict one token after another, each in a pass of its own."""
    nats, kl, agreeing = 0.0, 0.0, 0
    for place in range(1, len(ids)):
        number = max(0, -(-(place - window) // stride))
        context = torch.tensor([ids[number * stride : place]])
        said, target = (
            model(context, use_cache=False).logits[0, -1].log_softmax(-1)
            for model in (measured, unpruned)
        )
        nats -= said[ids[place]].item()
        kl += (target.exp() * (target - said)).sum().item()
        agreeing += int(said.argmax() == target.argmax())
    return nats, kl, agreeing


def summed(found):
    return (
        sum(one.nats for one in found),
        sum(one.kl_nats for one in found),
        sum(one.agreeing for one in found),
    )


@pytest.mark.parametrize("stride", [12, 5])
@pytest.mark.parametrize("plan", PLANS)
def test_sums_are_those_of_a_loop_over_transformers(model, plan, stride):
    ids, kept = random_prompt(30), PLANS[plan]
    expected = by_hand(cut(model, kept), copy.deepcopy(model), ids, 12, stride)
    found = forcing(model, kept, batch_size=2).measure(windows(ids, 12, stride))
    assert summed(found) == pytest.approx(expected, abs=1e-6)
    assert sum(one.tokens for one in found) == 29
    if plan == "base":
        assert summed(found)[1:] == (0.0, 29)
    else:
        assert summed(found)[1] > 0.1
        assert summed(found)[2] < 29


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_equal_single_passages(model, attention, dtype):
    model.to(dtype).set_attn_implementation(attention)
    passages = [Passage(random_prompt(n, n), min(n - 1, 3)) for n in (9, 2, 30, 17, 5)]
    single = forcing(copy.deepcopy(model), PLANS["angular"]).measure(passages)
    batched = forcing(model, PLANS["angular"], batch_size=3).measure(passages)
    tolerance = 1e-6 if dtype == torch.float64 else 1e-3
    for one, other in zip(single, batched, strict=True):
        assert one.nats == pytest.approx(other.nats, abs=tolerance)
        assert one.kl_nats == pytest.approx(other.kl_nats, abs=tolerance)
        assert (one.tokens, one.agreeing) == (other.tokens, other.agreeing)


def test_the_head_may_run_on_few_positions_at_a_time(model, monkeypatch):
    ids = windows(random_prompt(40), 16, 8)
    whole = forcing(copy.deepcopy(model), PLANS["random"], batch_size=4).measure(ids)
    monkeypatch.setattr("self_speculation.uncached_llama._HEAD_ELEMENTS", 3 * 258)
    parts = forcing(model, PLANS["random"], batch_size=4).measure(ids)
    assert summed(parts) == pytest.approx(summed(whole), abs=1e-9)


def test_early_exit_inference_is_compared_with_the_whole_model(model):
    ids, whole = random_prompt(20), copy.deepcopy(model)
    passage = [Passage(ids, 1)]
    expected = by_hand(cut(model, (0, 1, 2)), whole, ids, 64, 64)
    flags = {"generation_strategy": "autoregressive", "exit_layer": 3}
    found = forcing(model, PLANS["base"], **flags).measure(passage)
    assert summed(found) == pytest.approx(expected, abs=1e-6)
    flags["generation_strategy"] = "self_speculative"  # its output follows the whole model
    found = forcing(whole, PLANS["base"], **flags, num_speculations=2).measure(passage)
    assert found[0].kl_nats == 0


def test_layers_that_both_models_share_run_once(model, monkeypatch):
    ran, ordinary = [], UncachedLlama.run
    monkeypatch.setattr(
        UncachedLlama,
        "run",
        lambda self, states, layers: ran.append(len(layers)) or ordinary(self, states, layers),
    )
    passage = [Passage(random_prompt(8), 1)]
    forcing(copy.deepcopy(model), PLANS["angular"]).measure(passage)
    assert ran == [2, 2, 4]
    ran.clear()
    forcing(model, PLANS["base"]).measure(passage)
    assert ran == [6]


def test_plans_measured_together_equal_plans_measured_alone(model, monkeypatch):
    """Layers that lead several plans run once: 14 of the 29 layers of five plans and the whole."""
    passages = [Passage(random_prompt(n, n), 2) for n in (9, 30, 17)]
    alone = [
        forcing(copy.deepcopy(model), kept, batch_size=2).measure(passages)
        for kept in PLANS.values()
    ]
    ran, ordinary = [], UncachedLlama.run
    monkeypatch.setattr(
        UncachedLlama,
        "run",
        lambda self, states, layers: ran.append(len(layers)) or ordinary(self, states, layers),
    )
    plans = [PrunePlan("test", LAYERS, kept) for kept in PLANS.values()]
    # The model is that of the second plan: the others' layers are its unpruned model's.
    together = forcing(model, PLANS["angular"], batch_size=3).measure_plans(plans, passages)
    for found, expected in zip(together, alone, strict=True):
        for one, other in zip(found, expected, strict=True):
            assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), abs=1e-6)
    assert sum(ran) == 14


def test_a_model_that_was_saved_pruned_is_compared_with_nothing(model, capsys):
    origin = {"method": "angular", "prune_n": 2, "prune_seed": None, "removed_layers": [1, 2]}
    (found,) = forcing(model, PLANS["base"], origin=origin).measure([Passage([1, 2, 3], 1)])
    assert (found.tokens, found.kl_nats, found.agreeing) == (2, None, None)
    assert found.to_dict(3) == {"tokens": 2, "bytes": 3, "nats": found.nats}
    err = capsys.readouterr().err
    assert "--model tiny: was saved pruned" in err
    assert "--model ORIGINAL --prune_method angular --prune_n 2 measures them" in err


def test_a_batch_too_large_for_memory_is_halved_and_says_so(model, monkeypatch, capsys):
    sizes, ordinary = [], UncachedLlama.embed

    def embed(self, ids):
        sizes.append(len(ids))
        if len(ids) > 2 or ids.shape[1] > 30:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ordinary(self, ids)

    passages = [Passage(random_prompt(n, n), 1) for n in (6, 40, 8, 7, 9, 5)]
    expected = forcing(copy.deepcopy(model), PLANS["angular"]).measure(passages)
    monkeypatch.setattr(UncachedLlama, "embed", embed)
    found = forcing(model, PLANS["angular"], batch_size=4).measure(passages)
    assert sizes[0] == 4
    assert found[1] is None  # no batch is small enough for it
    for one, other in zip(found, expected, strict=True):
        if one:
            assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other))
    assert sum(one is None for one in found) == 1
    err = capsys.readouterr().err
    assert "--batch_size 4: out of memory in a teacher-forced pass; goes on with 2" in err


def test_plans_that_do_not_fit_together_are_measured_apart(model, monkeypatch):
    passages = [Passage(random_prompt(n, n), 1) for n in (6, 40, 8)]
    plans = [PrunePlan("test", LAYERS, kept) for kept in PLANS.values()]
    expected = forcing(copy.deepcopy(model), PLANS["base"]).measure_plans(plans, passages)
    ordinary = TeacherForcing._read

    def read(self, models, unpruned, passages):
        if len(passages) > 1 or (len(passages[0].ids) > 30 and len(models) > 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ordinary(self, models, unpruned, passages)

    monkeypatch.setattr(TeacherForcing, "_read", read)
    found = forcing(model, PLANS["base"], batch_size=2).measure_plans(plans, passages)
    assert found == expected


def test_a_plan_without_finite_sums_spoils_no_other(model, monkeypatch):
    """Here the last two layers of the second plan overflow, where they follow the first two."""
    plans = [PrunePlan("test", LAYERS, PLANS[name]) for name in ("base", "angular", "random")]
    ordinary = UncachedLlama.run

    def run(self, states, layers):
        factor = torch.nan if len(layers) == 2 and layers[0] is model.model.layers[-2] else 1
        return ordinary(self, states, layers) * factor

    measured = forcing(model, PLANS["base"])
    monkeypatch.setattr(UncachedLlama, "run", run)
    base, angular, random = measured.measure_plans(plans, [Passage(random_prompt(9), 1)])
    assert [one[0].is_finite for one in (base, angular, random)] == [True, False, True]
    with pytest.raises(UsageError, match="log-likelihoods are not finite"):
        measured.measure_plans([plans[1]], [Passage(random_prompt(9), 1)])


def test_infinite_states_are_refused(model):
    model.lm_head.weight.fill_(torch.inf)
    with pytest.raises(UsageError, match="log-likelihoods are not finite; try another --dtype"):
        forcing(model, PLANS["base"]).measure([Passage([1, 2, 3], 1)])


def test_a_model_pruned_for_a_while_is_compared_and_restored(model):
    ids, whole = random_prompt(20), copy.deepcopy(model)
    pruned = PruneModel(model, PrunePlan("test", LAYERS, PLANS["angular"]))
    loaded = LoadedModel(model, None, "tiny", "0", None)
    expected = by_hand(cut(model, PLANS["angular"]), whole, ids, 64, 64)
    with pruned.for_a_while():
        found = TeacherForcing(arguments(), loaded, pruned).measure([Passage(ids, 1)])
        pruned.release()  # no memory of layers that come back
    assert summed(found) == pytest.approx(expected, abs=1e-6)
    assert len(model.model.layers) == LAYERS
