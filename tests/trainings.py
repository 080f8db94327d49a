"""What tests of train.py share: short trainings, and what they left."""

import json

import pytest
import torch
from safetensors.torch import load_file

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
SHORT = ["--max_steps", "8", "--batch_tokens", "128", "--warmup_steps", "2"]
OFTEN = ["--log_steps", "1", "--eval_steps", "4", "--state_steps", "3"]


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


def stop_at_step(monkeypatch, number, error=ZeroDivisionError):
    ordinary = loop.Training._step

    def step(self, sequences, window):
        if self.progress.step == number:
            raise error
        ordinary(self, sequences, window)

    monkeypatch.setattr(loop.Training, "_step", step)


def assert_alike(one, other):
    """Losses at every step; and the gradient of the first, whose scale optimizers would hide."""
    firsts = [lines(folder, "step")[0]["gradient_norm"] for folder in (one, other)]
    assert firsts[0] == pytest.approx(firsts[1], rel=1e-4)
    for line, alike in zip(lines(one, "step"), lines(other, "step"), strict=True):
        assert line["loss"] == pytest.approx(alike["loss"], abs=1e-3)
