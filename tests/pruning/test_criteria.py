"""Criteria obey their flags, refuse what cannot be removed, and agree in all processes."""

import math

import pytest
import torch

import benchmark
from arguments.pruning import METHODS, PruneArguments
from command_line.errors import UsageError
from command_line.script import run_script
from pruned_model import make_plan
from pruning.measurements import Measurements
from tests.conftest import LAYERS
from tests.pruning.plans import measured, never_called, plan_of
from tests.ranked import in_ranks

BY_NUMBER = [name for name, method in METHODS.items() if "prune_n" in method.needs]
MEASURING = [name for name, method in METHODS.items() if method.calibrates]


def unmeasured(model, method, **flags):
    return make_plan(
        PruneArguments(prune_method=method, **flags), Measurements(model, never_called)
    )


@pytest.mark.parametrize("method", BY_NUMBER)
def test_so_many_layers_are_removed_as_asked(model, method):
    for count in (1, LAYERS - 2):
        plan = plan_of(model, method, count)
        assert (plan.prune_n, len(plan.removed_layers)) == (count, count)
        assert plan.approach.startswith(f"{method} n={count}")


@pytest.mark.parametrize("method", BY_NUMBER)
@pytest.mark.parametrize("count", [LAYERS - 1, LAYERS, 99])
def test_numbers_that_leave_too_little_are_refused_before_measuring(model, method, count):
    with pytest.raises(UsageError, match=rf"--prune_n {count}: must be 1 to {LAYERS - 2}"):
        unmeasured(model, method, prune_n=count)


@pytest.mark.parametrize("method", [*MEASURING, "magnitude"])
def test_values_that_are_not_finite_are_refused(model, method):
    model.model.layers[2].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(UsageError, match=rf"^--prune_method {method}: .* are not finite; try"):
        plan_of(model, method, 2)


@pytest.mark.parametrize("method", ["perplexity", "taylor"])
def test_texts_that_predict_nothing_are_refused(model, method):
    with pytest.raises(UsageError, match=f"--prune_method {method}: no calibration text has more"):
        plan_of(model, method, 2, [torch.tensor([[5]])] * 2)


@pytest.mark.parametrize("method", [*MEASURING, "magnitude"])
def test_all_processes_get_the_plan_of_one(model, method):
    arguments = PruneArguments(prune_method=method, prune_n=2)

    def work(ranks):
        with ranks.together():
            return make_plan(arguments, measured(model, ranks=ranks, needed=MEASURING))

    assert in_ranks(2, work) == [plan_of(model, method, 2)] * 2


