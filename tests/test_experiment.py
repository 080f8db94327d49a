"""One cell: what it calibrates on, which prompts it reads, and what defines it."""

import json
import shutil

import pytest
import torch
from conftest import ANGULAR, GREEDY, SPECULATIVE

import experiment
import runtime as machine
from pruned_model import angular_distances
from runtime import Runtime
from self_speculation.text_generator import TextGenerator


def outputs(samples):
    return [sample.output_ids for sample in samples]


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


def test_an_example_draws_the_same_tokens_whatever_runs_before_it(run):
    _, _, few = run("--max_steps", "12", samples="2")
    _, _, many = run("--max_steps", "12", samples="5")
    assert outputs(many)[:2] == outputs(few)
    _, _, other = run("--max_steps", "12", "--seed", "7", samples="2")
    assert outputs(other) != outputs(few)


def test_prompts_that_yield_no_token_are_refused(run, tmp_path, monkeypatch, capsys):
    ordinary = machine.load_model

    def load(*arguments):
        loaded = ordinary(*arguments)
        loaded.tokenizer = lambda prompt: {"input_ids": [] if prompt == "\u200b" else [1]}
        return loaded

    monkeypatch.setattr(machine, "load_model", load)
    path = tmp_path / "odd.jsonl"
    path.write_text('{"prompt": "\u200b", "response": ""}', "utf-8")
    assert run(*GREEDY, path=path)[:2] == (2, None)
    assert "its tokenizer makes no token of '\\u200b'" in capsys.readouterr().err


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


def test_float32_uses_full_precision_products(run):
    torch.set_float32_matmul_precision("high")
    run(*GREEDY, "--dtype", "float32")
    assert torch.get_float32_matmul_precision() == "highest"
