"""Weights that accelerate keeps on the host or on disk, and brings to a device for each pass."""

import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

_SHARD = "2GB"  # of a file that is put together in a host's memory


def input_device(model: nn.Module) -> torch.device:
    """Where token ids are wanted: where embeddings are computed, wherever they are kept."""
    embeddings = model.get_input_embeddings()
    if embeddings.weight.is_meta:
        return torch.device(embeddings._hf_hook.execution_device)
    return embeddings.weight.device


def layer_places(model: nn.Module, kept_layers: Iterable[int]) -> dict[str, int]:
    """How many of the model's layers lie on each device, on the host (cpu) and on disk.

    `kept_layers`: their indices in the model as it was loaded.
    """
    layers = zip(kept_layers, model.model.layers, strict=True)
    return dict(Counter(_place(model, f"model.layers.{index}", layer) for index, layer in layers))


def forget_offloaded(layers: Iterable[nn.Module]) -> None:
    """Lets go of what accelerate keeps of layers that will not run any more.

    Their weights would stay on the host for as long as any other layer's do.
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


def save_weights(model: nn.Module, folder: Path) -> None:
    """Writes the model as transformers does, those weights included that lie on no device.

    These are brought into memory a file at a time, so files are small where there are any.
    """
    small = {"max_shard_size": _SHARD} if hasattr(model, "hf_device_map") else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
        model.save_pretrained(folder, **small)


def _place(model: nn.Module, name: str, layer: nn.Module) -> str:
    """What the device map says of the layer, by its own name or that of a module around it."""
    spread = getattr(model, "hf_device_map", None)
    if spread is None:
        return str(next(layer.parameters()).device)
    while name not in spread:
        name = name.rpartition(".")[0]
    place = spread[name]
    return f"cuda:{place}" if isinstance(place, int) else str(place)
