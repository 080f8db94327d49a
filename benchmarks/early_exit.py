"""Self-speculation by early exit in this project and its peers, on one model and one data set.

    python benchmarks/early_exit.py --model layerskip-topv2-5m --dataset top_v2

Each side decodes as many tokens as plain decoding does up to its end, so that whole calls are
compared, the prompt's pass included. Sides take turns, prompt by prompt.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file, whose folder Python puts first
    sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy

from analysis.intervals import ratio_interval
from arguments.model import ModelArguments
from arguments.prompts import DataArguments, with_stored_template
from benchmarks.measuring import SEED
from benchmarks.order import in_turn
from benchmarks.peer_engines import GENERATE, OURS, Decoded, Setting, Side
from benchmarks.results import (
    Columns,
    bounded,
    conditions,
    head,
    number,
    table_lines,
    write_results,
)
from benchmarks.turns import Turns
from command_line.errors import reject
from command_line.flags import check_least, flag, parse
from command_line.script import run_script
from data import get_data
from models.checkpoint import find_checkpoint
from models.loading import read_model
from models.runtime import start
from runs.prompt_encoding import encode
from self_speculation.generator_base import GenerationConfig
from self_speculation.text_generator import WARM_UP_STEPS, TextGenerator

SYSTEMS = (OURS, "transformers", "economize")
COLUMNS: Columns = {
    "decoder": lambda row: row["side"],
    "tokens/s, whole calls": lambda row: f"{row['tokens_per_second']:.0f}",
    "/ own autoregressive": lambda row: bounded(row["over_own_autoregressive"]),
    "/ transformers `generate`": lambda row: bounded(row["over_transformers"]),
    "accepted": lambda row: number(row["acceptance"], ".3f"),
    "equal outputs": lambda row: row["equal_outputs"],
}
Samples = dict[Side, list[tuple[float, Decoded]]]  # seconds and output, prompt by prompt


@dataclass(frozen=True)
class EarlyExitArguments:
    """The sides that are compared."""

    exit_layers: list[int] = flag([2, 3], "exit layers, on each side")
    num_speculations: list[int] = flag([4, 8, 12], "tokens drafted per round, on each side")
    max_steps: int = flag(128, "most tokens per output")
    output: str = flag("results/early_exit", "path of the .json and .md without suffix")

    def check(self) -> None:
        check_least(self, exit_layers=1, num_speculations=1, max_steps=1)


def main(argv: list[str] | None = None) -> int:
    flags, data, model_flags = parse(
        argv, __doc__, EarlyExitArguments, DataArguments, ModelArguments
    )
    data = with_stored_template(data, model_flags.model, data.dataset)
    examples = get_data(data, SEED).examples
    runtime = start(model_flags)
    checkpoint = find_checkpoint(model_flags)
    layers = checkpoint.config.num_hidden_layers
    if max(flags.exit_layers) >= layers:
        reject("exit_layers", flags.exit_layers, f"must be below the model's {layers} layers")
    # Peers share the weights in transformers' layout; this project's engine lays out its own.
    model = read_model(checkpoint, runtime).eval().requires_grad_(False)
    prompts = [encode(data, checkpoint, example.prompt) for example in examples]
    steps = lengths(model, checkpoint.tokenizer, prompts, flags.max_steps)
    capacity = max(map(len, prompts)) + max(steps)
    turns = Turns(Setting.endless(model, checkpoint.tokenizer, capacity, prompts), needed=OURS)
    for side in sides_of(flags):
        turns.prepare(side, prompts[0], WARM_UP_STEPS)
    samples = measure(turns, steps)
    results = head("python benchmarks/early_exit.py", argv, model_flags.model) | {
        "data": f"{data.dataset}, {len(prompts)} prompts, {sum(steps)} tokens",
        "runtime": runtime.facts(),
        "sides": summarize(samples, steps),
    }
    write_results(Path(flags.output), results, table(results))
    print(table(results))
    return 0


def sides_of(flags: EarlyExitArguments) -> list[Side]:
    """Return plain decoding of each system, then each exit layer with each draft length."""
    drafting = [
        Side(system, "self-speculative", exit_layer=exit_layer, drafts=drafts)
        for exit_layer in dict.fromkeys(flags.exit_layers)
        for drafts in dict.fromkeys(flags.num_speculations)
        for system in SYSTEMS
    ]
    return [*map(Side, SYSTEMS), *drafting]


def lengths(model: Any, tokenizer: Any, prompts: list[list[int]], most: int) -> list[int]:
    """Return the tokens of each output of plain decoding, up to its end."""
    capacity = max(map(len, prompts)) + most
    generator = TextGenerator(model, tokenizer, "autoregressive", GenerationConfig(), capacity)
    return [len(generator.generate(ids, max_steps=most).output_ids) for ids in prompts]


def measure(turns: Turns, steps: list[int]) -> Samples:
    """Decode each prompt with each side, in another order for each prompt."""
    samples: Samples = defaultdict(list)
    prompts = turns.setting.prompts
    for turn, (ids, count) in enumerate(zip(prompts, steps, strict=True)):
        for side in in_turn(list(turns.engines), turn, len(prompts)):
            with turns.attempt(side):
                samples[side].append(turns.timed(side, ids, count))
    return {side: samples[side] for side in turns.engines}


def summarize(samples: Samples, steps: list[int]) -> list[dict[str, Any]]:
    """Return tokens per second of whole calls, speed-ups with intervals, and equal outputs."""
    rows = []
    for side, found in samples.items():
        drafted = sum(made.drafted or 0 for _, made in found)
        accepted = sum(made.accepted or 0 for _, made in found)
        pairs = zip(found, samples[Side(OURS)], strict=True)
        rows.append(
            {
                "side": side.name,
                "tokens_per_second": sum(steps) / sum(seconds for seconds, _ in found),
                "over_own_autoregressive": _speedup(samples, side.plain(), side, steps),
                "over_transformers": _speedup(samples, GENERATE, side, steps),
                "acceptance": accepted / drafted if drafted else None,
                "equal_outputs": sum(
                    one.output_ids == plain.output_ids for (_, one), (_, plain) in pairs
                ),
            }
        )
    return rows


def _speedup(
    samples: Samples, baseline: Side, side: Side, steps: list[int]
) -> list[float | None] | None:
    """Return the speed-up over the baseline and its 95 % interval over prompts.

    None without a baseline, or where no time passed.
    """
    if baseline not in samples:
        return None
    calls = zip(steps, samples[side], samples[baseline], strict=True)
    rows = [(tokens, own, tokens, other) for tokens, (own, _), (other, _) in calls]
    speedup = ratio_interval(numpy.array(rows, dtype=float)[:, None])  # of one pass
    return [speedup.value, speedup.low, speedup.high] if speedup else None


def table(results: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    line = conditions(results, results["runtime"], f"{results['data']}, greedy")
    title = "# Early exit beside other decoders"
    return "\n".join([title, "", *table_lines(COLUMNS, results["sides"]), "", line, ""])


if __name__ == "__main__":
    sys.exit(run_script(main))
