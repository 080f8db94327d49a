"""Runs with every drafter and option: flags, logs, sweeps, tables, checks of losslessness."""

import dataclasses

import pytest

import correctness
import generate
from analysis.logged_runs import find_logged_runs
from analysis.row_parts import facts, run_columns
from arguments.drafting import CountingArguments, DraftArguments, calibrating
from arguments.pruning import PruneArguments
from command_line.script import run_script
from runs.reader import find_runs, read_record, read_samples
from self_speculation.drafters import DRAFTERS
from self_speculation.text_generator import TextGenerator
from tests.conftest import ANGULAR, GREEDY, SPECULATIVE, VOCABULARY, numbered

LOOKUP = ["--drafter", "lookup"]
RECYCLING = ["--drafter", "recycling"]
HYBRID = ["--drafter", "hybrid", "--hybrid_drafter"]
EXIT = ["--exit_layer", "3"]
ADAPTIVE = ["--draft_stop", "adaptive", "--never_slower", "true"]
CONFIDENT = ["--draft_stop", "confidence", "--draft_threshold", "0.3"]
VOCABULARIES = ["--draft_vocab", "100", "--calibration_samples", "4"]
HISTORY = ["--lookup_history", "true"]


def ids(samples):
    return [sample.output_ids for sample in samples]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (LOOKUP, "lookup"),
        ([*LOOKUP, *HISTORY, *ADAPTIVE], "lookup + history + adaptive + gate"),
        (RECYCLING, "recycling"),
        ([*HYBRID, "recycling", "--hybrid_match", "3"], "lookup from 3 tokens or recycling"),
        (
            [*HYBRID, "early_exit", *EXIT, *VOCABULARIES],
            "lookup or early_exit + vocabulary 100",
        ),
        ([*EXIT, *VOCABULARIES, *CONFIDENT], "vocabulary 100 + confidence 0.3"),
        (
            [*HYBRID, "pruned", "--draft_prune_method", "last", "--draft_prune_n", "3"],
            "lookup or pruned",
        ),
    ],
)
@pytest.mark.parametrize("plan", [[], ANGULAR])
def test_outputs_are_those_of_plain_decoding(run, plan, flags, name):
    _, _, plain = run(*GREEDY, *plan)
    code, record, samples = run(*GREEDY, *plan, *SPECULATIVE, *flags)
    assert code == 0
    assert ids(samples) == ids(plain)
    metrics = record.metrics
    assert metrics["counts"]["verify_passes"] == sum(len(sample.rounds) for sample in samples)
    plain_rounds = metrics["plain_rounds"]
    assert plain_rounds["count"] == sum(not d for one in samples for d, _ in one.rounds)
    hybrid = "hybrid" in flags
    assert all(bool(sample.drafters) == hybrid for sample in samples)
    if hybrid and metrics["counts"]["drafted_tokens"]:
        drafted = sum(one["drafted"] for one in metrics["drafts_by"].values())
        assert drafted == metrics["counts"]["drafted_tokens"]
        assert set(metrics["drafts_by"]) <= {"lookup", flags[3]}
    earlier = [sample.earlier_answers for sample in samples]
    assert earlier == ([0, 1, 2] if HISTORY[0] in flags else [None] * 3)
    assert record.identity["drafting"]


def test_a_run_with_default_drafts_keeps_its_identity(run):
    _, record, _ = run(*GREEDY, *SPECULATIVE, *EXIT)
    assert "drafting" not in record.identity
    assert record.metrics["drafts_by"] == {}
    assert record.metrics["plain_rounds"] == {
        "count": 0,
        "rate": 0.0,
        "switches": 0,
        "trials": 0,
        "lost_ms": None,
    }


def test_switches_are_logged_with_their_cost(run):
    """Drafts of the tiny model's first layer never win: its verifier is as fast."""
    flags = ["--exit_layer", "5", "--never_slower", "true", "--max_steps", "48"]
    _, record, samples = run("--sample", "false", *SPECULATIVE, *flags)
    switches = [switch for sample in samples for switch in sample.switches]
    assert record.metrics["plain_rounds"]["switches"] == sum(not s["is_trial"] for s in switches)
    for switch in switches:
        assert switch["kind"] == "early_exit"
        assert switch["drafts"] == (
            switch["drafting_ms"] < switch["plain_ms"] or switch["is_trial"]
        )
        assert 0 <= switch["token"] < 48
    assert any(not drafted for sample in samples for drafted, _ in sample.rounds)


