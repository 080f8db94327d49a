"""Tables from run logs: comparable runs are compared, and what cannot be read stops nothing."""

import json

import pytest

import analyze_logs
import benchmark
from command_line import run_script

CELL = ["--sample", "false", "--max_steps", "8", "--num_samples", "2", "--dataset", "custom_jsonl"]
SPECULATIVE = ["--generation_strategy", "self_speculative", "--exit_layer", "3"]


@pytest.fixture
def logs(checkpoint, rows, tmp_path):
    folder = tmp_path / "logs"
    common = ["--model", str(checkpoint), "--data_path", str(rows), "--output_dir", str(folder)]
    for flags in ([], [*SPECULATIVE, "--num_speculations", "2"], [*SPECULATIVE[2:]]):
        assert run_script(benchmark.main, [*common, *CELL, *flags]) == 0
    other = ["--prune_method", "random", "--dropout_threshold", "0.3", "--num_speculations", "2"]
    assert run_script(benchmark.main, [*common, *CELL, *SPECULATIVE, *other]) == 0
    return folder


def table(text):
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    header = [cell.strip() for cell in lines[0]]
    cells = ([cell.strip() for cell in line] for line in lines[2:])
    return [dict(zip(header, row, strict=True)) for row in cells]


def test_speculative_runs_stand_beside_plain_ones_of_their_plan(logs, capsys):
    capsys.readouterr()
    assert run_script(analyze_logs.main, [str(logs)]) == 0
    rows = {row["strategy"] + row["approach"]: row for row in table(capsys.readouterr().out)}
    assert len(rows) == 4
    plain = rows["autoregressivebase"]
    spoken = rows["self_speculative E=3 k=2base"]
    assert plain["spec. / autoregr."] == plain["acceptance"] == "-"
    ratio = float(spoken["tokens/s"]) / float(plain["tokens/s"])
    assert float(spoken["spec. / autoregr."]) == pytest.approx(ratio, rel=0.05, abs=0.01)
    # Early-exit inference is another model, and a pruned run has no plain one beside it here.
    assert rows["autoregressive E=3base"]["spec. / autoregr."] == "-"
    assert rows["self_speculative E=3 k=2random p=0.3 seed=42"]["spec. / autoregr."] == "-"


def test_what_cannot_be_read_is_named_and_left_out(logs, capsys):
    (logs / "benchmark_1_broken.json").write_text('{"schema_version": 1')
    (logs / "benchmark_2_newer.json").write_text('{"schema_version": 2}')
    whole = json.loads(analyze_logs.find_runs(logs)[-1].read_text())
    (logs / "benchmark_3_empty.json").write_text(json.dumps(whole | {"identity": {}}))
    capsys.readouterr()
    assert run_script(analyze_logs.main, [str(logs)]) == 0
    out, err = capsys.readouterr()
    assert len(table(out)) == 4
    assert err.count("warning: benchmark_") == 3


def test_only_complete_baselines_count_and_the_newest_of_them(logs, capsys):
    runs = [analyze_logs.read_record(path) for path in analyze_logs.find_runs(logs)]
    base = [run for run in runs if run.plan["method"] == "base"]
    spoken = next(
        run for run in base if "self" in run.identity["generation"]["generation_strategy"]
    )
    log = next(run.to_dict() for run in base if run.exit_layer["kept"] is None)
    rate = log["tokens_per_second"]
    for name, factor, status in [("8_x", 2, "complete"), ("9_x", 50, "interrupted")]:
        faster = rate | {"token_weighted": rate["token_weighted"] * factor}
        changed = log | {"tokens_per_second": faster, "status": status}
        (logs / f"benchmark_{name}.json").write_text(json.dumps(changed))
    runs = [analyze_logs.read_record(path) for path in analyze_logs.find_runs(logs)]
    found = analyze_logs._speedup(spoken, analyze_logs._baselines(runs))
    own = spoken.metrics["tokens_per_second"]["token_weighted"]
    assert found == pytest.approx(own / (2 * rate["token_weighted"]))


def test_folders_without_runs_are_refused(tmp_path, capsys):
    assert run_script(analyze_logs.main, ["\udcff"]) == 2
    assert "\\udcff: is not UTF-8 text" in capsys.readouterr().err
    assert run_script(analyze_logs.main, [str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert run_script(analyze_logs.main, [str(tmp_path)]) == 2
    assert "0 run logs found" in capsys.readouterr().err
