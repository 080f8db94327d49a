"""Only runs that differ in the thing compared are compared; a missing baseline has a reason."""

import dataclasses
import hashlib
import re

import pytest

from analysis.comparison import (
    BOTH,
    SAME_DECODER,
    SAME_PLAN,
    compare,
    drifting_speedups,
    mean_and_deviation,
    quality_intervals,
    spread_over_seeds,
)
from benchmarks.made_up_runs import MadeUpRun, angular_plan, random_plan
from tests.analysis.test_logged_runs import samples_of
from tests.conftest import rewritten
from tests.made_up import AUTOREGRESSIVE, SPECULATIVE, read


def study(tmp_path, **changes):
    """Compare base and pruned runs of both decoders: 1, 2, 4 and 10 times as fast as the first."""
    pruned = {"plan": angular_plan(2), "score": 0.4}
    for run in (
        MadeUpRun(seconds=4.0, **AUTOREGRESSIVE),
        MadeUpRun(seconds=2.0, **SPECULATIVE),
        MadeUpRun(seconds=1.0, **pruned, **AUTOREGRESSIVE),
        MadeUpRun(seconds=0.4, **pruned, **SPECULATIVE),
    ):
        dataclasses.replace(run, **changes).write(tmp_path)
    return {(one.run.method, one.run.strategy): one for one in compare(read(tmp_path))}


def pruned(folder):
    """Compare the runs below the folder; return the pruned run's comparison."""
    (found,) = (one for one in compare(read(folder)) if one.run.method == "angular")
    return found


def test_a_speed_up_has_three_meanings(tmp_path):
    found = study(tmp_path)
    speedups = found["angular", "self_speculative"].speedups
    values = {name: interval.value for name, interval in speedups.items()}
    expected = {SAME_PLAN: 2.5, SAME_DECODER: 5, BOTH: 10}
    assert values == pytest.approx(expected, rel=0.02)
    for interval in speedups.values():
        assert interval.low < interval.value < interval.high
        assert interval.high - interval.low < 0.1 * interval.value  # pairs of like examples
    plain = found["angular", "autoregressive"]
    assert set(plain.speedups) == {SAME_DECODER}
    assert plain.speedups[SAME_DECODER].value == pytest.approx(4, rel=0.02)
    assert set(found["base", "self_speculative"].speedups) == {SAME_PLAN}
    assert found["base", "autoregressive"].baselines == {}
    assert all(one.missing == {} for one in found.values())


def test_quality_changes_against_the_base_run_of_the_same_decoder(tmp_path):
    found = study(tmp_path)
    for decoder in ("autoregressive", "self_speculative"):
        change = found["angular", decoder].quality_changes["rouge-l"]
        assert change.value == pytest.approx(-0.1, abs=0.02)
        assert change.low < change.value < change.high < 0
        assert found["base", decoder].quality_changes == {}


@pytest.mark.parametrize(("sample", "equal"), [(False, (20, 20)), (True, None)])
def test_equal_greedy_outputs_are_counted_and_sampled_ones_are_not(tmp_path, sample, equal):
    found = study(tmp_path, generation={"sample": sample})["angular", "self_speculative"]
    assert found.equal_outputs == equal
    assert found.speedups[SAME_PLAN] is not None


def test_prompts_of_another_day_are_no_baseline(tmp_path):
    """The chat template holds the date."""
    for day, run in enumerate((AUTOREGRESSIVE, SPECULATIVE)):
        path = MadeUpRun(**run).write(tmp_path / str(day))
        with rewritten(path) as log:
            log["identity"]["prompt_tokens_fingerprint"] = f"day {day}"
    (missing,) = (one.missing for one in compare(read(tmp_path)) if one.missing)
    assert missing == {SAME_PLAN: "the nearest differs in prompt tokens (day 0, not day 1)"}


