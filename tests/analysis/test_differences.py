"""Each pruned run is tested against its base run, and each test counts once in Holm's family."""

import math

import numpy
import pytest
from scipy import stats

from analysis.comparison import compare
from analysis.detail_tables import differences_table
from analysis.differences import MCNEMAR, SIGN_FLIPS, find_differences
from analysis.significance import holm
from benchmarks.made_up_runs import MadeUpRun, angular_plan, base_plan
from tests.analysis.test_logged_runs import samples_of
from tests.made_up import AUTOREGRESSIVE, SPECULATIVE, read


def found(folder):
    """Return the differences between the runs below the folder by score, autoregressive first."""
    differences = find_differences(compare(read(folder)))
    by_score = {}
    for one in sorted(differences, key=lambda one: one.run.strategy):
        by_score.setdefault(one.score, []).append(one)
    return by_score


def pair(folder, examples=40, dataset="human_eval", **pruned):
    MadeUpRun(dataset, examples=examples, nats=2.0, **AUTOREGRESSIVE).write(folder)
    changed = {"dataset": dataset, "score": 0.3, "nats": 3.0} | pruned
    return MadeUpRun(plan=angular_plan(2), examples=examples, **changed).write(folder)


def test_scores_of_0_and_1_are_tested_by_pairs_and_others_by_sign_flips(tmp_path):
    pair(tmp_path)
    differences = found(tmp_path)
    (matched,) = differences["exact_match"]
    assert (matched.test, matched.pairs) == (MCNEMAR, 40)
    counts = matched.only_base, matched.only_pruned
    assert matched.p == pytest.approx(stats.binomtest(counts[1], sum(counts)).pvalue)
    assert matched.change.value == pytest.approx((counts[1] - counts[0]) / 40)
    assert matched.pruned_mean - matched.base_mean == pytest.approx(matched.change.value)
    (rouge,), (nats,) = differences["rouge-l"], differences["nats_per_token"]
    for one, sign in ((rouge, -1), (nats, 1)):
        assert (one.test, one.only_base) == (SIGN_FLIPS, None)
        assert sign * one.change.value > one.detectable > 0
        assert one.change.low < one.change.value < one.change.high
        assert one.p < 1e-6
    assert nats.pruned_mean == pytest.approx(3, rel=0.05)


def test_holms_family_is_the_table(tmp_path):
    pair(tmp_path, score=0.48)
    differences = [one for group in found(tmp_path).values() for one in group]
    assert [one.adjusted_p for one in differences] == holm([one.p for one in differences])


def test_a_decoder_that_writes_the_same_texts_adds_no_test(tmp_path):
    pair(tmp_path)
    alone = {score: group[0].adjusted_p for score, group in found(tmp_path).items()}
    for run in read(tmp_path):
        plan = {"plan": angular_plan(2)} if run.removed_layers else {}
        path = MadeUpRun(examples=40, **plan, **SPECULATIVE).write(tmp_path / "speculative")
        lines = run.path.with_suffix(".samples.jsonl").read_text()
        path.with_suffix(".samples.jsonl").write_text(lines)
    both = found(tmp_path)
    assert {len(group) for group in both.values()} == {2}
    assert {score: group[1].adjusted_p for score, group in both.items()} == alone


def test_speed_runs_on_few_prompts_add_no_test_where_another_run_measured_quality(tmp_path):
    batched = {"identity": {"batch_size": 8}, "exit_layer": None, "num_speculations": None}
    for plan, score in ((base_plan(), 0.5), (angular_plan(2), 0.3)):
        MadeUpRun(plan=plan, score=score, examples=40, **batched).write(tmp_path)
    alone = found(tmp_path)
    for plan, score in ((base_plan(), 0.5), (angular_plan(2), 0.3)):
        for decoder in (AUTOREGRESSIVE, SPECULATIVE):
            MadeUpRun(plan=plan, score=score, examples=8, **decoder).write(tmp_path)
    both = found(tmp_path)
    assert {len(group) for group in both.values()} == {1}
    for score, (one,) in both.items():
        assert (one.pairs, one.adjusted_p) == (40, alone[score][0].adjusted_p)


@pytest.mark.parametrize(("examples", "tested"), [(5, 1), (6, 2)])
def test_tests_that_can_never_reach_5_percent_are_no_part_of_the_family(tmp_path, examples, tested):
    pair(tmp_path, score=0.48)
    alone = {score: group[0].adjusted_p for score, group in found(tmp_path).items()}
    pair(tmp_path / "few", examples, score=0.48, dataset="xsum_summarization")
    both = [one for group in found(tmp_path).values() for one in group]
    family = [one for one in both if one.pairs >= 6]
    assert len(family) == tested * len(alone)
    assert [one.adjusted_p for one in family] == holm([one.p for one in family])
    assert all(one.adjusted_p == one.p for one in both if one.pairs < 6)


def test_nats_show_a_digit_more(tmp_path):
    pair(tmp_path)
    table = differences_table(compare(read(tmp_path)))
    shown = {row["score"]: table.columns["base"](row) for row in table.rows}
    assert shown["nats_per_token"] == f"{found(tmp_path)['nats_per_token'][0].base_mean:.4f}"
    assert shown["rouge-l"] == f"{found(tmp_path)['rouge-l'][0].base_mean:.3f}"


@pytest.mark.parametrize("examples", [1, 2, 5])
def test_few_prompts_show_nothing_and_are_no_error(tmp_path, examples):
    pair(tmp_path, examples)
    differences = [one for group in found(tmp_path).values() for one in group]
    assert differences
    assert all(one.p > 0.05 and one.detectable is None for one in differences)
    table = differences_table(compare(read(tmp_path)))
    assert "| -" in table.text("markdown")


def test_equal_scores_are_no_difference(tmp_path):
    path = pair(tmp_path)
    (base,) = (one for one in tmp_path.glob("*.json") if one != path)
    with samples_of(base) as lines:
        scores = [line["scores"] for line in lines]
    with samples_of(path) as lines:
        for line, same in zip(lines, scores, strict=True):
            line["scores"] = same
    for score in ("rouge-l", "exact_match"):
        (one,) = found(tmp_path)[score]
        assert (one.p, one.adjusted_p, one.change.value) == (1, 1, 0)


def test_an_older_exact_match_that_is_no_share_is_tested_as_a_mean(tmp_path):
    path = pair(tmp_path)
    with samples_of(path) as lines:
        lines[0]["scores"]["exact_match"] = 0.5
    assert found(tmp_path)["exact_match"][0].test == SIGN_FLIPS


def test_runs_without_samples_have_no_differences(tmp_path):
    pair(tmp_path).with_suffix(".samples.jsonl").unlink()
    assert found(tmp_path) == {}


def test_the_table_names_both_runs(tmp_path):
    pair(tmp_path)
    table = differences_table(compare(read(tmp_path)))
    ids = {run.record.run_id: run for run in read(tmp_path)}
    for row in table.rows:
        assert ids[row["run"]].path.name == row["log"]
        assert ids[row["base_run"]].path.name == row["base_log"]
        assert all(math.isfinite(row[name]) for name in ("p", "p_holm", "change_low"))
    assert numpy.unique([row["score"] for row in table.rows]).size == len(table.rows)
