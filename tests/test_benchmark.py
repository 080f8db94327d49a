"""Whole runs of benchmark.py on a tiny checkpoint, from flags to files."""

import json
import shutil

import pytest
import torch

import benchmark
import experiment
from arguments import run_script
from pruned_model import angular_distances
from run_log import find_runs, read_record, read_samples
from runtime import Runtime
from self_speculation.text_generator import TextGenerator

GREEDY = ["--sample", "false", "--max_steps", "16"]
SPECULATIVE = ["--generation_strategy", "self_speculative", "--num_speculations", "3"]
ANGULAR = ["--prune_method", "angular", "--prune_n", "2", "--calibration_samples", "4"]


@pytest.fixture
def run(checkpoint, rows, tmp_path):
    """Runs benchmark.py with more flags; returns exit code, run and samples, None without a log."""

    def start(*flags, samples="3", path=rows):
        folder = tmp_path / f"logs{len(list(tmp_path.iterdir()))}"
        count = ["--num_samples", samples] if samples else []
        code = run_script(
            benchmark.main,
            ["--model", str(checkpoint), "--dtype", "float64", "--dataset", "custom_jsonl"]
            + ["--data_path", str(path), "--output_dir", str(folder), *count, *flags],
        )
        found = find_runs(folder)
        if not found:
            return code, None, None
        return code, read_record(found[0]), read_samples(found[0])

    return start


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
    assert "accepted; against full steps" in text


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


def test_calibration_reads_prompts_that_are_not_evaluated(run, tokenizer, monkeypatch):
    seen = []

    def watched(model, prompts):
        seen.extend(tokenizer.decode(prompt[0]) for prompt in prompts)
        return angular_distances(model, prompts)

    monkeypatch.setattr("pruned_model.angular_distances", watched)
    _, _, samples = run(*GREEDY, *ANGULAR, samples="7")
    assert seen == [f"number {i}:" for i in range(8, 12)]
    assert [sample.reference for sample in samples] == [f"item {i}" for i in range(7)]


def test_long_calibration_prompts_keep_their_tail(run, tokenizer, tmp_path, monkeypatch):
    seen = []
    path = tmp_path / "long.jsonl"
    long_row = json.dumps({"prompt": "a" * 300 + "TAIL", "response": ""})
    path.write_text('{"prompt": "short", "response": ""}\n' + long_row + "\n")

    def watched(model, prompts):
        seen.extend(prompts)
        return angular_distances(model, prompts)

    monkeypatch.setattr("pruned_model.angular_distances", watched)
    code, _, _ = run(*GREEDY, *ANGULAR, samples="1", path=path)
    assert code == 0
    (prompt,) = seen
    assert tokenizer.decode(prompt[0]) == "a" * 252 + "TAIL"


def test_prompts_beyond_the_models_positions_are_skipped_and_counted(run, tmp_path, capsys):
    path = tmp_path / "mixed.jsonl"
    rows = [{"prompt": "x" * n, "response": "y"} for n in (10, 257, 256)]
    path.write_text("\n".join(map(json.dumps, rows)))
    code, record, samples = run(*GREEDY, path=path)
    assert code == 0
    assert [sample.status for sample in samples] == ["done", "prompt_too_long", "done"]
    assert [len(sample.output_ids) for sample in samples] == [16, 0, 1]
    assert record.metrics["counts"]["skipped_prompts"] == 1
    assert "1 skipped, longer than the model's positions" in capsys.readouterr().out

    _, record, samples = run(*GREEDY, "--truncate_prompt", "true", path=path)
    assert record.metrics["counts"]["skipped_prompts"] == 0
    assert [sample.prompt_tokens for sample in samples] == [10, 241, 241]
    assert [len(sample.output_ids) for sample in samples] == [16, 16, 16]
    assert samples[1].output_ids == samples[2].output_ids


def test_only_prompts_too_long_is_an_error(run, tmp_path, capsys):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "x" * 300, "response": "y"}))
    code, record, _ = run(*GREEDY, path=path)
    assert (code, record) == (2, None)
    assert "every prompt exceeds the model's 256 positions" in capsys.readouterr().err


def test_empty_generations_are_kept(run):
    _, _, samples = run(*GREEDY)
    first = str(samples[0].output_ids[0])
    code, record, samples = run(*GREEDY, "--stop_token_ids", first)
    assert code == 0
    assert samples[0].prediction == ""
    assert samples[0].scores["edit_distance"] == len("item 0")
    assert record.metrics["counts"]["prompts"] == 3


def test_an_example_draws_the_same_tokens_whatever_runs_before_it(run):
    _, _, few = run("--max_steps", "12", samples="2")
    _, _, many = run("--max_steps", "12", samples="5")
    assert outputs(many)[:2] == outputs(few)
    _, _, other = run("--max_steps", "12", "--seed", "7", samples="2")
    assert outputs(other) != outputs(few)


def test_too_few_rows_are_run_with_a_warning(run, capsys):
    code, record, _ = run(*GREEDY, samples="50")
    assert code == 0
    assert record.metrics["counts"]["prompts"] == 12
    assert "custom_jsonl has 12 examples; all of them are run" in capsys.readouterr().err


