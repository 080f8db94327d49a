"""A sweep measures quality once per plan, in batches, and speed on a few of its prompts."""

import dataclasses
import math

import pytest

import sweep
from analysis import sweep_report
from analysis.comparison import compare
from analysis.logged_runs import find_logged_runs
from command_line.script import run_script
from runs.reader import find_runs, read_record, read_samples
from runs.teacher_forcing import TeacherForcing
from tests.conftest import SWEEP_GRID, common_flags
from tests.ranked import scripts_in_ranks

ONE_POINT = ["--exit_layer_first", "4", "--num_speculations_first", "3"]
PLANS = [
    *("--prune_methods", "base", "angular", "random", "--prune_ns", "2"),
    *("--prune_seeds", "42"),
    *("--dropout_thresholds", "0.2", "--calibration_samples", "4"),
]
SPLIT = ["--quality_samples", "6", "--speed_samples", "2", "--batch_size", "3"]


@pytest.fixture(autouse=True)
def without_maps(monkeypatch):
    monkeypatch.setattr(sweep_report, "make_heat_maps", lambda *_: None)


@pytest.fixture
def split_sweep(checkpoint, rows, tmp_path):
    def start(*flags, path=rows, folder="logs"):
        common = common_flags(checkpoint, path, tmp_path / folder)
        code = run_script(sweep.main, [*common, *SWEEP_GRID, *ONE_POINT, *flags])
        return code, tmp_path / folder

    return start


def runs_of(folder):
    return [(read_record(path), read_samples(path)) for path in find_runs(folder)]


def test_quality_is_measured_once_per_plan_and_speed_with_every_decoder(split_sweep, capsys):
    """Without a training split, both must calibrate on the rows that neither evaluates."""
    code, folder = split_sweep(*PLANS, *SPLIT, "--repeats", "2")
    assert code == 0
    by_plan = {}
    for record, samples in runs_of(folder):
        by_plan.setdefault(record.plan["approach"], []).append((record, samples))
    assert len(by_plan) == 3
    for runs in by_plan.values():
        assert len({tuple(record.plan["kept_layers"]) for record, _ in runs}) == 1
        quality, *timed = sorted(runs, key=lambda run: -len({s.index for s in run[1]}))
        assert [len(quality[1]), *(len(samples) for _, samples in timed)] == [6, 4, 4]
        assert quality[0].metrics["batched"]["batch_size"] == 3
        assert quality[0].metrics["tokens_per_second"]["mean"] is None
        assert quality[0].metrics["teacher_forced"]["perplexity"] > 1
        texts = {one.example_id: one.output_ids for one in quality[1]}
        for record, samples in timed:
            assert "teacher_forced" not in record.metrics
            assert record.metrics["timed"]["passes"] == 2
            assert all(texts[one.example_id] == one.output_ids for one in samples)
    assert "9 of 9 runs are complete" in capsys.readouterr().out
    assert split_sweep(*PLANS, *SPLIT, "--repeats", "2")[0] == 0
    assert "no run is left" in capsys.readouterr().out


@pytest.fixture
def passes(monkeypatch):
    """Notes the removed layers of each plan, and the number of texts, of teacher-forced passes."""
    noted, ordinary = [], TeacherForcing.measure_plans

    def measure_plans(self, plans, passages, *rest):
        noted.append((sorted(plan.removed_layers for plan in plans), len(passages)))
        return ordinary(self, plans, passages, *rest)

    monkeypatch.setattr(TeacherForcing, "measure_plans", measure_plans)
    return noted


def likelihoods(folder):
    return {
        record.plan["approach"]: [one.teacher_forced for one in samples]
        for record, samples in runs_of(folder)
        if "teacher_forced" in record.metrics
    }


def test_references_are_measured_for_all_plans_at_once(split_sweep, passes, stop_at):
    """A resumed sweep measures what the broken run lacks, and then the rest of the other plans."""
    flags = [*PLANS, *SPLIT, "--batch_size", "1", "--prune_seeds", "1", "2", "42"]
    _, folder = split_sweep(*flags)
    removed = {tuple(record.plan["removed_layers"]) for record, _ in runs_of(folder)}
    assert passes == [(sorted(removed), 6)]
    expected = likelihoods(folder)
    passes.clear()
    undo = stop_at(3, KeyboardInterrupt)
    assert split_sweep(*flags, folder="broken")[0] == 130
    undo()
    code, broken = split_sweep(*flags, folder="broken")
    assert code == 0
    others = sorted(removed - {()})
    assert passes == [(sorted(removed), 6), (sorted(removed), 3), (others, 3)]
    assert likelihoods(broken) == expected


def test_a_sweep_that_grows_measures_the_new_plans_alone(split_sweep, passes):
    fewer = ["--prune_methods", "base", "angular", "--prune_ns", "2"]
    split_sweep(*fewer, "--calibration_samples", "4", *SPLIT)
    _, folder = split_sweep(*PLANS, *SPLIT)
    assert len(likelihoods(folder)) == 3
    assert [len(plans) for plans, _ in passes] == [2, 1]


def test_a_run_that_ended_its_process_is_measured_alone(split_sweep, passes, monkeypatch, tmp_path):
    _, folder = split_sweep(*PLANS, *SPLIT)
    ids = [record.run_id for record, _ in runs_of(folder) if record.plan["method"] == "base"]
    tries = tmp_path / "tries"
    tries.write_text("".join(f"{run_id}\n" for run_id in ids))
    monkeypatch.setenv("SWEEP_TRIES", str(tries))
    passes.clear()
    _, again = split_sweep(*PLANS, *SPLIT, folder="again")
    assert [len(plans) for plans, _ in passes] == [1, 2]
    assert likelihoods(again) == likelihoods(folder)


