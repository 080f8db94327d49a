"""train.py from its command line: what it leaves, how it goes on, and what it refuses."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import LAYERS, SPECULATIVE, write
from safetensors.torch import load_file
from test_layout import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

import benchmark
import optimizers
import train
import training
import training_arguments
import training_documents
import training_state
from command_line import run_script
from training_log import LOG_NAME

CONFIG = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
SHORT = ["--max_steps", "8", "--batch_tokens", "128", "--warmup_steps", "2"]
OFTEN = ["--log_steps", "1", "--eval_steps", "4", "--state_steps", "3"]


@pytest.fixture(autouse=True)
def _separate_trainings():
    """accelerate keeps its settings for a process's whole life, which is one training elsewhere."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": f"count {n}", "response": f"{n} {n + 1} {n + 2}"} for n in range(60)]
    return write(tmp_path / "rows.jsonl", rows)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def start(tmp_path, data, config):
    """Runs train.py from scratch in a folder; returns the exit code and that folder."""

    def run(*flags, folder="out"):
        AcceleratorState._reset_state(reset_partial_state=True)
        return run_script(train.main, command(tmp_path, data, config, *flags, folder=folder)), (
            tmp_path / folder
        )

    return run


def command(tmp_path, data, config, *flags, folder="out"):
    return [
        *["--config", str(config), "--tokenizer", "bpe", "--mixed_precision", "no"],
        *["--dataset", "custom_jsonl", "--data_path", str(data), "--template", r"{message}:\n"],
        *["--max_length", "32", "--eval_samples", "10", "--learning_rate", "0.01"],
        *["--output_dir", str(tmp_path / folder), *SHORT, *OFTEN, *flags],
    ]


