"""Plans in two models: does pruning cost one of them more?"""

import csv

import numpy
import pytest

import analyze_logs
from analysis.comparison import compare
from analysis.model_differences import ACCEPTANCE, model_differences
from benchmarks.made_up_plans import plan_of
from benchmarks.made_up_runs import MadeUpRun, base_plan
from command_line.script import run_script
from tests.made_up import read

LAST, RANDOM = plan_of("last", 2), plan_of("random", 2)


def write_model(folder, name, nats, acceptance=0.9, plans=(LAST,), **more):
    """Write a model, of whose references pruned plans need `nats` per token, the whole one 2."""
    identity = {"model_fingerprint": name} | more.pop("identity", {})
    MadeUpRun(nats=2.0, identity=identity, **more).write(folder)
    for plan in plans:
        MadeUpRun(plan=plan, nats=nats, identity=identity, **more).write(folder)
        drafts = {"draft_plan": plan, "num_speculations": 4, "acceptance": acceptance}
        drafting = identity | {"draft_plan": plan.approach}
        MadeUpRun(identity=drafting, **drafts, **more).write(folder)


def differences(folder):
    return model_differences(compare(read(folder)))


def by_score(found):
    return {one.score: one for one in found}


def test_the_model_that_loses_more_is_found(tmp_path):
    write_model(tmp_path, "firm", nats=2.2, acceptance=0.9)
    write_model(tmp_path, "frail", nats=3.0, acceptance=0.5)
    found = by_score(differences(tmp_path))
    assert set(found) == {"rouge-l", "exact_match", "nats_per_token", ACCEPTANCE}
    nats = found["nats_per_token"]
    assert nats.pairs == 20
    assert nats.mine.low < 0.2 < nats.mine.high < nats.its.low < 1.0 < nats.its.high
    assert nats.difference.value == pytest.approx(nats.mine.value - nats.its.value)
    assert nats.difference.high < -0.5
    assert nats.p <= nats.adjusted_p < 0.001
    accepted = found[ACCEPTANCE]
    assert accepted.mine.value > accepted.its.value
    assert accepted.difference.low > 0
    assert accepted.adjusted_p < 0.05
    # Scores of both fall alike.
    assert found["rouge-l"].difference.value == pytest.approx(0)
    assert found["rouge-l"].p == 1


def test_changes_are_of_the_prompts_that_all_four_runs_finished(tmp_path):
    write_model(tmp_path, "firm", nats=2.2)
    write_model(tmp_path, "frail", nats=3.0)
    nats = by_score(differences(tmp_path))["nats_per_token"]
    means = {}
    for run in read(tmp_path):
        if run.examples.teacher_forced:
            name = run.record.identity["model_fingerprint"]
            means[name, run.method] = run.examples.scores["nats_per_token"].mean()
    assert nats.mine.value == pytest.approx(means["firm", "last"] - means["firm", "base"])
    assert nats.its.value == pytest.approx(means["frail", "last"] - means["frail", "base"])


def test_every_plan_that_both_models_have_is_compared_once(tmp_path):
    write_model(tmp_path, "a", nats=2.2, plans=(LAST, RANDOM))
    write_model(tmp_path, "b", nats=2.2, plans=(LAST, RANDOM, plan_of("last", 4)))
    write_model(tmp_path, "c", nats=2.2, plans=(RANDOM,))
    found = [one for one in differences(tmp_path) if one.score == ACCEPTANCE]
    pairs = [
        tuple(each.run.record.identity["model_fingerprint"] for each in (one.use, one.other))
        for one in found
    ]
    names = [one.use.name for one in found]
    assert sorted(zip(pairs, names, strict=True)) == sorted(
        [
            (("a", "b"), LAST.approach),
            (("a", "b"), RANDOM.approach),
            (("a", "c"), RANDOM.approach),
            (("b", "c"), RANDOM.approach),
        ]
    )


@pytest.mark.parametrize(
    "other",
    [
        {"identity": {"prompt_tokens_fingerprint": "others"}},
        {"data_seed": 1},
        {"generation": {"max_steps": 8}},
    ],
)
def test_models_under_other_conditions_are_not_compared(tmp_path, other):
    write_model(tmp_path, "a", nats=2.2)
    write_model(tmp_path, "b", nats=2.2, **other)
    assert not differences(tmp_path)


def test_too_few_prompts_are_no_test(tmp_path):
    for name in "ab":
        write_model(tmp_path, name, nats=2.2, examples=5)
    assert not differences(tmp_path)


def test_a_prompt_without_drafts_has_no_acceptance(tmp_path):
    for name in "ab":
        write_model(tmp_path, name, nats=2.2, examples=7)
    comparisons = compare(read(tmp_path))
    drafting = [one.run for one in comparisons if one.run.drafter]
    drafting[0].examples.drafted_tokens[2] = 0
    with numpy.errstate(all="raise"):
        found = by_score(model_differences(comparisons))
    assert found[ACCEPTANCE].pairs == 6


def test_the_quality_run_is_compared_where_there_is_one(tmp_path):
    """Both read the same rows; the second, in batches, more of them."""
    for name, nats in (("a", 2.2), ("b", 3.0)):
        write_model(tmp_path, name, nats=nats, examples=8)
        for plan in (base_plan(), LAST):
            run = MadeUpRun(plan=plan, nats=2.0 if plan.method == "base" else nats, examples=40)
            run.identity = {"model_fingerprint": name, "batch_size": 8}
            run.write(tmp_path)
    found = by_score(differences(tmp_path))
    assert (found["nats_per_token"].pairs, found[ACCEPTANCE].pairs) == (40, 8)


def test_the_table_has_a_row_per_plan_and_score(tmp_path, capsys):
    write_model(tmp_path / "logs", "firm", nats=2.2)
    write_model(tmp_path / "logs", "frail", nats=3.0)
    flags = [str(tmp_path / "logs"), "--output_dir", str(tmp_path / "out"), "--no_plots"]
    assert run_script(analyze_logs.main, flags) == 0
    printed = capsys.readouterr().out.split("Plans in two models")[1]
    assert "other's change" in printed
    text = (tmp_path / "out" / "summary_models.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["score"] for row in rows] == [
        ACCEPTANCE,
        "exact_match",
        "nats_per_token",
        "rouge-l",
    ]
    assert {row["param"] for row in rows} == {"n=2"}
    (nats,) = (row for row in rows if row["score"] == "nats_per_token")
    assert float(nats["difference_low"]) < float(nats["difference"]) < 0
