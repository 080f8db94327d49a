"""What tests of train.py share: short trainings, and what they left."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import train
from command_line.script import run_script
from tests.ranked import Torchrun
from training import loop
from training.log import LOG_NAME

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
ROWS = [{"prompt": f"count {n}", "response": f"{n} {n + 1} {n + 2}"} for n in range(60)]


def write_rows(place, rows=ROWS):
    """Write the rows that trainings in this folder learn from."""
    path = place / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_config(place, **changes):
    """Write the configuration of trainings from scratch in this folder."""
    path = place / "config.json"
    path.write_text(json.dumps(CONFIG | changes))
    return path


def _short(place, folder):
    data = ["--dataset", "custom_jsonl", "--data_path", str(place / "rows.jsonl")]
    size = ["--max_length", "32", "--batch_tokens", "128", "--eval_samples", "10"]
    steps = ["--max_steps", "8", "--warmup_steps", "2", "--mixed_precision", "no"]
    often = ["--log_steps", "1", "--eval_steps", "4", "--state_steps", "3"]
    return [*data, *size, *steps, *often, "--output_dir", str(place / folder)]


def _words_anew(place, *flags, folder):
    model = ["--config", str(place / "config.json"), "--tokenizer", "bpe"]
    recipe = ["--template", r"{message}:\n", "--learning_rate", "0.01"]
    dropout = ["--max_layer_dropout", "0.5"]
    return [*model, *recipe, *dropout, *_short(place, folder), *flags]


def train_anew(place, *flags, folder="out"):
    """Run train.py from scratch; return the exit code and the folder."""
    return _run(_words_anew(place, *flags, folder=folder)), place / folder


def train_further(place, model, *flags, folder="out"):
    """Run train.py on a model; return the exit code and the folder."""
    return _run(["--model", str(model), *_short(place, folder), *flags]), place / folder


def _run(words):
    """Run train.py with empty plots, which would take most of the time of a short training."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.log.save_figure", lambda _, path: path.with_suffix(".png").touch())
        return run_script(train.main, words)


def train_in_processes(count, place, *flags, folder="out"):
    """Run train.py from scratch under torchrun; return the folder."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a fork would inherit it
    started = Torchrun(place, count, train.main, _words_anew(place, *flags, folder=folder))
    code, _, errors = started.wait(120)
    assert code == 0, errors
    return place / folder


def after_step(monkeypatch, number, act):
    """Make trainings call `act(training)` after their step of this number."""
    ordinary = loop.Training._step

    def step(self, sequences):
        update = ordinary(self, sequences)
        if self.progress.step == number:
            act(self)
        return update

    monkeypatch.setattr(loop.Training, "_step", step)


def kill(train, number, *flags, **where):
    """Start a training that an error ends after a step."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        after_step(patch, number, lambda _: 1 / 0)
        train(*flags, **where)


def lines(folder, kind):
    found = map(json.loads, (folder / LOG_NAME).read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def starts(folder):
    """Return the steps from which a training went on."""
    return [line["step"] for line in lines(folder, "start")]


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


def assert_alike(one, other):
    """Compare losses at every step, and the first gradient, whose scale optimizers would hide."""
    firsts = [lines(folder, "step")[0]["gradient_norm"] for folder in (one, other)]
    assert firsts[0] == pytest.approx(firsts[1], rel=1e-4)
    for line, alike in zip(lines(one, "step"), lines(other, "step"), strict=True):
        assert line["loss"] == pytest.approx(alike["loss"], abs=1e-3)