def test_a_resumed_run_with_history_has_the_tokens_of_an_unbroken_one(run, rows, monkeypatch):
    """The resumed start knows no answer of the start before."""
    flags = ["--sample", "true", "--max_steps", "24", *SPECULATIVE]
    flags += [*HYBRID, "recycling", *HISTORY]
    _, unbroken, whole = run(*flags, samples="4")
    ordinary, asked = TextGenerator.generate, []

    def broken(self, *arguments, **named):
        asked.append(arguments)
        if len(asked) == 4:  # the warm-up, and two prompts
            raise KeyboardInterrupt
        return ordinary(self, *arguments, **named)

    folder = ["--output_dir", str(rows.parent / "resumed")]
    with monkeypatch.context() as patch:
        patch.setattr(TextGenerator, "generate", broken)
        assert run(*flags, *folder, samples="4")[0] == 130
    assert run(*flags, *folder, samples="4")[0] == 0
    (path,) = find_runs(rows.parent / "resumed")
    resumed = read_samples(path)
    assert read_record(path).run_id == unbroken.run_id
    assert ids(resumed) == ids(whole)
    assert [one.earlier_answers for one in whole] == [0, 1, 2, 3]
    assert [one.earlier_answers for one in resumed] == [0, 1, 0, 1]


SAMPLED = ["--sample", "true", "--temperature", "0.3", "--num_draws", "200"]


@pytest.mark.parametrize("rule", [[], SAMPLED])
@pytest.mark.parametrize(
    "flags", [LOOKUP, [*HYBRID, "recycling", *ADAPTIVE], [*EXIT, *VOCABULARIES, *CONFIDENT]]
)
def test_correctness_checks_drafters(words, flags, rule, capsys):
    line = words(*flags, "--num_speculations", "3", *rule, "--max_steps", "12", prompts=2)
    assert run_script(correctness.main, line) == 0
    assert "complete: 2 prompts: 2 equal" in capsys.readouterr().out


def test_generate_shows_the_drafts_of_a_lookup(checkpoint, capsys):
    flags = ["--model", str(checkpoint), "--prompt", "abcabcabcabc", *GREEDY, *SPECULATIVE]
    assert run_script(generate.main, [*flags, *LOOKUP, "--streamer", "speculative"]) == 0
    assert "drafts accepted" in capsys.readouterr().err


def test_a_sweep_compares_drafters(run_sweep):
    code, folder = run_sweep(
        *["--drafters", "lookup", "hybrid", "early_exit", "--hybrid_drafter", "recycling"],
        *["--draft_stop", "adaptive", "--draft_vocab", "60", "--calibration_samples", "3"],
    )
    assert code == 0
    runs = find_logged_runs([folder]).runs
    decoders = {(one.exit_layer, one.num_speculations, one.drafting) for one in runs}
    options = "vocabulary 60 + adaptive"
    assert decoders == {(None, None, "")} | {
        (exit_layer, drafts, name)
        for drafts in (1, 3)
        for exit_layer, name in [
            (None, "lookup + adaptive"),
            (None, "lookup or recycling + adaptive"),
            (2, options),
            (4, options),
        ]
    }
    shown = run_columns(runs)["strategy"]
    names = {shown(facts(one)) for one in runs}
    assert "drafts by lookup or recycling + adaptive, k=3" in names
    assert f"self_speculative E=4 {options} k=3" in names
    (text,) = {read_record(path).identity["generation"]["sample"] for path in find_runs(folder)}
    assert text is False


def test_a_vocabulary_calibrates_a_plan_that_measures_nothing(run):
    _, record, _ = run(*GREEDY, *SPECULATIVE, *EXIT, *VOCABULARIES)
    assert record.data["calibration"]["examples"] == 4
    assert record.identity["plan"]["calibration_fingerprint"] is None
    other = [*VOCABULARIES[:2], "--calibration_samples", "5"]
    _, more, _ = run(*GREEDY, *SPECULATIVE, *EXIT, *other)
    assert more.run_id != record.run_id
    flags = DraftArguments(draft_vocab=100)
    assert isinstance(calibrating(PruneArguments(), flags), CountingArguments)