def lines(folder, kind):
    found = map(json.loads, (folder / LOG_NAME).read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def weights(folder):
    return load_file(folder / "checkpoint" / "model.safetensors")


def curve(folder):
    timed = {"seconds", "tokens_per_second"}
    return [
        {name: value for name, value in line.items() if name not in timed}
        for kind in ("step", "eval")
        for line in lines(folder, kind)
    ]


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_training_from_scratch_learns_and_leaves_a_checkpoint(start):
    code, out = start("--max_steps", "60", "--early_exit_weights", "uniform")
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


def test_the_checkpoint_runs_in_benchmark(start, data, tmp_path):
    _, out = start()
    flags = [*SPECULATIVE, "--exit_layer", "2", "--sample", "false", "--max_steps", "8"]
    where = ["--dataset", "custom_jsonl", "--data_path", str(data), "--num_samples", "2"]
    model = ["--model", str(out / "checkpoint"), "--output_dir", str(tmp_path / "logs")]
    assert run_script(benchmark.main, [*model, *where, *flags]) == 0


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_a_training_that_was_killed_ends_as_an_unbroken_one(start, monkeypatch, optimizer):
    flags = ["--optimizer", optimizer, "--max_layer_dropout", "0.5"]
    _, whole = start(*flags, folder="whole")
    _stop_at_step(monkeypatch, 5)
    with pytest.raises(ZeroDivisionError):
        start(*flags, folder="broken")
    monkeypatch.undo()
    code, broken = start(*flags, folder="broken")
    assert code == 0
    assert [line["step"] for line in lines(broken, "start")] == [0, 3]
    assert curve(broken) == curve(whole)
    assert equal(weights(broken), weights(whole))


def _stop_at_step(monkeypatch, number, error=ZeroDivisionError):
    ordinary = training.Training._step

    def step(self, sequences, window):
        if self.progress.step == number:
            raise error
        ordinary(self, sequences, window)

    monkeypatch.setattr(training.Training, "_step", step)


def test_parts_of_a_batch_add_up(start):
    """More parts than a batch has sequences among them."""
    flags = ["--max_layer_dropout", "0.5"]
    _, whole = start(*flags, folder="whole")
    _, parts = start(*flags, "--gradient_accumulation", "9", folder="parts")
    for one, other in zip(lines(whole, "step"), lines(parts, "step"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)


def test_two_processes_learn_what_one_does(tmp_path, data, config, start):
    _, one = start("--max_layer_dropout", "0.5", folder="one")
    flags = command(tmp_path, data, config, "--max_layer_dropout", "0.5", folder="two")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python"]
        + ["--standalone", sys.executable, ROOT / "train.py", *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for alone, shared in zip(lines(one, "step"), lines(tmp_path / "two", "step"), strict=True):
        assert alone["loss"] == pytest.approx(shared["loss"], abs=1e-3)
    ends = [lines(folder, "eval")[-1]["loss"] for folder in (one, tmp_path / "two")]
    assert ends[0] == pytest.approx(ends[1], abs=1e-3)


def test_ctrl_c_keeps_the_step_that_was_reached(start, monkeypatch, capsys):
    _, whole = start(folder="whole")
    ordinary = training.Training._step

    def step(self, sequences, window):
        ordinary(self, sequences, window)
        if self.progress.step == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training.Training, "_step", step)
    code, out = start()
    assert code == 130
    assert "interrupted after step 5; the same command goes on" in capsys.readouterr().out
    monkeypatch.undo()
    assert start()[0] == 0
    assert [line["step"] for line in lines(out, "start")] == [0, 5]
    assert equal(weights(out), weights(whole))


def test_a_complete_training_is_not_begun_again(start, capsys):
    _, out = start()
    before = (out / LOG_NAME).read_bytes()
    assert start()[0] == 0
    assert "is complete" in capsys.readouterr().out
    assert (out / LOG_NAME).read_bytes() == before


def test_a_folder_of_another_configuration_is_refused(start, monkeypatch, capsys):
    _stop_at_step(monkeypatch, 5)
    with pytest.raises(ZeroDivisionError):
        start()
    monkeypatch.undo()
    assert start("--weight_decay", "0.3")[0] == 2
    assert "holds a training whose --weight_decay is 0.1, not 0.3" in capsys.readouterr().err
    assert start("--num_samples", "20")[0] == 2
    assert "holds a training whose data is" in capsys.readouterr().err
    assert start()[0] == 0
    assert start("--seed", "1")[0] == 2
    assert "holds a training whose --seed is 42, not 1" in capsys.readouterr().err


def test_a_damaged_state_is_refused(start, monkeypatch, tmp_path, capsys):
    _stop_at_step(monkeypatch, 5)
    with pytest.raises(ZeroDivisionError):
        start()
    monkeypatch.undo()
    state = tmp_path / "out" / "state-00000003"
    (state / "weights.safetensors").write_bytes(b"no tensors")
    assert start()[0] == 2
    assert "its state-00000003 cannot be read" in capsys.readouterr().err
    assert state.is_dir()


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_state(start, monkeypatch, capsys):
    def poisoned(self, sequences, window, step=training.Training._step):
        if self.progress.step == 4:
            for item in self._learner.model.parameters():
                item.data.mul_(math.nan)
        step(self, sequences, window)

    monkeypatch.setattr(training.Training, "_step", poisoned)
    code, out = start()
    assert code == 1
    error = capsys.readouterr().err
    assert (
        "loss or gradient of step 5 is not finite; training stops, state-00000003 is kept" in error
    )
    assert (out / "state-00000003").is_dir()
    monkeypatch.undo()
    assert start()[0] == 0


def test_a_full_disk_at_a_state_keeps_the_one_before(start, monkeypatch, capsys):
    ordinary = training_state.save_file

    def full(tensors, path):
        written.append(path)
        if len(written) > 2:  # weights and one optimizer's state
            raise OSError(28, "No space left on device")
        ordinary(tensors, path)

    written = []
    monkeypatch.setattr(training_state, "save_file", full)
    _stop_at_step(monkeypatch, 7)
    with pytest.raises(ZeroDivisionError):
        start()
    said = capsys.readouterr()
    assert "the state of step 6 is not saved ([Errno 28] No space left on device)" in (
        said.out + said.err
    )
    assert "state-00000003 stays" in said.out + said.err
    monkeypatch.undo()
    code, out = start()
    assert code == 0
    assert [line["step"] for line in lines(out, "start")] == [0, 3]


def test_a_full_disk_at_the_checkpoint_keeps_the_state(start, monkeypatch, capsys, tmp_path):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    assert start()[0] == 1
    assert "the checkpoint cannot be written" in capsys.readouterr().err
    monkeypatch.undo()
    code, out = start()
    assert code == 0
    assert [line["step"] for line in lines(out, "start")] == [0, 8]


@pytest.fixture
def go_on(tmp_path, data, checkpoint):
    """Runs train.py on the tiny Llama; returns the exit code and the folder."""

    def run(*flags, folder="out", model=checkpoint):
        AcceleratorState._reset_state(reset_partial_state=True)
        where = ["--model", str(model), "--mixed_precision", "no", "--dataset", "custom_jsonl"]
        rows = ["--data_path", str(data), "--eval_samples", "10", "--max_length", "32"]
        kept = ["--output_dir", str(tmp_path / folder), *SHORT, *OFTEN]
        code = run_script(train.main, [*where, *rows, *kept, *flags])
        return code, tmp_path / folder

    return run


def test_adapters_alone_learn_and_are_merged(go_on, checkpoint, capsys):
    code, out = go_on("--lora_rank", "2", "--learning_rate", "0.01")
    assert code == 0
    assert f"{LAYERS} layers, 5,568 parameters learn" in capsys.readouterr().out
    before, after = load_file(checkpoint / "model.safetensors"), weights(out)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert changed
    assert all("proj" in name for name in changed)


def test_distillation_teaches_early_exits_what_the_last_layer_says(go_on):
    flags = ["--distill", "true", "--learning_rate", "0.01", "--max_steps", "40"]
    weights_flags = ["--early_exit_weights", "uniform", "--early_exit_curriculum", "none"]
    code, out = go_on(*flags, *weights_flags, "--max_layer_dropout", "0")
    assert code == 0
    steps = lines(out, "step")
    assert steps[0]["loss"][str(LAYERS)] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["loss"]["3"] < 0.8 * steps[0]["loss"]["3"]


def test_adapters_switched_off_are_the_teacher(go_on):
    code, out = go_on("--distill", "true", "--lora_rank", "2", "--max_layer_dropout", "0")
    assert code == 0
    first, last = lines(out, "step")[0], lines(out, "step")[-1]
    assert first["loss"][str(LAYERS)] == pytest.approx(0, abs=1e-4)
    assert last["loss"][str(LAYERS)] > 0


def test_packed_batches_in_bfloat16(go_on):
    code, out = go_on("--batching", "packed", "--mixed_precision", "bf16")
    assert code == 0
    assert all(math.isfinite(line["loss"][str(LAYERS)]) for line in lines(out, "step"))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--learning_rate", "0"], "--learning_rate 0.0: must be above 0"),
        (["--max_layer_dropout", "1"], "--max_layer_dropout 1.0: must be in [0, 1)"),
        (["--lora_rank", "2"], "--lora_rank 2: only with --model"),
        (["--tokenizer", "nowhere"], "--tokenizer nowhere: cannot be loaded"),
        (["--config", "nowhere"], "--config nowhere: is no configuration"),
        (["--max_length", "65"], "--max_length 65: exceeds the model's 64 positions"),
        (["--max_length", "64", "--batch_tokens", "63"], "must not exceed --batch_tokens"),
        (["--tokenizer_pattern", "("], "--tokenizer_pattern (: is no regular expression"),
        (["--teacher", "x"], "--teacher x: only with --distill true"),
        (["--distill", "true"], "needs a --teacher"),
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--data_path", "nowhere.jsonl"], "--data_path nowhere.jsonl: cannot be read"),
    ],
)
def test_bad_input_is_refused_in_one_line(start, flags, reason, capsys):
    assert start(*flags)[0] == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error


def test_a_vocabulary_that_does_not_fit_is_refused(start, checkpoint, config, capsys):
    config.write_text(json.dumps(CONFIG | {"vocab_size": 200}))
    assert start("--tokenizer", str(checkpoint), folder="small")[0] == 2
    assert "has 257 tokens, the configuration's vocab_size 200" in capsys.readouterr().err
    assert start(folder="small")[0] == 2
    assert "its vocab_size 200 must exceed 256" in capsys.readouterr().err


def test_choices_are_those_of_the_tables():
    assert tuple(optimizers.OPTIMIZERS) == training_arguments.OPTIMIZERS
    assert tuple(training_documents.BATCHINGS) == training_arguments.BATCHINGS