def test_processes_share_the_references_of_all_plans(
    split_sweep, checkpoint, rows, tmp_path, monkeypatch
):
    _, folder = split_sweep(*PLANS, *SPLIT)
    line = [*common_flags(checkpoint, rows, tmp_path / "ranks"), *SWEEP_GRID, *ONE_POINT]
    assert scripts_in_ranks(monkeypatch, 2, sweep.main, [*line, *PLANS, *SPLIT]) == [0, 0]
    found, expected = likelihoods(tmp_path / "ranks"), likelihoods(folder)
    assert found.keys() == expected.keys()
    for plan, lines in expected.items():
        assert found[plan] == [pytest.approx(line, abs=1e-9) for line in lines]


def test_a_plan_without_finite_likelihoods_spoils_no_other(split_sweep, monkeypatch, capsys):
    ordinary = TeacherForcing.measure_plans

    def measure_plans(self, plans, passages, *rest):
        found = ordinary(self, plans, passages, *rest)
        place = [plan.method for plan in plans].index("angular")
        found[place][0] = dataclasses.replace(found[place][0], nats=math.nan)
        return found

    monkeypatch.setattr(TeacherForcing, "measure_plans", measure_plans)
    code, folder = split_sweep(*PLANS, *SPLIT)
    assert code == 2
    assert "log-likelihoods are not finite" in capsys.readouterr().out
    assert sorted(likelihoods(folder)) == ["base", "random p=0.2 seed=42"]


def test_rows_of_speed_name_the_run_of_their_quality(split_sweep):
    _, folder = split_sweep(*PLANS, *SPLIT)
    comparisons = compare(find_logged_runs([folder]).runs)
    quality = {one.run.plan_name: one.run for one in comparisons if one.run.is_batched}
    timed = [one for one in comparisons if not one.run.is_batched]
    assert len(timed) == 6
    for one in timed:
        assert one.quality.run is quality[one.run.plan_name]
        assert None not in one.speedups.values()


def test_no_speed_is_measured_where_none_is_asked_for(split_sweep, capsys):
    flags = ["--quality_samples", "3", "--speed_samples", "0"]
    assert split_sweep(*flags, "--dry_run", "true")[0] == 0
    assert "1 of 1 runs and 3 prompts are left" in capsys.readouterr().out
    code, folder = split_sweep(*flags)
    assert code == 0
    ((record, samples),) = runs_of(folder)
    assert (len(samples), record.identity["batch_size"]) == (3, 8)
    assert record.metrics["batched"]["batch_size"] == 3  # as many prompts as there are


def test_plain_texts_and_prompts_share_a_sweep(split_sweep, checkpoint, rows, tmp_path):
    """Flags that only one of them has are left out for the other."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "custom_jsonl.jsonl").write_text(rows.read_text())
    (data / "text.jsonl").write_text('{"text": "a text of many words, and more"}\n')
    flags = [
        *("--model", str(checkpoint), "--dtype", "float64", "--data_dir", str(data)),
        *("--datasets", "custom_jsonl", "text", "--output_dir", str(tmp_path / "both")),
        *("--quality_samples", "4", "--speed_samples", "2", "--repeats", "2"),
        *("--max_prompt_tokens", "9", "--window", "8", "--first_token", "skip"),
    ]
    assert run_script(sweep.main, [*flags, *SWEEP_GRID, *ONE_POINT]) == 0
    found = [record for record, _ in runs_of(tmp_path / "both")]
    windows = {r.identity["dataset"]: r.identity.get("window") for r in found}
    assert windows == {"custom_jsonl": None, "text": 8}
    assert len(found) == 4


def test_an_explicit_batch_of_one_is_obeyed(split_sweep):
    flags = ["--quality_samples", "3", "--speed_samples", "0", "--batch_size", "1"]
    _, folder = split_sweep(*flags)
    ((record, _),) = runs_of(folder)
    assert "batch_size" not in record.identity
    assert record.metrics["tokens_per_second"]["mean"] > 0


def test_a_run_without_references_is_not_teacher_forced(split_sweep, tmp_path):
    rows = tmp_path / "spoken.jsonl"
    rows.write_text('{"question_id": 1, "category": "qa", "turns": ["Who?", "Why?"]}\n')
    flags = ["--quality_samples", "1", "--speed_samples", "1", "--dataset", "spec_bench"]
    code, folder = split_sweep(*flags, path=rows)
    assert code == 0
    assert ["teacher_forced" in record.metrics for record, _ in runs_of(folder)] == [False] * 3


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--quality_samples", "3"], "--quality_samples 3: needs --speed_samples"),
        (["--speed_samples", "3"], "--speed_samples 3: needs --quality_samples"),
        (
            ["--quality_samples", "3", "--speed_samples", "4"],
            "--speed_samples 4: must be at most --quality_samples 3",
        ),
        (["--quality_samples", "0", "--speed_samples", "0"], "--quality_samples 0: must be at"),
        ([*SPLIT, "--num_samples", "3"], "--num_samples 3: contradicts --quality_samples"),
        (["--batch_size", "1"], "--batch_size 1: needs --quality_samples"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(split_sweep, capsys, flags, line):
    assert split_sweep(*flags)[0] == 2
    assert line in capsys.readouterr().err
