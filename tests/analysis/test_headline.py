"""The runs that lead a report: the fastest lossless one, the fastest within a loss of quality."""

import dataclasses

import pytest

from analysis.comparison import compare
from analysis.headline import headlines, loss_of
from benchmarks.made_up_runs import MadeUpRun, angular_plan
from tests.made_up import AUTOREGRESSIVE, SPECULATIVE, read

COMPILED = {"identity": {"compile": True}}


def found(folder, quality="rouge-l", most_loss=0.01):
    return headlines(compare(read(folder)), quality, most_loss)


def write(folder, seconds, **more):
    return MadeUpRun(seconds=seconds, **more).write(folder).name


def test_the_fastest_lossless_run_is_told_against_eager_and_compiled_baselines(tmp_path):
    eager = write(tmp_path, 1.0, **AUTOREGRESSIVE)
    compiled = write(tmp_path, 0.5, **AUTOREGRESSIVE, **COMPILED)
    write(tmp_path, 0.4, **SPECULATIVE)
    fastest = write(tmp_path, 0.2, **SPECULATIVE, **COMPILED)
    write(tmp_path, 0.1, plan=angular_plan(2), **SPECULATIVE)  # fast, and not lossless
    (headline,) = found(tmp_path)
    choice = headline.lossless
    assert (choice.run.path.name, choice.candidates) == (fastest, 4)
    assert [(one.kind, one.run.path.name, one.is_best) for one in choice.baselines] == [
        ("compiled", compiled, True),
        ("eager", eager, False),
    ]
    speeds = [choice.run.speed / one.run.speed for one in choice.baselines]
    assert [one.speedup.value for one in choice.baselines] == pytest.approx(speeds)
    assert all(one.speedup.low < one.speedup.high for one in choice.baselines)


def test_an_autoregressive_run_may_be_the_fastest_and_is_no_baseline_of_itself(tmp_path):
    fastest = write(tmp_path, 0.1, **AUTOREGRESSIVE, **COMPILED)
    write(tmp_path, 1.0, **AUTOREGRESSIVE)
    write(tmp_path, 0.5, **SPECULATIVE)
    choice = found(tmp_path)[0].lossless
    assert choice.run.path.name == fastest
    assert [(one.kind, one.is_best) for one in choice.baselines] == [("eager", False)]


def test_a_pruned_plan_leads_only_within_the_loss(tmp_path):
    write(tmp_path, 1.0, score=0.5, **AUTOREGRESSIVE)
    near = write(tmp_path, 0.8, score=0.48, plan=angular_plan(1), **AUTOREGRESSIVE)
    far = write(tmp_path, 0.4, score=0.3, plan=angular_plan(2), **AUTOREGRESSIVE)
    for most_loss, name in ((0.1, near), (0.5, far)):
        choice = found(tmp_path, most_loss=most_loss)[0].lossy
        assert choice.run.path.name == name
        assert choice.loss.value <= most_loss
        assert choice.loss.value == pytest.approx(-choice.compared.quality_changes["rouge-l"].value)
        assert choice.loss.low <= choice.loss.value <= choice.loss.high
    (headline,) = found(tmp_path, most_loss=0)
    assert (headline.lossy, headline.pruned) == (None, 2)
    assert 0 < headline.least_loss < 0.1


def test_a_longer_edit_distance_is_a_loss(tmp_path):
    write(tmp_path, 1.0, score=0.5, **AUTOREGRESSIVE)
    write(tmp_path, 0.8, score=0.9, plan=angular_plan(1), **AUTOREGRESSIVE)
    pruned = compare(read(tmp_path))[-1]
    assert loss_of(pruned, "edit_distance").value > 0 > loss_of(pruned, "rouge-l").value


def test_without_a_base_run_no_pruned_run_leads_and_no_baseline_is_made_up(tmp_path):
    write(tmp_path, 1.0, plan=angular_plan(1), **AUTOREGRESSIVE)
    (headline,) = found(tmp_path)
    assert (headline.lossless, headline.lossy, headline.least_loss) == (None, None, None)
    write(tmp_path, 0.5, **SPECULATIVE)
    assert found(tmp_path)[0].lossless.baselines == []


def test_runs_under_other_conditions_do_not_compete(tmp_path):
    half = {"runtime": {"dtype": "float16"}}
    write(tmp_path, 1.0, **AUTOREGRESSIVE)
    write(tmp_path, 0.5, **SPECULATIVE)
    write(tmp_path, 0.1, **SPECULATIVE, **half)
    first, second = found(tmp_path)
    assert (first.runs, second.runs) == (2, 1)
    assert len(first.lossless.baselines) == 1
    assert second.lossless.baselines == []
    assert first.title != second.title


def test_early_exit_inference_is_not_lossless(tmp_path):
    write(tmp_path, 1.0, **AUTOREGRESSIVE)
    early = MadeUpRun(seconds=0.1, exit_layer=8)
    dataclasses.replace(early, num_speculations=None).write(tmp_path)
    assert found(tmp_path)[0].lossless.run.exit_layer is None
