"""train.py from its command line: what it leaves, how it goes on, and what it refuses."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

import benchmark
import train
from command_line.script import run_script
from tests.conftest import SPECULATIVE, write
from tests.ranked import Torchrun
from tests.trainings import (
    CONFIG,
    assert_alike,
    command,
    curve,
    equal,
    lines,
    stop_at_step,
    weights,
)
from training import arguments, documents, loop, optimizers, state
from training.log import LOG_NAME, TrainingLog


def test_a_training_from_scratch_learns_and_leaves_a_checkpoint(train_anew):
    code, out = train_anew("--max_steps", "60", "--early_exit_weights", "uniform")
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint",
        "training.jsonl",
        "training.pdf",
        "training.png",
    ]
    steps, evaluations = lines(out, "step"), lines(out, "eval")
    assert [line["step"] for line in steps] == list(range(1, 61))
    assert steps[-1]["loss"]["4"] < 0.7 * steps[0]["loss"]["4"]
    assert evaluations[-1]["loss"][-1] < 0.7 * evaluations[0]["loss"][-1]
    assert evaluations[-1]["acceptance"][-1] == 1
    (first,) = lines(out, "start")
    assert first["arguments"]["recipe"]["early_exit_weights"] == "uniform"
    model = AutoModelForCausalLM.from_pretrained(out / "checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(out / "checkpoint")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 0
    assert tokenizer.decode(tokenizer("count 1:\n")["input_ids"]) == "count 1:\n"


@pytest.mark.parametrize(("chosen", "used"), [(None, "64"), ("7", "7")])
def test_kernels_of_shapes_gone_by_are_not_kept(train_anew, monkeypatch, chosen, used):
    for name in train.KERNEL_CACHES:
        monkeypatch.setenv(name, chosen or "")
        if chosen is None:
            monkeypatch.delenv(name)
    assert train_anew("--max_steps", "1")[0] == 0
    assert {os.environ[name] for name in train.KERNEL_CACHES} == {used}


def test_the_checkpoint_runs_in_benchmark(train_anew, training_rows, tmp_path):
    _, out = train_anew()
    flags = [*SPECULATIVE, "--exit_layer", "2", "--sample", "false", "--max_steps", "8"]
    where = ["--dataset", "custom_jsonl", "--data_path", str(training_rows), "--num_samples", "2"]
    model = ["--model", str(out / "checkpoint"), "--output_dir", str(tmp_path / "logs")]
    assert run_script(benchmark.main, [*model, *where, *flags]) == 0


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_a_training_that_was_killed_ends_as_an_unbroken_one(train_anew, monkeypatch, optimizer):
    flags = ["--optimizer", optimizer, "--max_layer_dropout", "0.5"]
    _, whole = train_anew(*flags, folder="whole")
    stop_at_step(monkeypatch, 5)
    with pytest.raises(ZeroDivisionError):
        train_anew(*flags, folder="broken")
    monkeypatch.undo()
    code, broken = train_anew(*flags, folder="broken")
    assert code == 0
    assert [line["step"] for line in lines(broken, "start")] == [0, 3]
    assert curve(broken) == curve(whole)
    assert equal(weights(broken), weights(whole))


def test_parts_of_a_batch_add_up(train_anew):
    """More parts than a batch has sequences among them."""
    flags = ["--max_layer_dropout", "0.5"]
    _, whole = train_anew(*flags, folder="whole")
    _, parts = train_anew(*flags, "--gradient_accumulation", "9", folder="parts")
    assert_alike(whole, parts)


def test_two_processes_learn_what_one_does(tmp_path, training_rows, llama_config, train_anew):
    _, one = train_anew("--max_layer_dropout", "0.5", folder="one")
    AcceleratorState._reset_state(reset_partial_state=True)
    flags = ["--max_layer_dropout", "0.5", "--gradient_accumulation", "3"]
    flags = command(tmp_path, training_rows, llama_config, *flags, folder="two")
    code, _, errors = Torchrun(tmp_path, 2, train.main, flags).wait(120)
    assert code == 0, errors
    assert_alike(one, tmp_path / "two")
    ends = [lines(folder, "eval")[-1]["loss"] for folder in (one, tmp_path / "two")]
    assert ends[0] == pytest.approx(ends[1], abs=1e-3)


def test_ctrl_c_keeps_the_step_that_was_reached(train_anew, monkeypatch, capsys):
    _, whole = train_anew(folder="whole")
    ordinary = loop.Training._step

    def step(self, sequences, window):
        ordinary(self, sequences, window)
        if self.progress.step == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop.Training, "_step", step)
    code, out = train_anew()
    assert code == 130
    assert "the same command goes on after state-00000005" in capsys.readouterr().out
    monkeypatch.undo()
    assert train_anew()[0] == 0
    assert [line["step"] for line in lines(out, "start")] == [0, 5]
    assert equal(weights(out), weights(whole))


def test_a_complete_training_is_not_begun_again(train_anew, capsys):
    _, out = train_anew()
    before = (out / LOG_NAME).read_bytes()
    assert train_anew()[0] == 0
    assert "is complete" in capsys.readouterr().out
    assert (out / LOG_NAME).read_bytes() == before


def test_a_folder_of_another_configuration_is_refused(train_anew, monkeypatch, capsys):
    stop_at_step(monkeypatch, 5)
    with pytest.raises(ZeroDivisionError):
        train_anew()
    monkeypatch.undo()
    assert train_anew("--weight_decay", "0.3")[0] == 2
    assert "holds a training whose --weight_decay is 0.1, not 0.3" in capsys.readouterr().err
    assert train_anew("--num_samples", "20")[0] == 2
    assert "holds a training whose data is" in capsys.readouterr().err
    assert train_anew()[0] == 0
    assert train_anew("--seed", "1")[0] == 2
    assert "holds a training whose --seed is 42, not 1" in capsys.readouterr().err


def test_a_damaged_state_is_refused(train_anew, monkeypatch, tmp_path, capsys):
    stop_at_step(monkeypatch, 5)
    with pytest.raises(ZeroDivisionError):
        train_anew()
    monkeypatch.undo()
    state = tmp_path / "out" / "state-00000003"
    (state / "weights.safetensors").write_bytes(b"no tensors")
    assert train_anew()[0] == 2
    assert "its state-00000003 cannot be read" in capsys.readouterr().err
    assert state.is_dir()


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_state(
    train_anew, monkeypatch, capsys
):
    def poisoned(self, sequences, window, step=loop.Training._step):
        if self.progress.step == 4:
            for item in self._learner.model.parameters():
                item.data.mul_(math.nan)
        step(self, sequences, window)

    monkeypatch.setattr(loop.Training, "_step", poisoned)
    code, out = train_anew()
    assert code == 1
    error = capsys.readouterr().err
    assert (
        "loss or gradient of step 5 is not finite; training stops, state-00000003 is kept" in error
    )
    assert (out / "state-00000003").is_dir()
    monkeypatch.undo()
    assert train_anew()[0] == 0


def ruin_weights_after(monkeypatch, number):
    def ruined(self, sequences, window, step=loop.Training._step):
        step(self, sequences, window)
        if self.progress.step == number:
            for item in self._learner.model.parameters():
                item.data.mul_(math.inf)

    monkeypatch.setattr(loop.Training, "_step", ruined)


def test_a_state_of_ruined_weights_does_not_stay(train_anew, monkeypatch, capsys):
    ruin_weights_after(monkeypatch, 6)
    code, out = train_anew()
    assert code == 1
    assert "loss or gradient of step 7 is not finite" in capsys.readouterr().err
    assert [path.name for path in out.glob("state-*")] == ["state-00000003"]
    monkeypatch.undo()
    assert train_anew()[0] == 0
    assert [line["step"] for line in lines(out, "start")] == [0, 3]


def test_a_state_that_was_not_proven_when_a_training_was_killed(train_anew, monkeypatch):
    """It is gone on from; where its weights are ruined, the one before is still there."""
    ruin_weights_after(monkeypatch, 6)
    monkeypatch.setattr(state.TrainingState, "disprove", lambda self: None)
    _, out = train_anew()
    assert len(list(out.glob("state-*"))) == 2
    monkeypatch.undo()
    assert train_anew()[0] == 1
    assert [path.name for path in out.glob("state-*")] == ["state-00000003"]
    assert train_anew()[0] == 0
    assert [line["step"] for line in lines(out, "start")] == [0, 3]


def test_a_held_out_loss_that_is_no_number_stops_training(train_anew, monkeypatch, capsys):
    ruin_weights_after(monkeypatch, 8)
    code, out = train_anew("--optimizer", "muon")
    assert code == 1
    error = capsys.readouterr().err
    assert "--learning_rate 0.01, --muon_learning_rate 0.02: loss on held-out rows after" in error
    assert "after step 8 is not finite; training stops, state-00000006 is kept" in error
    assert not (out / "checkpoint").exists()


def test_a_file_of_anothers_is_not_taken_for_the_log(train_anew, training_rows, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    rows = training_rows.read_bytes()
    (out / LOG_NAME).write_bytes(rows)
    assert train_anew("--data_path", str(out / LOG_NAME))[0] == 2
    assert "holds a training.jsonl that is no training's log" in capsys.readouterr().err
    assert (out / LOG_NAME).read_bytes() == rows


def test_a_checkpoint_of_anothers_is_left_alone(train_anew, tmp_path, capsys):
    (tmp_path / "out" / "checkpoint").mkdir(parents=True)
    assert train_anew()[0] == 2
    assert "its checkpoint is no training's" in capsys.readouterr().err


def test_a_full_disk_at_a_state_keeps_the_one_before(train_anew, monkeypatch, capsys):
    ordinary = state.save_file

    def full(tensors, path):
        written.append(path)
        if len(written) > 2:  # weights and one optimizer's state
            raise OSError(28, "No space left on device")
        ordinary(tensors, path)

    written = []
    monkeypatch.setattr(state, "save_file", full)
    stop_at_step(monkeypatch, 7)
    with pytest.raises(ZeroDivisionError):
        train_anew()
    said = capsys.readouterr()
    assert "the state of step 6 is not saved ([Errno 28] No space left on device)" in (
        said.out + said.err
    )
    assert "state-00000003 stays" in said.out + said.err
    monkeypatch.undo()
    code, out = train_anew()
    assert code == 0
    assert [line["step"] for line in lines(out, "start")] == [0, 3]


@pytest.mark.parametrize(
    ("writer", "error"),
    [
        ("PreTrainedModel", OSError(28, "No space left on device")),
        ("PreTrainedTokenizerFast", Exception("No space left on device (os error 28)")),
    ],
)
def test_a_full_disk_at_the_checkpoint_keeps_the_state(
    train_anew, monkeypatch, capsys, writer, error
):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(f"transformers.{writer}.save_pretrained", full)
    assert train_anew()[0] == 1
    assert "the checkpoint cannot be written" in capsys.readouterr().err
    monkeypatch.undo()
    code, out = train_anew()
    assert code == 0
    assert [line["step"] for line in lines(out, "start")] == [0, 8]


def test_a_folder_that_another_training_holds_is_left_alone(train_anew, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".training.lock"):
        assert train_anew()[0] == 75
    assert "another process is at a training in it" in capsys.readouterr().err


def test_a_full_disk_costs_the_log_no_line_in_the_end(tmp_path, monkeypatch, capsys):
    log = TrainingLog(tmp_path, 0)
    log.add("step", step=1, tokens=1)
    ordinary = Path.open

    def full(path, *mode, **options):
        with ordinary(path, *mode, **options) as file:
            file.write('{"kind": "st')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    log.add("step", step=2, tokens=2)
    assert "the log lacks a line (No space left on device)" in capsys.readouterr().err
    monkeypatch.undo()
    log.add("step", step=3, tokens=3)
    assert [line["step"] for line in lines(tmp_path, "step")] == [1, 2, 3]


def test_a_log_goes_on_behind_a_line_that_was_broken_off(tmp_path):
    (tmp_path / LOG_NAME).write_text('{"kind": "step", "step": 1}\n{"kind": "st\n')
    TrainingLog(tmp_path, 2).add("step", step=3)
    assert [line["step"] for line in lines(tmp_path, "step")] == [1, 3]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--learning_rate", "0"], "--learning_rate 0.0: must be above 0"),
        (["--max_layer_dropout", "1"], "--max_layer_dropout 1.0: must be in [0, 1)"),
        (["--lora_rank", "2"], "--lora_rank 2: only with --model"),
        (["--tokenizer", "nowhere"], "--tokenizer nowhere: the hub cannot be reached"),
        (["--config", "nowhere"], "--config nowhere: is no configuration"),
        (["--max_length", "65"], "--max_length 65: exceeds the model's 64 positions"),
        (["--max_length", "64", "--batch_tokens", "63"], "must not exceed --batch_tokens"),
        (["--tokenizer_pattern", "("], "--tokenizer_pattern (: is no regular expression"),
        (["--teacher", "x"], "--teacher x: only with --distill true"),
        (["--distill", "true"], "needs a --teacher"),
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--seed", str(2**70)], "--seed 1180591620717411303424: must be 0 to"),
        (["--config", "~nobody-of-that-name/x"], "is no configuration"),
        (["--tokenizer", ""], "--tokenizer '': must not be empty"),
        (["--truncate_prompt", "true"], "--truncate_prompt true: prompts are cut"),
        (["--dataset", "top_v2", "--prompt_field", "q"], "--prompt_field q: only with"),
        (["--data_path", "nowhere.jsonl"], "--data_path nowhere.jsonl: cannot be read"),
    ],
)
def test_bad_input_is_refused_in_one_line(train_anew, flags, reason, capsys):
    assert train_anew(*flags)[0] == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error


def test_a_pattern_that_tries_too_many_ways_is_refused(train_anew, tmp_path, capsys):
    path = write(tmp_path / "long.jsonl", [{"prompt": "x" * 60, "response": ""}] * 2)
    held_out = ["--data_path", str(path), "--eval_samples", "0"]
    assert train_anew(*held_out, "--tokenizer_pattern", "(x+x+)+y")[0] == 2
    assert "(x+x+)+y: breaks down on the training texts" in capsys.readouterr().err


def test_a_vocabulary_that_does_not_fit_is_refused(train_anew, checkpoint, llama_config, capsys):
    llama_config.write_text(json.dumps(CONFIG | {"vocab_size": 200}))
    assert train_anew("--tokenizer", str(checkpoint), folder="small")[0] == 2
    assert "has 257 tokens, the configuration's vocab_size 200" in capsys.readouterr().err
    assert train_anew(folder="small")[0] == 2
    assert "its vocab_size 200 must exceed 256" in capsys.readouterr().err


def test_choices_are_those_of_the_tables():
    assert tuple(optimizers.OPTIMIZERS) == arguments.OPTIMIZERS
    assert tuple(documents.BATCHINGS) == arguments.BATCHINGS
