"""Plans in two models: does pruning cost one of them more?"""

import csv
import dataclasses

import numpy
import pytest

import analyze_logs
from analysis.comparison import compare
from analysis.model_differences import ACCEPTANCE, model_differences
from benchmarks.made_up_plans import plan_of
from benchmarks.made_up_runs import MadeUpRun, angular_plan, base_plan
from command_line.script import run_script
from tests.analysis.test_logged_runs import samples_of
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


def write_quality_runs(folder, name, nats):
    """Write runs of the model in batches, on more prompts than `write_model` has."""
    for plan, its_nats in ((base_plan(), 2.0), (LAST, nats)):
        identity = {"model_fingerprint": name, "batch_size": 8}
        MadeUpRun(plan=plan, nats=its_nats, examples=40, identity=identity).write(folder)


def model_of(run):
    return run.record.identity["model_fingerprint"]


def lacking(run, index):
    """Return the run without the example at this place."""
    if index is None or run.drafter:
        return run
    kept = numpy.flatnonzero(numpy.arange(20) != index)
    return dataclasses.replace(run, examples=run.examples.at(kept))


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
    assert nats.change.low < 0.2 < nats.change.high
    assert nats.change.high < nats.other_change.low < 1.0 < nats.other_change.high
    assert nats.difference.value == pytest.approx(nats.change.value - nats.other_change.value)
    assert nats.difference.high < -0.5
    assert nats.p <= nats.adjusted_p < 0.001
    accepted = found[ACCEPTANCE]
    assert accepted.change.value > accepted.other_change.value
    assert accepted.difference.low > 0
    assert accepted.adjusted_p < 0.05
    # Scores of both fall alike.
    assert found["rouge-l"].difference.value == pytest.approx(0)
    assert found["rouge-l"].p == 1


def test_changes_are_of_the_prompts_that_all_four_runs_finished(tmp_path):
    write_model(tmp_path, "firm", nats=2.2)
    write_model(tmp_path, "frail", nats=3.0)
    missing = {("firm", "last"): 3, ("frail", "base"): 7}
    runs = [lacking(run, missing.get((model_of(run), run.method))) for run in read(tmp_path)]
    nats = by_score(model_differences(compare(runs)))["nats_per_token"]
    assert nats.pairs == 18
    kept = set(range(20)) - {3, 7}
    means = {
        (model_of(run), run.method): numpy.mean(
            [run.examples.scores["nats_per_token"][index] for index in kept]
        )
        for run in read(tmp_path)
        if not run.drafter
    }
    assert nats.change.value == pytest.approx(means["firm", "last"] - means["firm", "base"])
    assert nats.other_change.value == pytest.approx(means["frail", "last"] - means["frail", "base"])


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
        write_quality_runs(tmp_path, name, nats)
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


def test_runs_under_other_conditions_with_one_quality_run_are_one_row(tmp_path):
    """Eager and compiled speed runs have the same quality run: its changes are tested once."""
    for name, nats in (("a", 2.2), ("b", 3.0)):
        for compiled in (False, True):
            more = {"identity": {"compile": compiled}}
            write_model(tmp_path, name, nats=nats, examples=8, **more)
        write_quality_runs(tmp_path, name, nats)
    scores = [one.score for one in differences(tmp_path)]
    assert sorted(scores) == [ACCEPTANCE, ACCEPTANCE, "exact_match", "nats_per_token", "rouge-l"]


def test_equal_values_of_all_prompts_are_one_test(tmp_path):
    """Made-up plans of one size have equal exact matches and nats, and a ROUGE-L of their own."""
    both = LAST, plan_of("layers", 2)
    write_model(tmp_path, "a", nats=2.2, plans=both)
    write_model(tmp_path, "b", nats=3.0, plans=both)
    found = differences(tmp_path)
    assert len(found) == 2 * 4
    nats = [one for one in found if one.score == "nats_per_token"]
    assert [one.adjusted_p for one in nats] == pytest.approx([6 * nats[0].p] * 2)


def test_a_plan_that_was_calibrated_twice_is_compared_once(tmp_path):
    """Of plans of one name, those of the same layers are compared."""
    early, late = (angular_plan(2, first) for first in (4, 20))
    write_model(tmp_path, "a", nats=2.2, plans=(late, early))
    write_model(tmp_path, "b", nats=2.2, plans=(late,))
    write_model(tmp_path, "c", nats=2.2, plans=(angular_plan(2, 9), angular_plan(2, 12)))
    found = [one for one in differences(tmp_path) if one.score == "nats_per_token"]
    assert [[model_of(use.run) for use in (one.use, one.other)] for one in found] == [
        ["a", "b"],
        ["a", "c"],
        ["b", "c"],
    ]
    assert found[0].use.plan == found[0].other.plan == late


def test_a_score_comes_from_the_plans_of_a_name_that_have_it(tmp_path):
    """Those of equal layers were measured as models alone, others as drafters too."""
    early, late = (angular_plan(2, first) for first in (4, 20))
    write_model(tmp_path, "a", nats=2.2, plans=(early,))
    write_model(tmp_path, "b", nats=3.0, plans=(late,))
    MadeUpRun(plan=late, nats=2.2, identity={"model_fingerprint": "a"}).write(tmp_path)
    found = by_score(differences(tmp_path))
    assert found["nats_per_token"].use.plan == late
    assert found[ACCEPTANCE].use.plan == early


def test_equal_values_on_other_data_are_other_tests(tmp_path):
    """No exact match changes, on either data set."""
    for dataset in ("human_eval", "gsm8k"):
        for name, nats in (("a", 2.2), ("b", 3.0)):
            write_model(tmp_path, name, nats=nats, dataset=dataset)
    found = differences(tmp_path)
    assert len(found) == 2 * 4
    likeliest = min(found, key=lambda one: one.p)
    assert likeliest.adjusted_p == pytest.approx(8 * likeliest.p)


def test_one_checkpoint_under_two_names_is_one_model(tmp_path):
    write_model(tmp_path / "1", "files", nats=2.2, model="./model")
    write_model(tmp_path / "2", "files", nats=2.2, model="model", plans=(angular_plan(2),))
    assert not differences(tmp_path)
    write_model(tmp_path / "3", "others", nats=2.2, model="another")
    (nats,) = [one for one in differences(tmp_path) if one.score == "nats_per_token"]
    assert {model_of(use.run) for use in (nats.use, nats.other)} == {"files", "others"}


def test_changes_of_shares_have_a_width_where_nothing_changes(tmp_path):
    for name in "ab":
        write_model(tmp_path, name, nats=2.2)
    exact = by_score(differences(tmp_path))["exact_match"]
    assert exact.change.value == 0
    assert exact.change.low < 0 < exact.change.high


def test_an_older_exact_match_that_is_no_share_has_bounds_around_its_change(tmp_path):
    for name in "ab":
        write_model(tmp_path, name, nats=2.2)
    for run in read(tmp_path):
        with samples_of(run.path) as lines:
            for line in lines:
                line["scores"]["exact_match"] = 0.75 if run.method == "base" else 0.25
    exact = by_score(differences(tmp_path))["exact_match"]
    for change in (exact.change, exact.other_change):
        assert change.low <= change.value == -0.5 <= change.high