@pytest.mark.parametrize("changes", [{"exit_layer": 16}, {"num_speculations": 4}])
def test_base_runs_of_another_exit_layer_or_draft_length_are_no_baseline(tmp_path, changes):
    """Exit layer 30 was once compared with a base run at 31."""
    MadeUpRun(**SPECULATIVE).write(tmp_path)
    MadeUpRun(plan=angular_plan(2), **SPECULATIVE | changes).write(tmp_path)
    found = pruned(tmp_path)
    assert found.baselines == {}
    ((name, value),) = changes.items()
    told = f"the nearest differs in {name} ({SPECULATIVE[name]}, not {value})"
    assert found.missing[SAME_DECODER] == told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"runtime": {"dtype": "float16"}}, "dtype (bfloat16, not float16)"),
        ({"runtime": {"device": "other"}}, "device (made up, not other)"),
        ({"runtime": {"threads": 8}}, "threads (1, not 8)"),
        (
            {"runtime": {"versions": {"torch": "3", "transformers": "5.23.0"}}},
            "torch (2.13.0, not 3)",
        ),
        (
            {"identity": {"model_args": {"variant": "fp16"}}},
            "model_args ({}, not {'variant': 'fp16'})",
        ),
        ({"identity": {"model_fingerprint": "files 1"}}, "model (files 0, not files 1)"),
        ({"generation": {"max_steps": 9}}, "max_steps (512, not 9)"),
        ({"examples": 10}, "num_samples (20, not 10)"),
        ({"dataset": "top_v2"}, "dataset (human_eval, not top_v2)"),
        ({"data_seed": 1}, "prompts ("),
    ],
)
def test_a_run_under_another_condition_is_no_baseline(tmp_path, changes, told):
    MadeUpRun(**AUTOREGRESSIVE).write(tmp_path)
    MadeUpRun(plan=angular_plan(2), **AUTOREGRESSIVE, **changes).write(tmp_path)
    found = pruned(tmp_path)
    assert found.baselines == {}
    assert found.missing[SAME_DECODER].startswith(f"the nearest differs in {told}")


def test_hub_models_that_once_had_one_fingerprint_are_no_baselines_of_each_other(tmp_path):
    once = {"identity": {"model_fingerprint": "files " + hashlib.sha256().hexdigest()[:16]}}
    MadeUpRun(**AUTOREGRESSIVE, **once).write(tmp_path)
    MadeUpRun(plan=angular_plan(2), **AUTOREGRESSIVE, **once).write(tmp_path)
    found = pruned(tmp_path)
    assert found.missing == {}
    with rewritten(found.run.path) as log:
        log["model"]["name"] = "someone/other"
    found = pruned(tmp_path)
    told = "the nearest differs in model (made-up-7B, not someone/other)"
    assert found.missing == {SAME_DECODER: told}


def test_the_nearest_run_is_the_one_that_differs_least(tmp_path):
    other = {"runtime": {"dtype": "float16"}, "identity": {"truncate_prompt": True}}
    MadeUpRun(**AUTOREGRESSIVE, **other).write(tmp_path)
    MadeUpRun(**AUTOREGRESSIVE, generation={"max_steps": 9}).write(tmp_path)
    MadeUpRun(plan=angular_plan(2), **AUTOREGRESSIVE).write(tmp_path)
    found = pruned(tmp_path)
    assert found.missing[SAME_DECODER] == "the nearest differs in max_steps (9, not 512)"


def test_early_exit_inference_is_another_model_and_no_baseline(tmp_path):
    MadeUpRun(exit_layer=8).write(tmp_path)
    MadeUpRun(**SPECULATIVE).write(tmp_path)
    spoken = next(one for one in compare(read(tmp_path)) if one.run.num_speculations)
    assert spoken.missing == {SAME_PLAN: "the nearest differs in exit_layer (8, not None)"}


def test_the_newest_of_equal_baselines_counts(tmp_path):
    for number, seconds in enumerate((8.0, 4.0)):
        path = MadeUpRun(seconds=seconds, **AUTOREGRESSIVE).write(tmp_path / str(number))
        name = f"benchmark_2026010{number}_000000_{path.name.rpartition('_')[2]}"
        samples = path.with_suffix(".samples.jsonl")
        path.rename(path.with_name(name))
        samples.rename((path.parent / name).with_suffix(".samples.jsonl"))
    MadeUpRun(plan=angular_plan(2), seconds=1.0, **AUTOREGRESSIVE).write(tmp_path)
    found = pruned(tmp_path)
    assert found.speedups[SAME_DECODER].value == pytest.approx(4, rel=0.02)


