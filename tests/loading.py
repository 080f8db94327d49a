"""Change checkpoints and load them."""

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
    """Return the line that rejects a model, without its name."""
    with pytest.raises(UsageError) as caught:
        loaded(name, **flags)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"--model {name}: ")


def reweighed(folder, change):
    """Let a function change the weights of a checkpoint."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def reconfigured(folder, name="config.json", **values):
    """Set values in a JSON file of a checkpoint."""
    settings = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(settings | values))