def test_too_few_calibration_rows_warn(run, capsys):
    code, record, _ = run(*GREEDY, *ANGULAR, samples="10")
    assert code == 0
    assert record.plan["calibration"]["prompts"] == 2
    assert "calibrating on 2 examples" in capsys.readouterr().err


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
            ["--prune_method", "angular", "--prune_n", "5"],
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


def test_an_interruption_leaves_a_readable_log(run, monkeypatch):
    ordinary = experiment.measure_example

    def interrupted(arguments, generator, index, item):
        if index == 2:
            raise KeyboardInterrupt
        return ordinary(arguments, generator, index, item)

    monkeypatch.setattr(experiment, "measure_example", interrupted)
    code, record, samples = run(*GREEDY)
    assert code == 130
    assert record.status == "interrupted"
    assert len(samples) == record.metrics["counts"]["prompts"] == 2


def test_a_crash_leaves_a_readable_log(checkpoint, rows, tmp_path, monkeypatch):
    def crash(*_):
        raise RuntimeError("kernel")

    monkeypatch.setattr(experiment, "text_scores", crash)
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
    capsys.readouterr()
    code, record, _ = run(*GREEDY, *ANGULAR, "--save_pruned", folder)
    assert (code, record) == (2, None)
    assert f"--save_pruned {folder}: exists already" in capsys.readouterr().err


def test_the_device_is_warm_before_the_first_example(run, monkeypatch):
    calls, full_steps = [], 0
    ordinary, ordinary_step = TextGenerator.generate, TextGenerator.time_full_step

    def watched(self, prompt_ids, *arguments, **options):
        calls.append((options.get("max_steps"), arguments))
        return ordinary(self, prompt_ids, *arguments, **options)

    def watched_step(self, token_id):
        nonlocal full_steps
        full_steps += 1
        return ordinary_step(self, token_id)

    monkeypatch.setattr(TextGenerator, "generate", watched)
    monkeypatch.setattr(TextGenerator, "time_full_step", watched_step)
    _, record, _ = run(*GREEDY, *SPECULATIVE, "--exit_layer", "3")
    assert calls[0] == (experiment.WARM_UP_STEPS, ())
    assert full_steps == len(calls) == 1 + record.metrics["counts"]["prompts"]


@pytest.mark.parametrize("flags", [[], ["--exit_layer", "2"]])
def test_plain_runs_time_no_further_full_steps(run, flags, monkeypatch):
    """After early exit such a step would attend to keys that were never written."""
    monkeypatch.setattr(TextGenerator, "time_full_step", None)
    code, record, samples = run("--max_steps", "8", *flags)
    assert code == 0
    assert all(sample.full_step is None for sample in samples)
    assert (record.metrics["step_seconds"]["early_exit"] is None) == (not flags)


def test_the_run_id_follows_what_defines_the_run(run, rows, checkpoint, tmp_path, monkeypatch):
    base = run(*GREEDY)[1].run_id
    assert run(*GREEDY)[1].run_id == base
    without_effect = ["--calibration_samples", "9", "--temperature", "3", "--seed", "1"]
    assert run(*GREEDY, *without_effect, "--num_speculations", "9")[1].run_id == base
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    assert run(*GREEDY, "--model", str(moved))[1].run_id == base
    others = [
        run("--max_steps", "16"),
        run("--max_steps", "16", "--seed", "1"),
        run(*GREEDY, "--truncate_prompt", "true"),
        run(*GREEDY, samples="4"),
        run(*GREEDY, "--dtype", "float32"),
        run(*GREEDY, "--model_args", "attn_implementation=eager"),
        run(*GREEDY, *ANGULAR),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "ENGINE_VERSION", 0)
        others.append(run(*GREEDY))
    rounder = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((rounder / "config.json").read_text())
    (rounder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    others.append(run(*GREEDY, "--model", str(rounder)))
    rows.write_text(rows.read_text().replace("item 0", "item zero"))
    others.append(run(*GREEDY))
    assert len({base, *(record.run_id for _, record, _ in others)}) == len(others) + 1


def test_the_peak_of_memory_is_that_of_decoding(run, monkeypatch):
    """Loading and calibration hold more than the pruned model does, and are over by then."""
    order = []
    reset = Runtime.reset_peak_memory
    prune = experiment.PruneModel.prune

    def watched_prune(self):
        order.append("prune")
        prune(self)

    def watched_reset(self):
        order.append("reset")
        reset(self)

    monkeypatch.setattr(experiment.PruneModel, "prune", watched_prune)
    monkeypatch.setattr(Runtime, "reset_peak_memory", watched_reset)
    run(*GREEDY, *ANGULAR)
    assert order == ["prune", "reset"]


def test_an_interruption_before_the_first_example_is_one_line(run, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "encode_examples", interrupt)
    assert run(*GREEDY)[:2] == (130, None)
    assert capsys.readouterr().err.splitlines()[-1].endswith(": interrupted")


def test_float32_uses_full_precision_products(run):
    torch.set_float32_matmul_precision("high")
    run(*GREEDY, "--dtype", "float32")
    assert torch.get_float32_matmul_precision() == "highest"
