"""The importance of layers by their weights: magnitudes, and gradients of the loss.

Both follow Kim et al. 2024 (Shortened LLaMA, arXiv 2402.02834), with the weight matrices of
attention and MLP; vectors, such as the scales of norms, do not count.

Shapes: T tokens, D hidden.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from command_line.errors import UsageError
from pruning.states import States, averaged, read_text
from self_speculation.model_protocol import Llama, decoder_of
from self_speculation.uncached_llama import UncachedLlama


def magnitudes(model: Llama) -> list[float]:
    """Return the sum of |W| over the weights of each layer."""
    return [
        sum(float(weight.detach().abs().sum(dtype=_PRECISE)) for weight in weights)
        for weights in _weights_of_layers(model, "magnitude")
    ]


def taylor(model: Llama, texts: list[Tensor]) -> tuple[list[float], States]:
    """Return the sum of |dL/dW * W| over the weights of each layer, and the texts' states.

    L is the mean loss of all next tokens of all texts, each (1, T). Gradients of all texts are
    added up, in float32 or better, before the absolute values are taken. They take as much memory
    as the layers' weights; the model's own gradients and flags stay as they are.
    """
    layers = _weights_of_layers(model, "taylor")
    llama, modules = UncachedLlama(model), decoder_of(model).layers
    predicted, measured = sum(text.shape[1] - 1 for text in texts), []
    # Callers may be under inference mode, whose tensors have no gradients.
    with torch.inference_mode(False), torch.enable_grad(), _summed_gradients(model, layers) as sums:
        for text in texts:
            states_1TD, states = read_text(llama, modules, text)
            measured.append(states)
            targets_T = text[0, 1:].to(llama.device).clone()  # outside of inference mode
            _backward(llama, states_1TD[0, :-1], targets_T, predicted)
    scores = [
        sum(float((sums[weight] * weight.detach()).abs().sum(dtype=_PRECISE)) for weight in weights)
        for weights in layers
    ]
    return scores, averaged(measured, texts)


_PRECISE = torch.float64


def _weights_of_layers(model: Llama, method: str) -> list[list[nn.Parameter]]:
    """Return the weight matrices of each layer, which must be in memory."""
    layers = [
        [weight for weight in layer.parameters() if weight.dim() > 1]
        for layer in decoder_of(model).layers
    ]
    if any(weight.is_meta for weights in layers for weight in weights):
        raise UsageError(
            f"--prune_method {method}: needs all weights on devices; --model_args device_map or "
            "max_memory leaves some on the host or on disk"
        )
    if not all(weights and all(map(torch.is_floating_point, weights)) for weights in layers):
        raise UsageError(
            f"--prune_method {method}: weights that stay quantised in memory have no magnitudes; "
            "other criteria work"
        )
    return layers


@contextmanager
def _summed_gradients(
    model: Llama, layers: list[list[nn.Parameter]]
) -> Iterator[dict[nn.Parameter, Tensor]]:
    """Yield the sums of the gradients that are computed inside the block, by weight.

    A gradient is freed as soon as it is added.
    """
    sums: dict[nn.Parameter, Tensor] = {}

    def add(weight: Tensor) -> None:
        assert isinstance(weight, nn.Parameter)
        assert weight.grad is not None
        gradient = weight.grad.to(torch.promote_types(weight.dtype, torch.float32))
        sums[weight] = sums[weight].add_(gradient) if weight in sums else gradient
        weight.grad = None

    weights = {weight for of_layer in layers for weight in of_layer}
    before = [(one, one.requires_grad, one.grad) for one in model.parameters()]
    hooks = []
    try:
        for parameter, _, _ in before:
            parameter.grad = None
            parameter.requires_grad_(parameter in weights)
        hooks = [weight.register_post_accumulate_grad_hook(add) for weight in weights]
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient


def _backward(llama: UncachedLlama, states_TD: Tensor, targets_T: Tensor, predicted: int) -> None:
    """Compute the gradients of the summed loss of a text, divided by `predicted`."""
    read_TD = states_TD.to(llama.device).detach().requires_grad_()
    for part in llama.parts(len(targets_T)):
        said_TV = llama.log_probabilities(read_TD[part])
        nats = nn.functional.nll_loss(said_TV, targets_T[part], reduction="sum")
        (nats / predicted).backward()
    if read_TD.grad is not None:  # a text of one token predicts nothing
        states_TD.backward(read_TD.grad.to(states_TD.device))