def test_gradients_that_memory_lacks_spoil_no_other_criterion(model, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("pruning.measurements.taylor", full)
    shared = measured(model, needed=MEASURING)
    angular = make_plan(PruneArguments(prune_method="angular", prune_n=2), shared)
    assert angular == plan_of(model, "angular", 2)
    with pytest.raises(torch.OutOfMemoryError):
        make_plan(PruneArguments(prune_method="taylor", prune_n=2), shared)


def test_weights_that_are_not_in_memory_are_refused(model):
    model.model.layers[3].to("meta")
    for method in ("taylor", "magnitude"):
        with pytest.raises(UsageError, match=f"--prune_method {method}: needs all weights on dev"):
            plan_of(model, method, 2)


def random_plan(model, seed, **flags):
    return unmeasured(model, "random", prune_seed=seed, **flags)


@pytest.mark.parametrize("flags", [{"dropout_threshold": 0.4}, {"prune_n": 2}])
def test_random_plans_follow_their_seed_alone(model, flags):
    before = torch.random.get_rng_state()
    plans = [random_plan(model, seed, **flags) for seed in (1, 1, 2, 3)]
    torch.manual_seed(99)
    assert plans[0] == plans[1] == random_plan(model, 1, **flags)
    assert len({plan.kept_layers for plan in plans}) > 1
    torch.random.set_rng_state(before)
    random_plan(model, 5, **flags)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_drops_each_layer_with_the_threshold(model):
    plans = []
    for seed in range(500):
        try:
            plans.append(random_plan(model, seed, dropout_threshold=0.3))
        except UsageError:
            continue
    rates = [sum(layer in plan.removed_layers for plan in plans) / 500 for layer in range(LAYERS)]
    # Four standard deviations of a share of 500 draws.
    assert all(abs(rate - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 500) for rate in rates)
    assert random_plan(model, 0, dropout_threshold=0.0).removed_layers == ()


def test_random_plans_of_a_number_drop_each_layer_alike(model):
    plans = [random_plan(model, seed, prune_n=2) for seed in range(500)]
    rates = [sum(layer in plan.removed_layers for plan in plans) / 500 for layer in range(LAYERS)]
    assert all(abs(rate - 1 / 3) < 4 * math.sqrt(2 / 9 / 500) for rate in rates)


def test_a_random_plan_that_keeps_no_layer_is_refused(model):
    with pytest.raises(UsageError, match=r"--dropout_threshold 0.999: .* keeps no layer of 6"):
        random_plan(model, 0, dropout_threshold=0.999)


def test_last_removes_the_deepest_layers_but_the_last(model):
    plans = [unmeasured(model, "last", prune_n=count) for count in (1, 3)]
    assert [plan.removed_layers for plan in plans] == [(4,), (2, 3, 4)]


def test_named_layers_are_removed(model):
    plan = unmeasured(model, "layers", prune_layers="4, 0,2")
    assert (plan.removed_layers, plan.approach) == ((0, 2, 4), "layers [0, 2, 4]")


REFUSED = {
    **{
        f"{method} --prune_n 5": "--prune_n 5: must be 1 to 4; the model has 6 layers"
        for method in BY_NUMBER
    },
    "perplexity --prune_n 0": "--prune_n 0: must be 1 to L - 2",
    "taylor": "--prune_method taylor: needs --prune_n",
    "layers": "--prune_method layers: needs --prune_layers",
    "layers --prune_layers 1,6": "--prune_layers 1,6: names layer 6, and layers are 0 to 5",
    "layers --prune_layers 1,3,1": "--prune_layers 1,3,1: names layer 1 twice",
    "layers --prune_layers 5,4,3,2,1,0": "--prune_layers 5,4,3,2,1,0: removes all layers",
    "layers --prune_layers -1": "--prune_layers '-1': must be layers with commas",
    "layers --prune_layers 1 --prune_n 2": "--prune_n 2: only with --prune_method angular, random",
    "magnitude --prune_n 2 --prune_layers 1": "--prune_layers 1: only with --prune_method layers",
    "taylor --prune_n 2 --dropout_threshold .1": "--dropout_threshold 0.1: only with",
    "random --prune_n 2 --dropout_threshold .1": "--prune_n 2: contradicts --dropout_threshold",
    "magnitude --prune_n 2 --calibration_text generated": "--calibration_text generated: only with",
    "angular --prune_n 2 --calibration_steps 5": "--calibration_steps 5: only with --calibration_t",
    "taylor --prune_n 2 --calibration_text generated --calibration_steps 256": (
        "--calibration_steps 256: must be below the model's 256 positions"
    ),
}


@pytest.mark.parametrize("flags", REFUSED)
def test_plans_that_cannot_be_get_one_line_and_exit_code_2(words, capsys, flags):
    more = ["--calibration_samples", "2"]
    assert run_script(benchmark.main, words("--prune_method", *flags.split(), *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.partition(" error: ")[2].startswith(REFUSED[flags])


@pytest.mark.parametrize("method", BY_NUMBER)
def test_a_run_logs_its_plan(run, method):
    flags = ["--sample", "false", "--max_steps", "4", "--calibration_samples", "3"]
    code, record, _ = run("--prune_method", method, "--prune_n", "2", *flags, samples="2")
    assert (code, record.plan["method"], len(record.plan["removed_layers"])) == (0, method, 2)
    assert (record.plan["calibration"] is not None) == (method in MEASURING)
    assert (record.plan["scores"] is not None) == (method not in ("random", "last"))
