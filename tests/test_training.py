"""train.py from its command line: what it leaves, how it goes on, and what it refuses."""

import math
import os
import shutil
import signal
from functools import partial

import pytest
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

import benchmark
import train
from command_line.script import run_script
from tests import trainings
from tests.conftest import SPECULATIVE, rewritten, write
from tests.trainings import (
    after_step,
    assert_alike,
    curve,
    equal,
    kill,
    lines,
    starts,
    weights,
)
from training import arguments, optimizers, state
from training.log import LOG_NAME
from training.run import CHECKPOINT, FACTS_FILE


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainings")
    trainings.write_rows(folder)
    trainings.write_config(folder)
    return folder


@pytest.fixture(scope="module")
def whole(place):
    """The folder of a training that ran to its end."""
    code, folder = trainings.train_anew(place, folder="whole")
    assert code == 0
    return folder


@pytest.fixture(scope="module")
def killed(place):
    """The folder of a training that was killed after step 5, with the state of step 3."""
    kill(partial(trainings.train_anew, place), 5, folder="killed")
    return place / "killed"


@pytest.fixture
def out(tmp_path):
    """The folder that `train_anew` trains in."""
    return tmp_path / "out"


def test_a_training_from_scratch_learns_and_leaves_a_checkpoint(train_anew):
    flags = ["--max_steps", "60", "--early_exit_weights", "uniform", "--max_layer_dropout", "0.1"]
    code, out = train_anew(*flags)
    assert code == 0
    left = ["checkpoint", "training.jsonl", "training.png"]
    assert sorted(path.name for path in out.iterdir()) == left
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


def test_kernels_of_earlier_shapes_are_not_kept(train_anew, monkeypatch):
    """They took 5 GB within some thousand steps. A user's own number stays."""
    first, second = train.KERNEL_CACHES
    monkeypatch.setenv(first, "7")
    monkeypatch.setenv(second, "")
    monkeypatch.delenv(second)
    train_anew("--data_path", "nowhere.jsonl")
    assert (os.environ[first], os.environ[second]) == ("7", "64")


def test_the_checkpoint_runs_in_benchmark(whole, place, tmp_path):
    flags = [*SPECULATIVE, "--exit_layer", "2", "--sample", "false", "--max_steps", "8"]
    where = ["--dataset", "custom_jsonl", "--data_path", str(place / "rows.jsonl")]
    model = ["--model", str(whole / "checkpoint"), "--output_dir", str(tmp_path / "logs")]
    assert run_script(benchmark.main, [*model, *where, "--num_samples", "2", *flags]) == 0


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_a_killed_training_ends_as_an_unbroken_one(train_anew, optimizer):
    flags = ["--optimizer", optimizer]
    _, whole = train_anew(*flags, folder="whole")
    kill(train_anew, 5, *flags, folder="killed")
    _, killed = train_anew(*flags, folder="killed")
    assert starts(killed) == [0, 3]
    assert curve(killed) == curve(whole)
    assert equal(weights(killed), weights(whole))


def test_parts_of_a_batch_add_up(train_anew, whole):
    """More parts than a batch has sequences among them."""
    _, parts = train_anew("--gradient_accumulation", "9")
    assert_alike(whole, parts)


def test_two_processes_learn_what_one_does(place, whole):
    parts = ["--gradient_accumulation", "3"]
    two = trainings.train_in_processes(2, place, *parts, folder="two")
    assert_alike(whole, two)
    ends = [lines(folder, "eval")[-1]["loss"] for folder in (whole, two)]
    assert ends[0] == pytest.approx(ends[1], abs=1e-3)


def test_ctrl_c_keeps_the_step_that_was_reached(train_anew, whole, monkeypatch, capsys):
    after_step(monkeypatch, 5, lambda _: signal.raise_signal(signal.SIGINT))
    code, out = train_anew()
    assert code == 130
    assert "the same command goes on after state-00000005" in capsys.readouterr().out
    monkeypatch.undo()
    assert train_anew()[0] == 0
    assert starts(out) == [0, 5]
    assert equal(weights(out), weights(whole))


def test_a_training_goes_on_compiled_or_not(train_anew, whole, monkeypatch):
    after_step(monkeypatch, 5, lambda _: signal.raise_signal(signal.SIGINT))
    assert train_anew()[0] == 130
    monkeypatch.undo()
    monkeypatch.setenv("CXX", "no-such-compiler")  # the layers stay as they are
    code, out = train_anew("--compile", "true")
    assert (code, starts(out)) == (0, [0, 5])
    assert equal(weights(out), weights(whole))


def test_a_complete_training_is_not_begun_again(train_anew, whole, out, capsys):
    shutil.copytree(whole, out)
    before = (out / LOG_NAME).read_bytes()
    assert train_anew()[0] == 0
    assert "is complete" in capsys.readouterr().out
    assert (out / LOG_NAME).read_bytes() == before


@pytest.mark.parametrize(("batching", "code"), [("length_grouped", 0), ("packed", 2)])
def test_a_training_of_the_time_of_packed_batches_goes_on_if_it_did_not_pack(
    train_anew, whole, out, batching, code
):
    shutil.copytree(whole, out)
    with rewritten(out / CHECKPOINT / FACTS_FILE) as facts:
        facts["configuration"]["--batching"] = batching
    assert train_anew()[0] == code


@pytest.mark.parametrize(
    ("folder", "flags", "reason"),
    [
        ("killed", ["--weight_decay", "0.3"], "--weight_decay is 0.1, not 0.3"),
        ("killed", ["--num_samples", "20"], "data is"),
        ("whole", ["--seed", "1"], "--seed is 42, not 1"),
    ],
)
def test_a_folder_of_another_configuration_is_refused(
    train_anew, out, request, folder, flags, reason, capsys
):
    shutil.copytree(request.getfixturevalue(folder), out)
    assert train_anew(*flags)[0] == 2
    assert f"holds a training whose {reason}" in capsys.readouterr().err


