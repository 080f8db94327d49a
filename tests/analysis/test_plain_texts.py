"""Runs on plain texts, which are measured and not decoded, have intervals, changes and tests."""

import pytest

from analysis.comparison import compare, quality_intervals
from analysis.differences import find_differences
from analysis.tables import make_tables
from benchmarks.made_up_runs import MadeUpRun, angular_plan, base_plan
from runs.likelihood import likelihood
from runs.metrics import summarize
from runs.record import SampleRecord
from tests.analysis.pages import parsed
from tests.analysis.test_logged_runs import samples_of
from tests.conftest import rewritten
from tests.made_up import AUTOREGRESSIVE, read

_KEPT = ("index", "example_id", "prompt_tokens", "reference", "teacher_forced", "repeat")


def write_texts(folder, **more):
    """Write a run whose samples are those of plain texts: no output, no score, no time."""
    path = MadeUpRun(dataset="text", **AUTOREGRESSIVE, **more).write(folder)
    with samples_of(path) as lines:
        kept = [{name: line[name] for name in _KEPT} for line in lines]
        samples = [SampleRecord(**one, status="measured") for one in kept]
        lines[:] = map(vars, samples)
    with rewritten(path) as log:
        log |= summarize(samples)
        log["teacher_forced"] = likelihood(one.teacher_forced for one in samples)
    return path


@pytest.fixture
def texts(tmp_path):
    write_texts(tmp_path, plan=base_plan(), nats=2.0)
    write_texts(tmp_path, plan=angular_plan(2), nats=3.0)
    return tmp_path


def test_plain_texts_have_intervals_changes_and_tests(texts):
    runs = read(texts)
    for run in runs:
        interval = quality_intervals(run)["nats_per_token"]
        assert interval.low < interval.value < interval.high
        assert run.speed is None
        assert not run.examples.timed.any()
        assert not run.examples.decoded_tokens.any()
    (pruned,) = (one for one in compare(runs) if one.run.removed_layers)
    assert pruned.quality_changes["nats_per_token"].value == pytest.approx(1, abs=0.2)
    (found,) = find_differences([pruned])
    assert (found.score, found.pairs) == ("nats_per_token", 20)
    assert found.p < 0.001
    metrics = make_tables(runs, compare(runs))[0]
    assert all("[" in metrics.columns["perplexity"](row) for row in metrics.rows)


def test_tables_of_plain_texts_alone_have_no_columns_of_decoding(texts):
    of_decoding = {"ROUGE-L", "BLEU", "exact match", "edit distance", "acceptance"}
    of_time = {"tokens/s", "total time, s", "time per token, s"}
    runs = read(texts)
    metrics, timing = make_tables(runs, compare(runs))[:2]
    assert not of_decoding & set(metrics.columns)
    assert not of_time & set(timing.columns)
    MadeUpRun(exit_layer=8, num_speculations=6).write(texts)
    runs = read(texts)
    metrics, timing = make_tables(runs, compare(runs))[:2]
    assert of_decoding <= set(metrics.columns)
    assert of_time <= set(timing.columns)


def test_a_report_of_plain_texts_shows_their_quality_and_no_headline(texts):
    found = parsed(texts, quality="nats_per_token")
    assert "no run can be called the fastest" in found.text
    (setting,) = found.data["settings"]
    assert sorted(setting["plots"]["quality"]["quality_points"]["x"]) == [0, 2]
