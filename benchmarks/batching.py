"""Throughput of batches beside single prompts, of one model in one process.

    python -m benchmarks.batching --model layerskip-topv2-5m --dataset top_v2 --data_path FILE

Sides take turns on the same prompts: single prompts and every batch size, eager and compiled. A
ratio pairs two sides of one turn. Prefills count; loading, compiling and warming up do not.
"""

import dataclasses
import operator
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from arguments.drafting import EARLY_EXIT
from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.prompts import DataArguments
from arguments.pruning import PruneArguments
from benchmarks.order import in_turn
from benchmarks.results import Columns, bounded, conditions, head, table_lines, write_results
from command_line.flags import check_least, flag, parse
from command_line.script import run_script

DEFAULTS = {"num_samples": 40, "max_steps": 64, "sample": False}
COLUMNS: Columns = {
    "prompts at a time": lambda row: row["batch_size"],
    "steps": lambda row: "compiled" if row["compiled"] else "eager",
    "tokens/s together": lambda row: f"{row['tokens_per_second']:.0f}",
    "/ single, same steps": lambda row: bounded(row["over_same"]),
    "/ single, compiled": lambda row: bounded(row["over_compiled"]),
    "outputs equal to single, same steps": lambda row: f"{row['equal']}/{row['prompts']}",
}

Outputs = list[list[int]]


class Side(NamedTuple):
    """How the prompts are decoded."""

    batch_size: int
    compiled: bool


class Sample(NamedTuple):
    """The outputs and seconds of a side in one turn."""

    turn: int
    side: Side
    seconds: float
    outputs: Outputs

    @property
    def rate(self) -> float:
        return sum(map(len, self.outputs)) / self.seconds


@dataclass
class BatchingArguments:
    """The batch sizes that are compared with single prompts."""

    batch_sizes: list[int] = flag([2, 4, 8, 16], "prompts at a time")
    repeats: int = flag(4, "turns of each side")
    output: str = flag("results/batching", "path of the .json and .md without suffix")

    def check(self) -> None:
        check_least(self, batch_sizes=2, repeats=1)


def main(argv: list[str] | None = None) -> int:
    groups = ModelArguments, DataArguments, GenerationArguments, BatchingArguments
    model, data, generation, batching = parse(argv, __doc__, *groups, defaults=DEFAULTS)
    sizes = [1, *dict.fromkeys(batching.batch_sizes)]
    sides = [Side(size, compiled) for compiled in (False, True) for size in sizes]

    from self_speculation.timing import now

    runtime, decoders = prepare(model, data, generation, sides)
    samples = []
    for turn in range(batching.repeats):
        for side in in_turn(sides, turn, batching.repeats):
            started = now(runtime.device)
            outputs = decoders[side]()
            seconds = now(runtime.device) - started
            samples.append(Sample(turn, side, seconds, outputs))
            print(f"turn {turn + 1}: {side}, {seconds:.1f} s", file=sys.stderr, flush=True)
    facts = f"{data.dataset}, {len(outputs)} prompts, up to {generation.max_steps} tokens"
    results = head("python -m benchmarks.batching", argv, model.model) | {
        "runtime": runtime.facts(),
        "measured": facts,
        "turns": [one.side._asdict() | {"turn": one.turn, "s": one.seconds} for one in samples],
        "summary": summarize(samples),
    }
    write_results(Path(batching.output), results, table(results))
    print(table(results))
    return 0


def prepare(
    model: ModelArguments, data: DataArguments, flags: GenerationArguments, sides: list[Side]
) -> tuple[Any, dict[Side, Callable[[], Outputs]]]:
    """Return the runtime, and a warm decoder of all prompts for each side."""
    from data import get_data
    from runs.preparation import load_pruned, make_batched_generator, make_generator
    from runs.prompt_encoding import encode_all

    prepared = load_pruned(model, PruneArguments(), data, flags)
    loaded, plan, words = prepared.loaded, prepared.plan, flags.chosen_stop_words() or ()
    prompts = encode_all(data, loaded, get_data(data, flags.seed))
    prompts.sort(key=len)
    longest, names = len(prompts[-1]), list(map(str, range(len(prompts))))

    def decoder(side: Side) -> Callable[[], Outputs]:
        chosen = dataclasses.replace(loaded, compiled=side.compiled)
        if side.batch_size == 1:
            single = make_generator(flags, EARLY_EXIT, chosen, prepared.pruned, words, longest)
            single.warm_up(prompts[0])
            return lambda: [
                single.generate(ids, flags.seed, name).output_ids
                for ids, name in zip(prompts, names, strict=True)
            ]
        many = make_batched_generator(flags, chosen, plan, words, longest, side.batch_size)
        many.warm_up(prompts[: side.batch_size])
        decode = partial(many.generate, prompts, flags.seed, names)
        return lambda: [made.output_ids for made in decode()]

    return prepared.runtime, {side: decoder(side) for side in sides}


def summarize(samples: list[Sample]) -> list[dict[str, Any]]:
    """Return the throughput of each side, and ratios [median, lowest, highest] within turns."""
    rates = {(one.side, one.turn): one.rate for one in samples}
    outputs = {one.side: one.outputs for one in samples}
    turns = sorted({one.turn for one in samples})

    def over(side: Side, base: Side) -> list[float]:
        ratios = [rates[side, turn] / rates[base, turn] for turn in turns]
        return [statistics.median(ratios), min(ratios), max(ratios)]

    return [
        {
            **side._asdict(),
            "tokens_per_second": statistics.median(rates[side, turn] for turn in turns),
            "over_same": over(side, Side(1, side.compiled)),
            "over_compiled": over(side, Side(1, True)),
            "equal": sum(map(operator.eq, found, outputs[Side(1, side.compiled)])),
            "prompts": len(found),
        }
        for side, found in outputs.items()
    ]


def table(results: dict[str, Any]) -> str:
    """Return the summary in Markdown."""
    line = conditions(results, results["runtime"], results["measured"])
    return "\n".join(["# Batches", "", *table_lines(COLUMNS, results["summary"]), "", line, ""])


if __name__ == "__main__":
    sys.exit(run_script(main))
