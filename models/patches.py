"""Linear maps that stand for layers which were removed: parts of the layers beside the gap.

A layer with a `patch` maps the states that it gets; a layer with a `patch_after`, which only a
model's last layer has, maps the states that it returns. Both are ordinary linear layers, called by
hooks, so that transformers' own passes, the engine's and compiled passes contain them.

Shapes: D hidden, N and K rows and columns of a weight.
"""

import copy
import functools
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from command_line.errors import reject

BEFORE, AFTER = "patch", "patch_after"
PATCH_WEIGHTS = "patch_weights"  # key of the plan's file beside a checkpoint: names of its maps
_WEIGHT_NAME = re.compile(rf"model\.layers\.(\d+)\.({BEFORE}|{AFTER})\.weight")
_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
_PRE_HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


def with_map(layer: nn.Module, name: str, weight_DD: Tensor) -> nn.Module:
    """Return another layer that has a map as well; it shares all its parts with `layer`.

    The map becomes one with a map of this name that the layer has already.
    """
    other = _shallow_copy(layer)
    _attach(other, name, weight_DD)
    return other


def with_folded_map(layer: nn.Module, matrix_DD: Tensor) -> nn.Module:
    """Return another layer whose MLP's output is multiplied from the right by a matrix.

    It shares all other weights with `layer`. Its down_proj keeps its dtype and memory layout.
    """
    other, mlp = _shallow_copy(layer), _shallow_copy(layer.mlp)
    down = mlp.down_proj
    weight_NK = down._hf_hook.weights_map["weight"] if down.weight.is_meta else down.weight
    matrix_DD = matrix_DD.double().to(weight_NK.device)
    # (h W^T + b) T = h (T^T W)^T + b T.
    folded_NK = torch.empty_like(weight_NK).copy_(matrix_DD.T @ weight_NK.double())
    bias_N = None if down.bias is None else (down.bias.double() @ matrix_DD).to(down.bias.dtype)
    device = _execution_device(down, down.weight)
    mlp.down_proj = _linear(folded_NK.to(device), bias_N)
    other.mlp = mlp
    return other


def can_fold(layer: Any) -> bool:
    """Return whether the weights of the layer's down_proj are numbers that can be multiplied."""
    down = layer.mlp.down_proj
    return type(down) is nn.Linear and (down.bias is None or not down.bias.is_meta)


def patch_weights(model: Any) -> list[str]:
    """Return the names of all maps' weights in a model."""
    return [
        f"model.layers.{index}.{name}.weight"
        for index, layer in enumerate(model.model.layers)
        for name in (BEFORE, AFTER)
        if hasattr(layer, name)
    ]


def attach_saved(
    name: str, model: PreTrainedModel, folder: Path, plan: dict[str, Any] | None
) -> set[str]:
    """Attach the maps that a checkpoint's plan names, and return the names of their weights.

    transformers has no place for them. Raise `UsageError` for maps that are missing or do not fit.
    """
    names = _named_maps(name, model, plan or {})
    weights = _read(folder, names)
    missing = sorted(set(names) - set(weights))
    if missing:
        reject("model", name, f"the checkpoint lacks {len(missing)} weights, such as {missing[0]}")
    width = model.config.hidden_size
    for key, weight_DD in weights.items():
        if weight_DD.shape != (width, width):
            shapes = f"of shape {list(weight_DD.shape)}, where its config.json says"
            reject("model", name, f"its {key} is {shapes} {[width, width]}")
        _, _, index, part, _ = key.split(".")
        _attach(model.model.layers[int(index)], part, weight_DD)
    return set(names)


def _named_maps(name: str, model: PreTrainedModel, plan: dict[str, Any]) -> list[str]:
    names, layers = plan.get(PATCH_WEIGHTS, []), model.config.num_hidden_layers
    if not isinstance(names, list):
        reject("model", name, f"its plan says {PATCH_WEIGHTS} {names}, which is no list")
    for key in names:
        match = _WEIGHT_NAME.fullmatch(str(key))
        if not match or int(match[1]) >= layers:
            reject(
                "model", name, f"its plan names the map {key}, which its layers have no place for"
            )
    if plan.get("patch") == "linear" and not names:
        reject("model", name, f"its plan says patch linear, and lacks {PATCH_WEIGHTS}")
    return names


def _read(folder: Path, names: list[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")) if names else []:
        with safe_open(path, framework="pt") as file:
            stored = set(file.keys())
            found |= {key: file.get_tensor(key) for key in names if key in stored}
    return found


def _attach(layer: Any, name: str, weight_DD: Tensor) -> None:
    """Give a layer a map, in the layer's dtype and on its device."""
    like = layer.input_layernorm.weight
    if hasattr(layer, name):
        held_DD = getattr(layer, name).weight.double()
        new_DD = weight_DD.to(held_DD.device, torch.float64)
        weight_DD = held_DD @ new_DD if name == BEFORE else new_DD @ held_DD
    elif name == BEFORE:
        layer.register_forward_pre_hook(_map_input)
    else:
        layer.register_forward_hook(_map_output)
    device = _execution_device(layer.input_layernorm, like)
    weight_DD = weight_DD.to(device, like.dtype).contiguous()
    linear = _linear(weight_DD).requires_grad_(like.requires_grad)
    setattr(layer, name, linear)


def _map_input(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return _mapped(layer.patch, inputs[0]), *inputs[1:]


def _map_output(layer: Any, _: tuple[Any, ...], states_BTD: Tensor) -> Tensor:
    return _mapped(layer.patch_after, states_BTD)


def _mapped(linear: Any, states_BTD: Tensor) -> Tensor:
    """Return mapped states. accelerate moves states to a layer's device after this hook."""
    device = linear.weight.device
    return linear(states_BTD if states_BTD.device == device else states_BTD.to(device))


def _linear(weight_NK: Tensor, bias_N: Tensor | None = None) -> nn.Linear:
    """Return a linear layer of these weights, without drawing others first."""
    rows, columns = weight_NK.shape
    linear = nn.Linear(columns, rows, bias=bias_N is not None, device="meta")
    linear.weight = nn.Parameter(weight_NK, requires_grad=False)
    if bias_N is not None:
        linear.bias = nn.Parameter(bias_N, requires_grad=False)
    return linear.eval()


def _execution_device(module: Any, weight: Tensor) -> torch.device:
    return torch.device(module._hf_hook.execution_device) if weight.is_meta else weight.device


def _shallow_copy(module: Any) -> Any:
    """Return another module with the same parts, in which parts and hooks can be replaced."""
    other = copy.copy(module)
    other._modules = dict(module._modules)
    for name in (*_HOOKS, *_PRE_HOOKS):
        setattr(other, name, getattr(module, name).copy())
    if "_hf_hook" in vars(module):
        # accelerate's `forward` is a partial function, bound to the hooked module.
        other._old_forward = module._old_forward.__func__.__get__(other)
        other.forward = functools.partial(module.forward.func, other)
    return other
