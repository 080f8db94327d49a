"""Whole runs of benchmark.py on a tiny checkpoint, from flags to files."""

import json
import subprocess
import sys

import pytest

import benchmark
from command_line.script import run_script
from prompts.row_formats import Row, RowsError
from prompts.sources import HubSource
from runs import experiment, scoring
from runs.metrics import summarize, text_scores
from runs.reader import find_runs, read_record, read_samples
from tests.conftest import ANGULAR, GREEDY, ROOT, SPECULATIVE, write


def outputs(samples):
    return [sample.output_ids for sample in samples]


@pytest.mark.parametrize("plan", [[], ANGULAR])
def test_both_strategies_log_equal_outputs(run, plan, capsys):
    code, plain, expected = run(*GREEDY, *plan)
    assert code == 0
    code, spoken, found = run(*GREEDY, *plan, *SPECULATIVE, "--exit_layer", "5")
    assert code == 0
    assert outputs(found) == outputs(expected)
    assert [s.prediction for s in found] == [s.prediction for s in expected]
    assert plain.run_id != spoken.run_id
    assert plain.exit_layer == {"original": None, "kept": None}
    assert spoken.exit_layer["original"] == 5
    text = capsys.readouterr().out
    assert "tokens/s" in text
    assert "tokens per verification; against full steps" in text


def test_the_file_is_one_json_object_with_the_keys_of_older_tools(run, tmp_path):
    run(*GREEDY, *SPECULATIVE, "--exit_layer", "3")
    (path,) = find_runs(tmp_path)
    log = json.loads(path.read_text())
    assert set(log["predicted_text"]) == {
        "rouge-l",
        "rouge-1",
        "rouge-2",
        "rouge-3",
        "bleu_score",
        "exact_match",
        "edit_distance",
    }
    assert log["time_to_first_token"]["p95"] > 0
    assert 1 <= log["acceptance_length"]["mean"] <= 4
    for key in ("acceptance_rate", "total_time", "time_per_token", "tokens_per_second"):
        assert log[key]["mean"] > 0 or key == "acceptance_rate"
    assert log["status"] == "complete"
    assert log["schema_version"] == 1
    assert log["counts"]["prompts"] == 3
    assert log["counts"]["drafted_tokens"] > 0
    assert log["counts"]["draft_steps"] == log["counts"]["drafted_tokens"]
    assert log["counts"]["verify_passes"] > 0
    assert log["speedup_over_full_steps"]["predicted"] > 0
    assert log["speedup_over_full_steps"]["measured"] > 0
    assert log["round_overhead"] > 0
    assert log["step_seconds"]["early_exit"] is None
    assert all(log["step_seconds"][step] > 0 for step in ("draft", "verify", "full"))
    assert log["peak_memory_bytes"] > log["model"]["weight_bytes"] > 0
    assert log["runtime"]["dtype"] == "float64"
    assert log["command"].split()[-2:] == ["--exit_layer", "3"]


def test_a_log_names_the_tokenizers_that_its_scores_come_from(run, tmp_path):
    """The references decide; the run id does not depend on them."""
    _, english, _ = run(*GREEDY)
    tokenizers = {"rouge_tokenizer": "unicode-words", "bleu_tokenizer": "13a"}
    assert english.data["scoring"] == tokenizers | {"ascii_words": True}
    assert "scoring" not in json.dumps(english.identity)
    rows = [{"prompt": f"number {n}:", "response": "今天天气很好"} for n in range(3)]
    _, chinese, samples = run(*GREEDY, path=write(tmp_path / "zh.jsonl", rows))
    tokenizers["bleu_tokenizer"] = "zh"
    assert chinese.data["scoring"] == tokenizers | {"ascii_words": False}
    for sample in samples:
        assert sample.scores == text_scores(sample.prediction, sample.reference, "zh")
    assert chinese.metrics["predicted_text"] == summarize(samples, "zh")["predicted_text"]


def test_default_flags_draft_nothing_and_divide_by_nothing(run):
    """Sampling, autoregressive, no exit layer: no acceptance, and none is logged as 0."""
    code, record, _ = run("--max_steps", "4")
    assert code == 0
    assert record.metrics["acceptance_rate"]["mean"] is None
    assert record.metrics["speedup_over_full_steps"]["predicted"] is None


def test_pruned_runs_log_their_plan_and_size(run):
    _, whole, _ = run(*GREEDY)
    _, pruned, _ = run(*GREEDY, *ANGULAR)
    assert pruned.plan["removed_layers"] and len(pruned.plan["kept_layers"]) == 4
    assert pruned.plan["calibration"]["prompts"] == 4
    assert pruned.model["original_layers"] == 6
    assert pruned.model["kept_layers"] == 4
    assert pruned.model["weight_bytes"] < whole.model["weight_bytes"]
    _, dropped, _ = run(
        *GREEDY, "--prune_method", "random", "--dropout_threshold", "0.3", "--prune_seed", "2"
    )
    assert dropped.plan["prune_seed"] == 2


