"""Checkpoints that are changed and loaded, as tests of loading need them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from arguments.model import ModelArguments
from command_line.errors import UsageError
from models.loading import LoadedModel, load_model
from models.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float64)


def loaded(name, **flags) -> LoadedModel:
    return load_model(ModelArguments(model=str(name), **flags), CPU)


def refusal(name, **flags):
    """The line that refuses a model, without its name."""
    with pytest.raises(UsageError) as caught:
        loaded(name, **flags)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"--model {name}: ")


def reweighed(folder, change):
    """Lets a function change the weights of a checkpoint."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def reconfigured(folder, **values):
    """Sets values of a checkpoint's config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
