"""A model's layers and head as functions of static shapes, made of compiled programs.

Shapes: B sequences, T new tokens of each, S a bucket of cached positions, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from self_speculation.model_protocol import Decoder, ModelConfig
from self_speculation.programs import program_of, programs_known, tensors_of
from self_speculation.row_kernels import HeadBlock, LayerBlock, PromptBlock

TensorFunction = Callable[[list[Tensor]], Tensor]


class CompiledBlocks:
    """Makes functions of a model's layers and of its norm and head. Raises `CompileError`.

    Spans count the model's layers, then those of a drafter's own.
    """

    def __init__(
        self,
        decoder: Decoder,
        head: nn.Module,
        config: ModelConfig,
        own_layers: Iterable[nn.Module] = (),
    ) -> None:
        self._config = config
        layers = [*decoder.layers, *own_layers]
        self._layers = [LayerBlock(layer) for layer in layers]
        self._prompt_layers = [PromptBlock(layer) for layer in layers]
        self._layer_tensors = [tensors_of(layer) for layer in self._layers]
        self._norm, self._head = decoder.norm, head
        self._functions = 0

    @property
    def compilations(self) -> int:
        """Number of programs of this process and of functions that were made of them."""
        return programs_known() + self._functions

    def span(
        self, layers: tuple[int, int], caches: list[list[Tensor]], inputs: list[Tensor]
    ) -> TensorFunction:
        """Return a half-open span of layers as a function of inputs of these shapes.

        The inputs are those of `LayerBlock`, without the keys and values, which `caches` holds for
        each layer of the span. The function returns states, (B, T, D).
        """
        return self._made(self._through(self._layers, layers, caches, inputs), inputs)

    def prompt(
        self, layers: tuple[int, int], caches: list[list[Tensor]], inputs: list[Tensor]
    ) -> TensorFunction:
        """Return a span of layers as a function of any number of a sequence's first tokens.

        The inputs are those of `PromptBlock`, without the keys and values.
        """
        return self._through(self._prompt_layers, layers, caches, inputs)

    def _through(
        self,
        blocks: Sequence[nn.Module],
        layers: tuple[int, int],
        caches: list[list[Tensor]],
        inputs: list[Tensor],
    ) -> TensorFunction:
        """Return a function that runs the programs of a span's blocks, one after the other."""
        steps = []
        for index, views in zip(range(*layers), caches, strict=True):
            cache = [view.transpose(1, 2) for view in views]
            program = program_of(blocks[index], [*inputs, *cache], self._config)
            steps.append((program, self._layer_tensors[index], cache))

        def run(inputs: list[Tensor]) -> Tensor:
            states_BTD, *others = inputs
            for program, tensors, cache in steps:
                states_BTD = program(tensors, [states_BTD, *others, *cache])
            return states_BTD

        return run

    def head(self, inputs: list[Tensor], other: nn.Module | None = None) -> TensorFunction:
        """Return norm and head as a function from states, (1, T, D), to logits, (T, V).

        `other` is a head that stands for the model's.
        """
        block = HeadBlock(self._norm, other or self._head)
        program, tensors = program_of(block, inputs, self._config), tensors_of(block)
        return self._made(lambda inputs: program(tensors, inputs), inputs)

    def _made(self, function: TensorFunction, inputs: list[Tensor]) -> TensorFunction:
        """Return the function on a CPU; on CUDA, a graph that replays all its launches at once."""
        self._functions += 1
        return _Replay(function, inputs) if inputs[0].device.type == "cuda" else function


class _Replay:
    """A CUDA graph of a function of inputs of these shapes."""

    def __init__(self, function: TensorFunction, inputs: list[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        # The first calls compile; their launches must not be part of the graph.
        stream = torch.cuda.Stream(inputs[0].device)
        stream.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                function(self._inputs)
        torch.cuda.current_stream(inputs[0].device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = function(self._inputs)

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        for static, tensor in zip(self._inputs, inputs, strict=True):
            static.copy_(tensor)
        self._graph.replay()
        # The next replay overwrites the output.
        return self._output.clone()