def test_empty_generations_are_kept(run):
    _, _, samples = run(*GREEDY)
    first = str(samples[0].output_ids[0])
    code, record, samples = run(*GREEDY, "--stop_token_ids", first)
    assert code == 0
    assert samples[0].prediction == ""
    assert samples[0].scores["edit_distance"] == len("item 0")
    assert record.metrics["counts"]["prompts"] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--exit_layer", "6", *SPECULATIVE], "--exit_layer 6: must be 1 to 5"),
        (
            ["--exit_layer", "1", *SPECULATIVE, "--prune_method", "random", "--dropout_threshold"]
            + ["0.5", "--prune_seed", "1"],
            "--exit_layer 1: random p=0.5 seed=1 keeps no layer below it",
        ),
        (
            ["--prune_method", "angular", "--prune_n", "5", "--calibration_samples", "4"],
            "--prune_n 5: must be 1 to 4; the model has 6 layers",
        ),
        (
            ["--prune_method", "random", "--dropout_threshold", "0.9999"],
            "keeps no layer of 6",
        ),
        (
            ["--max_steps", "257", "--truncate_prompt", "true"],
            "--max_steps 257: exceeds the model's 256 positions",
        ),
        (["--stop_token_ids", "258"], "--stop_token_ids 258: must be below 258"),
    ],
)
def test_what_does_not_fit_the_model_writes_nothing(run, flags, message, capsys, tmp_path):
    folder = tmp_path / "pruned"
    code, record, _ = run(*GREEDY, *flags, "--save_pruned", str(folder))
    assert (code, record) == (2, None)
    assert not folder.exists()
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_an_interruption_leaves_a_readable_log(run, stop_at):
    stop_at(2, KeyboardInterrupt)
    code, record, samples = run(*GREEDY)
    assert code == 130
    assert record.status == "interrupted"
    assert len(samples) == record.metrics["counts"]["prompts"] == 2


def test_a_crash_leaves_a_readable_log(checkpoint, rows, tmp_path, monkeypatch):
    def crash(*_):
        raise RuntimeError("kernel")

    monkeypatch.setattr(scoring, "text_scores", crash)
    with pytest.raises(RuntimeError, match="kernel"):
        benchmark.main(
            ["--model", str(checkpoint), "--dataset", "custom_jsonl", "--data_path", str(rows)]
            + [*GREEDY, "--output_dir", str(tmp_path / "logs")]
        )
    (path,) = find_runs(tmp_path / "logs")
    assert (read_record(path).status, read_samples(path)) == ("failed", [])


def test_a_pruned_checkpoint_is_saved_and_runs_as_an_ordinary_model(run, tmp_path, capsys):
    folder = str(tmp_path / "pruned")
    _, pruned, expected = run(*GREEDY, *ANGULAR, "--save_pruned", folder)
    code, again, found = run(*GREEDY, "--model", folder)
    assert code == 0
    assert outputs(found) == outputs(expected)
    assert again.model["original_layers"] == 4
    assert again.model["plan_of_origin"]["kept_layers"] == pruned.plan["kept_layers"]
    # Both decoders of a plan may name the same folder, and so may a run that goes on.
    assert (
        run(*GREEDY, *ANGULAR, "--save_pruned", folder, *SPECULATIVE, "--exit_layer", "5")[0] == 0
    )
    capsys.readouterr()
    for other in ([*ANGULAR, "--prune_n", "3"], [*ANGULAR, "--model", folder]):
        code, record, _ = run(*GREEDY, *other, "--save_pruned", folder)
        assert (code, record) == (2, None)
        assert f"--save_pruned {folder}: exists already" in capsys.readouterr().err


def test_an_interruption_before_the_first_example_is_one_line(run, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "encode_examples", interrupt)
    assert run(*GREEDY)[:2] == (130, None)
    assert capsys.readouterr().err.splitlines()[-1].endswith(": interrupted")


CLASSIC = (
    "--model facebook/layerskip-llama2-7B --dataset cnn_dm_summarization --num_samples 20 "
    "--generation_strategy self_speculative --exit_layer 30 --num_speculations 6 "
    "--output_dir ./logs/eval/"
)
CLASSIC_PLANS = [
    "--prune_method angular --prune_n 2",
    "--prune_method random --dropout_threshold 0.2",
    "--prune_method base",
]


@pytest.mark.parametrize("plan", CLASSIC_PLANS)
def test_the_classic_commands_get_as_far_as_the_models_download(
    plan, tmp_path, monkeypatch, capsys
):
    """A gated model should not cost the download of the data."""
    monkeypatch.chdir(tmp_path)
    assert run_script(benchmark.main, f"{CLASSIC} {plan}".split()) == 2
    message = "--model facebook/layerskip-llama2-7B: the hub cannot be reached"
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reached", [True, False])
def test_data_of_the_hub_come_before_the_weights(
    checkpoint, tmp_path, monkeypatch, reached, capsys
):
    """A data set that cannot be reached should not cost the loading of 70B parameters."""
    order = []

    def rows(self, split):
        order.append(split)
        if not reached:
            raise RowsError("is out of reach")
        return [Row(f"row {n}", {"utterance": f"{split} {n}", "semantic_parse": ""}) for n in "123"]

    ordinary = experiment.load_model

    def load(*arguments):
        order.append("weights")
        return ordinary(*arguments)

    monkeypatch.setattr(HubSource, "rows", rows)
    monkeypatch.setattr(experiment, "load_model", load)
    flags = ["--model", str(checkpoint), "--dataset", "top_v2", "--num_samples", "2", *ANGULAR]
    code = run_script(benchmark.main, [*flags, *GREEDY, "--output_dir", str(tmp_path / "logs")])
    if not reached:
        assert (code, order) == (2, ["test"])
        assert "--dataset top_v2: is out of reach; --data_path names" in capsys.readouterr().err
        return
    assert (code, order) == (0, ["test", "train", "weights"])
    (path,) = find_runs(tmp_path / "logs")
    assert read_record(path).data["calibration"]["source"] == "WillHeld/top_v2"


def test_bad_data_are_refused_without_importing_torch(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{")
    code = (
        "import sys, benchmark; from command_line.script import run_script;"
        "line = ['--dataset', 'xsum_summarization', '--data_path', sys.argv[1]];"
        "assert run_script(benchmark.main, line) == 2;"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.startswith(f"-c: error: --data_path {path}: line 1 is not JSON")
    assert done.returncode == 0
