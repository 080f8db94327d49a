"""Models whose weights accelerate keeps on the host or on disk between passes."""

import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from self_speculation.model_protocol import Llama, decoder_of

_SHARD = "2GB"  # Weights of one file are in the host's memory together.


def input_device(model: Llama) -> torch.device:
    """Return the device of token ids: the one that computes embeddings, wherever they lie."""
    embeddings: Any = model.get_input_embeddings()
    if embeddings.weight.is_meta:
        return torch.device(embeddings._hf_hook.execution_device)
    return embeddings.weight.device


def layer_places(model: Llama, kept_layers: Iterable[int]) -> dict[str, int]:
    """Return how many layers lie on each device, on the host (cpu) and on disk.

    `kept_layers`: the layers' indices in the model as it was loaded.
    """
    layers = zip(kept_layers, decoder_of(model).layers, strict=True)
    return dict(Counter(_place(model, f"model.layers.{index}", layer) for index, layer in layers))


def forget_offloaded(layers: Iterable[nn.Module]) -> None:
    """Free the host memory that accelerate holds for removed layers.

    It would keep their weights as long as those of any other layer.
    """
    for module in (module for layer in layers for module in layer.modules()):
        kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        if kept is None:
            continue
        loader, gone = kept.dataset, set(kept)
        for key in gone:
            loader.state_dict.pop(key, None)
            loader.index.pop(key, None)
        loader.all_keys = [key for key in loader.all_keys if key not in gone]


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write the model as transformers does, with the weights that lie on the host or on disk.

    Files of a model with such weights are small, because each is read into memory whole.
    """
    small: dict[str, Any] = {"max_shard_size": _SHARD} if hasattr(model, "hf_device_map") else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
        model.save_pretrained(folder, **small)


def _place(model: Llama, name: str, layer: nn.Module) -> str:
    """Return the device map's entry of the layer, or of a module that contains it."""
    spread = getattr(model, "hf_device_map", None)
    if spread is None:
        return str(next(layer.parameters()).device)
    while name not in spread:
        name = name.rpartition(".")[0]
    place = spread[name]
    return f"cuda:{place}" if isinstance(place, int) else str(place)