BAD = {
    "--drafter lookup --exit_layer 3": "--exit_layer 3: contradicts --drafter lookup, which runs",
    "--drafter hybrid": "--drafter hybrid: needs --hybrid_drafter",
    "--drafter hybrid --hybrid_drafter lookup": "--hybrid_drafter lookup: a hybrid of lookup with",
    "--drafter hybrid --hybrid_drafter hybrid": "--hybrid_drafter",
    "--drafter hybrid --hybrid_drafter early_exit": "--exit_layer -1: ",
    "--drafter hybrid --hybrid_drafter pruned": "--drafter hybrid: needs --draft_prune_method",
    "--drafter lookup --hybrid_drafter recycling": "--hybrid_drafter recycling: only with drafters",
    "--drafter lookup --hybrid_match 3": "--hybrid_match 3: only with drafters hybrid",
    "--exit_layer 3 --lookup_history true": "--lookup_history true: only with drafters lookup",
    "--drafter lookup --draft_vocab 50": "--draft_vocab 50: only with drafters early_exit, pruned",
    "--exit_layer 3 --draft_vocab 0": "--draft_vocab 0: must be at least 1",
    f"--exit_layer 3 --draft_vocab {VOCABULARY + 1}": f"must be at most {VOCABULARY}, the model's",
    "--exit_layer 3 --draft_stop confidence": "--draft_stop confidence: needs --draft_threshold",
    "--exit_layer 3 --draft_threshold 0.5": "--draft_threshold 0.5: only with --draft_stop",
    "--exit_layer 3 --draft_stop confidence --draft_threshold 1": "must be in (0, 1)",
    "--exit_layer 3 --draft_stop confidence --draft_threshold nan": "must be in (0, 1)",
    "--drafter lookup --draft_stop confidence --draft_threshold 0.5": "only with drafters early_",
    "--drafter lookup --draft_prune_n 3": "--draft_prune_n 3: only with --drafter pruned",
}


@pytest.mark.parametrize("flags", BAD)
def test_options_that_do_not_belong_together_are_one_line(run, flags, capsys):
    code, record, _ = run(*GREEDY, *SPECULATIVE, *flags.split())
    assert (code, record) == (2, None)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert BAD[flags] in error


def test_a_vocabulary_needs_texts_that_are_not_evaluated(run, capsys):
    flags = [*SPECULATIVE, *EXIT, "--draft_vocab", "9"]
    code, record, _ = run(*GREEDY, *flags, samples="12")
    assert (code, record) == (2, None)
    assert "calibrat" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--drafter", "lookup"], "--drafter lookup: needs --generation_strategy self_speculative"),
        (["--never_slower", "true"], "--never_slower true: needs --generation_strategy self_spec"),
    ],
)
def test_options_of_drafts_need_speculation(run, flags, message, capsys):
    assert run(*GREEDY, *flags)[0] == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--drafters", "hybrid"], "--drafters hybrid: needs --hybrid_drafter"),
        (["--drafters", "lookup", "--draft_vocab", "9"], "--draft_vocab 9: only with drafters"),
        (["--drafters", "lookup", "--exit_layer_first", "3"], "--exit_layer_first"),
    ],
)
def test_a_sweep_refuses_options_that_no_drafter_takes(run_sweep, flags, message, capsys):
    assert run_sweep(*flags)[0] == 2
    assert message in capsys.readouterr().err


def test_later_passes_would_look_up_the_answers_of_the_first(run, capsys):
    flags = [*SPECULATIVE, *LOOKUP, *HISTORY, "--repeats", "2"]
    assert run(*GREEDY, *flags)[0] == 2
    assert "--lookup_history true: would look answers up" in capsys.readouterr().err


def test_a_sweep_counts_the_vocabulary_on_the_texts_of_a_single_run(run, run_sweep, rows):
    texts = numbered(rows.parent / "texts.jsonl", range(20, 26))
    flags = ["--draft_vocab", "40", "--calibration_samples", "5", "--calibration_path", str(texts)]
    code, folder = run_sweep(*flags, "--random_shuffle", "false")
    assert code == 0
    swept = {read_record(path).run_id for path in find_runs(folder)}
    short = ["--exit_layer", "4", "--max_steps", "8", "--sample", "false"]
    _, record, _ = run(*SPECULATIVE, *short, *flags, samples="2")
    assert record.run_id in swept


@pytest.mark.parametrize("methods", [["base"], ["angular", "--prune_ns", "2"]])
def test_a_sweep_refuses_a_hybrid_with_plans_that_it_lacks(run_sweep, methods, capsys):
    flags = ["--drafters", "hybrid", "--hybrid_drafter", "pruned", "--prune_methods", *methods]
    assert run_sweep(*flags)[0] == 2
    assert "--drafters hybrid: needs" in capsys.readouterr().err


def test_a_drafter_of_ones_own_has_run_ids_of_its_own():
    """Also if it drafts with the layers of another."""
    assert DraftArguments(drafter="lookup").identity() == {"drafter": "lookup"}
    own = dataclasses.replace(DraftArguments(), drafter="mine")
    assert own.identity() == {"drafter": "mine"}
    assert DraftArguments().identity() == DraftArguments(drafter="pruned").identity() == {}


def test_every_drafter_is_a_class_with_a_name():
    for name, entry in DRAFTERS.items():
        assert entry.load().__name__ == entry.class_name, name
