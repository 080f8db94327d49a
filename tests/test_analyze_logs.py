"""From folders of logs to tables, files and notes."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import analyze_logs
import benchmark
from benchmarks.made_up_plans import plan_of
from benchmarks.made_up_runs import MadeUpRun, angular_plan, base_plan, random_plan
from command_line.script import run_script
from runs.reader import find_runs, read_record
from runs.speed_metrics import predicted_speedup
from tests.analysis.test_older_logs import GENERATION, console, four
from tests.conftest import ROOT, rewritten
from tests.made_up import AUTOREGRESSIVE, SPECULATIVE

CATEGORIES = ("math", "coding")


@pytest.fixture
def analyze(tmp_path, capsys):
    """Analyse the folder of logs; return exit code, output and errors."""

    def run(*flags, logs=None):
        capsys.readouterr()
        out = ["--output_dir", str(tmp_path / "out"), "--no_plots"]
        code = run_script(analyze_logs.main, [str(logs or tmp_path / "logs"), *out, *flags])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def logs(tmp_path):
    """A study of one data set: base, two angular plans, and random plans of two seeds."""
    folder = tmp_path / "logs"
    randoms = [random_plan(0.2, seed) for seed in (1, 2)]
    for plan in (base_plan(), angular_plan(2), angular_plan(10), *randoms):
        speed = len(plan.kept_layers) / 32
        for decoder, seconds in ((AUTOREGRESSIVE, 1.0), (SPECULATIVE, 0.5)):
            run = MadeUpRun(plan=plan, seconds=seconds * speed, categories=CATEGORIES, **decoder)
            dataclasses.replace(run, full_step_seconds=speed / 31).write(folder)
    return folder


def tables(text):
    """Return the Markdown tables by title, rows as dictionaries."""
    found = {}
    for part in text.split("## ")[1:]:
        title, *lines = (line for line in part.splitlines() if line)
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        found[title] = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    return found


def rows_of(path):
    """Return the rows of a CSV file."""
    return list(csv.DictReader(path.read_text().splitlines()))


def test_tables_in_order(logs, analyze):
    code, out, err = analyze()
    assert (code, err) == (0, "")
    found = tables(out)
    assert list(found) == [
        "Metrics",
        "Timing",
        "Comparisons",
        "Random plans, mean ± standard deviation",
        "Plans, as models and as drafters",
        "Differences from the base run",
        "Categories of prompts",
    ]
    order = [(row["approach"], row["param"]) for row in found["Metrics"]]
    assert list(dict.fromkeys(order)) == [
        ("base", "-"),
        ("random", "p=0.2 seed=1"),
        ("random", "p=0.2 seed=2"),
        ("angular", "n=2"),
        ("angular", "n=10"),
    ]
    row = found["Comparisons"][-1]
    assert row["layers"] == "22/32"
    assert row["strategy"] == "self_speculative E=8 k=6"
    assert row["equal outputs"] == "20/20"
    assert float(row["parameters, M"]) == pytest.approx(7000 * 22 / 32)
    for name in ("spec. / autoregr.", "pruned / base", "pruned spec. / base autoregr."):
        value, low, high = (float(n.strip("[],")) for n in row[name].split())
        assert low <= value <= high
    assert row["predicted"] != "-"
    seeds = found["Random plans, mean ± standard deviation"][0]
    assert (seeds["param"], seeds["seeds"]) == ("p=0.2", "2")
    assert all("±" in seeds[name] for name in ("layers", "ROUGE-L", "tokens/s", "pruned / base"))


def test_files_keep_the_older_tools_names(logs, analyze, tmp_path):
    analyze()
    metrics, timing, compared = (
        rows_of(tmp_path / "out" / f"summary_{name}.csv")
        for name in ("metrics", "timing", "comparison")
    )
    names = ["rouge-l", "rouge-1", "rouge-2", "bleu_score", "exact_match"]
    expected = {"dataset", "approach", "param", "acceptance_rate_mean"}
    assert expected | {f"predicted_text_{name}" for name in names} <= set(metrics[0])
    means = {"total_time_mean", "time_per_token_mean", "tokens_per_second_mean"}
    assert means | {"step_seconds_draft", "peak_memory_bytes"} <= set(timing[0])
    record = read_record(logs / timing[0]["log"])
    assert float(timing[0]["tokens_per_second_mean"]) == pytest.approx(
        record.metrics["tokens_per_second"]["mean"]
    )
    assert compared[-1]["pruned_over_base_baseline"] in {row["log"] for row in timing}
    assert float(compared[-1]["pruned_over_base_low"]) < float(compared[-1]["pruned_over_base"])
    assert (tmp_path / "out" / "summary_seeds.csv").is_file()


def test_files_of_differences_and_categories_hold_a_row_per_run_and_part(logs, analyze, tmp_path):
    code, out, _ = analyze()
    differences, categories = (
        rows_of(tmp_path / "out" / f"summary_{name}.csv") for name in ("differences", "categories")
    )
    shown = tables(out)["Differences from the base run"]
    assert [row["score"] for row in shown] == [row["score"] for row in differences]
    assert {row["test"] for row in shown} == {"McNemar, exact", "sign flips"}
    assert len(differences) == 8 * 6  # pruned runs, scores
    assert all(float(row["p"]) <= float(row["p_holm"]) for row in differences)
    assert len(categories) == 10 * len(CATEGORIES)
    assert {row["category"] for row in categories} == set(CATEGORIES)
    assert {row["prompts"] for row in categories} == {"10"}


def test_tables_may_be_csv_latex_and_json(logs, analyze):
    code, out, _ = analyze("--format", "json")
    found = json.loads(out)
    assert code == 0
    assert len(found["summary_metrics"]) == 10
    assert found["summary_metrics"][0]["acceptance_rate_mean"] is None
    _, out, _ = analyze("--format", "csv")
    part = out.split("# Timing\n\n")[1].split("\n\n")[0]
    assert len(list(csv.DictReader(part.splitlines()))) == 10
    _, out, _ = analyze("--format", "latex")
    assert out.count(r"\toprule") == out.count(r"\bottomrule") == 7
    assert r"human\_eval" in out
    assert run_script(analyze_logs.main, [str(logs), "--format", "xml"]) == 2


def test_new_and_older_logs_share_a_table(logs, analyze):
    (logs / "eval").mkdir()
    (logs / "eval" / "benchmark_20250427_222420.json").write_text(four())
    console(logs, "cnn_dm_summarization_results_angular_n2")  # the console of the same run
    console(logs, "xsum_results_base_0", acceptance_rate={"mean": float("nan")})
    code, out, err = analyze()
    assert code == 0
    rows = [row for row in tables(out)["Metrics"] if row["log"] == "older"]
    assert [(row["dataset"], row["approach"], row["param"]) for row in rows] == [
        ("cnn_dm_summarization", "angular", "n=2"),
        ("xsum_summarization", "base", "-"),
    ]
    for row in rows:
        assert (row["exact match"], row["edit distance"]) == ("-", "1698.8")
    assert [row["acceptance"] for row in rows] == ["0.968", "-"]
    assert "note: older logs call a mean edit distance exact_match" in err
    assert len(tables(out)["Comparisons"]) == 9  # of the new runs alone


def test_only_older_logs_make_two_tables(tmp_path, analyze):
    (tmp_path / "logs").mkdir()
    plain = GENERATION | {"generation_strategy": "autoregressive", "exit_layer": -1}
    (tmp_path / "logs" / "benchmark_20250427_222420.json").write_text(four(generation=plain))
    found = tables(analyze()[1])
    assert list(found) == ["Metrics", "Timing"]
    assert "acceptance" not in found["Metrics"][0]
    assert found["Timing"][0]["tokens/s"] == "52.28"


def test_each_missing_baseline_is_one_note(tmp_path, analyze):
    for n in (1, 2):
        MadeUpRun(plan=angular_plan(n)).write(tmp_path / "logs")
    MadeUpRun(runtime={"dtype": "float16"}).write(tmp_path / "logs")
    code, out, err = analyze()
    assert code == 0
    assert err.splitlines() == [
        "note: 2 runs have no base run of the same decoder: the nearest differs in dtype "
        "(float16, not bfloat16)"
    ]
    assert [row["pruned / base"] for row in tables(out)["Comparisons"]] == ["-", "-"]


def test_a_draft_that_cannot_pay_shows_its_bound(tmp_path, analyze):
    """Exit layer 30 of 32 with six drafts: even if all were accepted, no more than 1.06x."""
    MadeUpRun(**AUTOREGRESSIVE).write(tmp_path / "logs")
    path = MadeUpRun(exit_layer=30, num_speculations=6).write(tmp_path / "logs")
    with rewritten(path) as log:
        log["speedup_over_full_steps"]["bound"] = predicted_speedup(6, 1, 30 / 32, 1)
    assert tables(analyze()[1])["Comparisons"][0]["at most"] == "1.06"


def test_several_models_are_told_apart(tmp_path, analyze):
    MadeUpRun().write(tmp_path / "logs")
    path = MadeUpRun(identity={"model_fingerprint": "files 1"}).write(tmp_path / "logs")
    with rewritten(path) as log:
        log["model"]["name"] = "other-1B"
    rows = tables(analyze()[1])["Metrics"]
    assert {row["model"] for row in rows} == {"made-up-7B", "other-1B"}


def test_a_synthetic_model_is_always_named(tmp_path, analyze):
    path = MadeUpRun().write(tmp_path / "logs")
    with rewritten(path) as log:
        log["model"]["name"] = "synthetic:llama2-7b"
    for title, rows in tables(analyze()[1]).items():
        assert {row["model"] for row in rows} == {"synthetic:llama2-7b"}, title


def test_compiled_runs_are_told_from_others_and_from_logs_before_compilation(tmp_path, analyze):
    MadeUpRun(identity={"compile": True}).write(tmp_path / "logs")
    with rewritten(MadeUpRun().write(tmp_path / "logs")) as log:
        del log["identity"]["compile"]
    for title, rows in tables(analyze()[1]).items():
        assert {row["compiled"] for row in rows} == {"yes", "no"}, title


def test_broken_and_unfinished_logs_are_named(logs, analyze):
    (logs / "benchmark_1_broken.json").write_text('{"schema_version": 1')
    (logs / "benchmark_2_newer.json").write_text('{"schema_version": 2}')
    MadeUpRun(data_seed=5).write(logs, "running")
    code, out, err = analyze()
    assert code == 0
    assert len(tables(out)["Metrics"]) == 10
    lines = err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("warning: ") for line in lines)


def test_folders_without_finished_runs_are_refused(tmp_path, analyze, capsys):
    (tmp_path / "logs").mkdir()
    code, out, err = analyze()
    assert (code, out) == (2, "")
    assert "no run logs found" in err
    (tmp_path / "logs" / "benchmark_1_newer.json").write_text('{"schema_version": 2}')
    MadeUpRun().write(tmp_path / "logs", "interrupted")
    code, _, err = analyze()
    assert code == 2
    assert err.splitlines()[-1].endswith(
        "no finished run: of the logs there, 1 cannot be read and 1 are not finished"
    )
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_no_text_is_shown_escaped(capsys):
    assert run_script(analyze_logs.main, ["\udcff"]) == 2
    assert "\\udcff: is not UTF-8 text" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused(logs, tmp_path, analyze, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    code, _, err = analyze()
    assert code == 2
    assert "out: cannot be written (No space left on device)" in err


def test_real_runs_are_analysed_as_they_are_written(checkpoint, rows, tmp_path, analyze):
    flags = ["--model", str(checkpoint), "--dataset", "custom_jsonl", "--data_path", str(rows)]
    flags += ["--num_samples", "3", "--max_steps", "8", "--sample", "false", "--dtype", "float64"]
    spoken = ["--generation_strategy", "self_speculative", "--exit_layer", "3"]
    dropped = ["--prune_method", "random", "--dropout_threshold", "0.3", "--prune_seed", "2"]
    for plan in ([], dropped):
        for decoder in ([], [*spoken, "--num_speculations", "2"]):
            line = [*flags, *plan, *decoder, "--output_dir", str(tmp_path / "logs")]
            assert run_script(benchmark.main, line) == 0
    code, out, err = analyze()
    # The machine's speed may change between runs.
    remarks = [line for line in err.splitlines() if "slower in one of the two runs" not in line]
    assert (code, remarks) == (0, [])
    rows = {row["approach"] + row["strategy"]: row for row in tables(out)["Comparisons"]}
    spoken = rows["randomself_speculative E=3 k=2"]
    assert spoken["equal outputs"] == "3/3"
    rates = {
        (record.plan["method"], record.exit_layer["original"]): record.metrics
        for record in map(read_record, find_runs(tmp_path / "logs"))
    }
    speeds = {key: m["tokens_per_second"]["token_weighted"] for key, m in rates.items()}
    for name, baseline in (
        ("spec. / autoregr.", ("random", None)),
        ("pruned / base", ("base", 3)),
        ("pruned spec. / base autoregr.", ("base", None)),
    ):
        expected = speeds["random", 3] / speeds[baseline]
        assert float(spoken[name].split()[0]) == pytest.approx(expected, abs=0.006)


def test_the_analysis_imports_no_torch():
    code = "import sys, analyze_logs, analysis.plots; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_files_of_an_earlier_study_are_removed(logs, tmp_path, analyze):
    out = tmp_path / "out"
    for plan in (plan_of("taylor", n) for n in (1, 2, 3)):
        MadeUpRun(plan=plan, nats=3).write(logs)
        MadeUpRun(draft_plan=plan, num_speculations=2).write(logs)
    MadeUpRun(nats=2, identity={"teacher_forced": True}).write(logs)
    for plan in (base_plan(), plan_of("last", 2)):
        MadeUpRun(plan=plan, identity={"model_fingerprint": "another"}).write(logs)
        MadeUpRun(plan=plan).write(logs)
    assert run_script(analyze_logs.main, [str(logs), "--output_dir", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == set(analyze_logs.WRITTEN)
    (out / "notes.txt").write_text("mine")
    MadeUpRun().write(tmp_path / "other")
    analyze(logs=tmp_path / "other")
    names = {path.name for path in out.iterdir()}
    assert names == {"summary_metrics.csv", "summary_timing.csv", "notes.txt"}