def test_the_own_plan_is_a_baseline_before_others_that_keep_the_same_layers(tmp_path):
    plans = [random_plan(0.0, seed) for seed in (1, 2)]
    for plan, seconds in zip(plans, (4.0, 8.0), strict=True):
        MadeUpRun(plan=plan, seconds=seconds, **AUTOREGRESSIVE).write(tmp_path)
        MadeUpRun(plan=plan, seconds=2.0, **SPECULATIVE).write(tmp_path)
    MadeUpRun(seconds=2.0, **SPECULATIVE).write(tmp_path)  # without a baseline of its own plan
    spoken = {one.run.param: one for one in compare(read(tmp_path)) if one.run.num_speculations}
    speedups = {param: one.speedups[SAME_PLAN].value for param, one in spoken.items()}
    assert speedups["p=0.0 seed=1"] == pytest.approx(2, rel=0.02)
    assert speedups["p=0.0 seed=2"] == pytest.approx(4, rel=0.02)
    assert spoken[""].baselines[SAME_PLAN].kept_layers == spoken[""].run.kept_layers


def test_a_machine_that_was_slower_in_one_run_is_noted(tmp_path):
    """Speculative runs time full steps themselves: 31 take a second here."""
    MadeUpRun(seconds=1.0, **AUTOREGRESSIVE).write(tmp_path / "steady")
    MadeUpRun(seconds=0.5, **SPECULATIVE).write(tmp_path / "steady")
    steady = compare(read(tmp_path / "steady"))
    assert drifting_speedups(steady) == []
    assert [one.drift is None for one in steady] == [not r.run.num_speculations for r in steady]
    assert max(one.drift or 1 for one in steady) < 1.1
    for name, seconds in (("slow", 2.0), ("fast", 0.5)):
        MadeUpRun(seconds=seconds, **AUTOREGRESSIVE).write(tmp_path / name)
        MadeUpRun(seconds=0.5, **SPECULATIVE).write(tmp_path / name)
        (line,) = drifting_speedups(compare(read(tmp_path / name)))
        factor = float(re.search(r"^1 speed-up differs .* by a factor of up to ([\d.]+):", line)[1])
        assert factor == pytest.approx(2, rel=0.1)


def test_without_samples_speed_ups_have_no_interval(tmp_path):
    MadeUpRun(seconds=2.0, **AUTOREGRESSIVE).write(tmp_path)
    path = MadeUpRun(plan=angular_plan(2), seconds=1.0, **AUTOREGRESSIVE).write(tmp_path)
    path.with_suffix(".samples.jsonl").unlink()
    found = pruned(tmp_path)
    interval = found.speedups[SAME_DECODER]
    assert (interval.value, interval.low) == (pytest.approx(2, rel=0.02), None)
    assert found.quality_changes == {}
    assert quality_intervals(found.run) == {}


def test_plans_of_other_seeds_are_gathered(tmp_path):
    for seed in (1, 2, 3):
        for decoder in (AUTOREGRESSIVE, SPECULATIVE):
            MadeUpRun(plan=random_plan(0.2, seed), **decoder).write(tmp_path)
    MadeUpRun(plan=random_plan(0.1, 1), **AUTOREGRESSIVE).write(tmp_path)
    MadeUpRun(plan=random_plan(0.2, 4), runtime={"threads": 2}).write(tmp_path)
    groups = spread_over_seeds(compare(read(tmp_path)))
    assert list(map(sorted, groups)) == [[1, 2, 3], [1, 2, 3]]


def test_mean_and_deviation_by_hand():
    assert mean_and_deviation([1.0, None, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_deviation([1.0, None]) is None


@pytest.mark.parametrize("lacking", [AUTOREGRESSIVE, SPECULATIVE])
def test_passes_are_paired_by_number_where_one_run_lacks_a_value(tmp_path, lacking):
    """The machine slows down from pass to pass, alike in both runs."""
    for decoder in (AUTOREGRESSIVE, SPECULATIVE):
        path = MadeUpRun(examples=4, repeats=3, **decoder).write(tmp_path)
        with samples_of(path) as lines:
            for line in lines:
                line["decode_seconds"] = 4.0 ** line["repeat"]
            if decoder is lacking:
                lines[0]["threads"] = 7
    speedups = [one.speedups[SAME_PLAN] for one in compare(read(tmp_path)) if one.speedups]
    assert [one.value for one in speedups] == [pytest.approx(1)]
    assert (speedups[0].low, speedups[0].high) == pytest.approx((1, 1))