def test_a_damaged_state_is_refused(train_anew, killed, out, capsys):
    shutil.copytree(killed, out)
    (out / "state-00000003" / "weights.safetensors").write_bytes(b"no tensors")
    assert train_anew()[0] == 2
    assert "its state-00000003 cannot be read" in capsys.readouterr().err
    assert (out / "state-00000003").is_dir()


def ruin_weights_after(monkeypatch, number):
    def ruin(training):
        for item in training.learner.model.parameters():
            item.data.mul_(math.inf)

    after_step(monkeypatch, number, ruin)


@pytest.mark.parametrize("number", [5, 6])
def test_a_loss_that_is_no_number_stops_training(train_anew, monkeypatch, capsys, number):
    """A state that was saved with ruined weights, such as that of step 6, does not stay."""
    ruin_weights_after(monkeypatch, number)
    code, out = train_anew()
    assert code == 1
    error = capsys.readouterr().err
    assert f"loss or gradient of step {number + 1} is not finite; training stops, state" in error
    assert [path.name for path in out.glob("state-*")] == ["state-00000003"]
    monkeypatch.undo()
    assert train_anew()[0] == 0
    assert starts(out) == [0, 3]


def test_a_training_goes_on_from_a_state_that_was_not_proven(train_anew, monkeypatch):
    """If the state's weights are ruined, the state before it is still there."""
    ruin_weights_after(monkeypatch, 6)
    monkeypatch.setattr(state.TrainingState, "disprove", lambda self: None)
    _, out = train_anew()
    assert len(list(out.glob("state-*"))) == 2
    monkeypatch.undo()
    assert train_anew()[0] == 1
    assert [path.name for path in out.glob("state-*")] == ["state-00000003"]
    assert train_anew()[0] == 0
    assert starts(out) == [0, 3]


def test_a_held_out_loss_that_is_no_number_stops_training(train_anew, monkeypatch, capsys):
    ruin_weights_after(monkeypatch, 8)
    code, out = train_anew("--optimizer", "muon")
    assert code == 1
    error = capsys.readouterr().err
    assert "--learning_rate 0.01, --muon_learning_rate 0.02: loss on held-out rows after" in error
    assert "after step 8 is not finite; training stops, state-00000006 is kept" in error
    assert not (out / "checkpoint").exists()


def test_foreign_files_are_left_alone(train_anew, out, training_rows, capsys):
    (out / "checkpoint").mkdir(parents=True)
    assert train_anew()[0] == 2
    assert "its checkpoint is no training's" in capsys.readouterr().err
    rows = training_rows.read_bytes()
    (out / LOG_NAME).write_bytes(rows)
    assert train_anew("--data_path", str(out / LOG_NAME))[0] == 2
    assert "holds a training.jsonl that is no training's log" in capsys.readouterr().err
    assert (out / LOG_NAME).read_bytes() == rows


def test_a_full_disk_at_a_state_keeps_the_one_before(train_anew, monkeypatch, out, capsys):
    ordinary, written = state.save_file, []

    def full(tensors, path):
        written.append(path)
        if len(written) > 2:  # weights and one optimizer's state
            raise OSError(28, "No space left on device")
        ordinary(tensors, path)

    monkeypatch.setattr(state, "save_file", full)
    kill(train_anew, 7)
    said = "".join(capsys.readouterr())
    assert "the state of step 6 is not saved ([Errno 28] No space left on device)" in said
    assert "state-00000003 stays" in said
    monkeypatch.undo()
    assert train_anew()[0] == 0
    assert starts(out) == [0, 3]


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
    assert starts(out) == [0, 8]


def test_a_folder_that_another_training_holds_is_left_alone(train_anew, out, capsys):
    out.mkdir()
    with FileLock(out / ".training.lock"):
        assert train_anew()[0] == 75
    assert "another process is at a training in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--tokenizer", "nowhere"], "--tokenizer nowhere: the hub cannot be reached"),
        (["--config", "~nobody-of-that-name/x"], "is no configuration"),
        (["--max_length", "65"], "--max_length 65: exceeds the model's 64 positions"),
        (["--max_length", "64", "--batch_tokens", "63"], "must not exceed --batch_tokens"),
        (["--tokenizer_pattern", "("], "--tokenizer_pattern (: is no regular expression"),
        (["--distill", "true"], "needs a --teacher"),
        (["--weight_decay", "-1"], "--weight_decay -1.0: must be at least 0"),
        (["--seed", str(2**70)], "--seed 1180591620717411303424: must be 0 to"),
        (["--teacher", ""], "--teacher '': must not be empty"),
        (["--dataset", "top_v2", "--prompt_field", "q"], "--prompt_field q: only with"),
        (["--dataset", "text"], "--dataset text: has no answers to learn; texts need no --dataset"),
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


def test_a_vocabulary_that_does_not_fit_is_refused(train_anew, checkpoint, tmp_path, capsys):
    trainings.write_config(tmp_path, vocab_size=200)
    assert train_anew("--tokenizer", str(checkpoint))[0] == 2
    assert "has 257 tokens, the configuration's vocab_size 200" in capsys.readouterr().err
    assert train_anew()[0] == 2
    assert "its vocab_size 200 must exceed 256" in capsys.readouterr().err


def test_choices_are_those_of_the_table():
    assert tuple(optimizers.OPTIMIZERS) == arguments.OPTIMIZERS
