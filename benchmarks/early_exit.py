"""Self-speculation by early exit in this project and its peers, on one model and one data set.

    python benchmarks/early_exit.py --model layerskip-topv2-5m --dataset top_v2

Each side decodes as many tokens as plain decoding does up to its end, so that whole calls are
compared, the prompt's pass included. Sides take turns, prompt by prompt.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # started as a file, whose folder Python puts first
    sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy
import torch

from analysis.intervals import ratio_interval
from arguments.model import ModelArguments
from arguments.prompts import DataArguments, with_stored_template
from benchmarks.conditions import conditions, head, write_results
from benchmarks.measuring import SEED, in_turn, timed
from benchmarks.peer_engines import GENERATE, OURS, Decoded, Engine, Setting, Side, build
from command_line.errors import reject
from command_line.flags import check_least, flag, parse
from command_line.messages import warn
from command_line.script import run_script
from data import get_data
from models.checkpoint import find_checkpoint
from models.loading import read_model
from models.runtime import start
from runs.prompt_encoding import encode
from self_speculation.generator_base import GenerationConfig
from self_speculation.text_generator import WARM_UP_STEPS, TextGenerator

SYSTEMS = (OURS, "transformers", "economize")


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
    setting = Setting.endless(model, checkpoint.tokenizer, capacity, prompts)
    engines = prepare(sides_of(flags), setting)
    samples = measure(engines, prompts, steps, runtime.device)
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


def prepare(sides: list[Side], setting: Setting) -> dict[Side, Engine]:
    """Return the engines that decode the first prompt; warn of the peers that cannot.

    Raise the error of an engine of this project.
    """
    engines = {}
    for side in sides:
        try:
            engine = build(side, setting)
            engine.decode(setting.prompts[0], WARM_UP_STEPS)
        except Exception as error:  # a peer may raise anything; the other peers go on
            _leave_out(side, error)
            continue
        engines[side] = engine
    return engines


def _leave_out(side: Side, error: Exception) -> None:
    """Warn of a peer that failed; raise the error of this project."""
    if side.system == OURS:
        raise error
    warn(f"{side.name} is left out: {type(error).__name__}: {str(error)[:200]}")


@dataclass
class Timed:
    """The outputs and seconds of one side, prompt by prompt."""

    seconds: list[float]
    made: list[Decoded]


def measure(
    engines: dict[Side, Engine], prompts: list[list[int]], steps: list[int], device: torch.device
) -> dict[Side, Timed]:
    """Decode each prompt with each side, in another order for each prompt.

    Warn of a peer that fails and leave it out; raise the error of this project.
    """
    samples: dict[Side, Timed] = defaultdict(lambda: Timed([], []))
    engines, sides = dict(engines), list(engines)
    for number, (ids, count) in enumerate(zip(prompts, steps, strict=True)):
        for side in in_turn(sides, number, len(prompts)):
            if side not in engines:
                continue
            try:
                seconds, made = timed(device, partial(engines[side].decode, ids, count))
                made.check_count(count)
            except Exception as error:  # as above
                _leave_out(side, error)
                del engines[side]
                continue
            samples[side].seconds.append(seconds)
            samples[side].made.append(made)
    return {side: samples[side] for side in engines}


def summarize(samples: dict[Side, Timed], steps: list[int]) -> list[dict[str, Any]]:
    """Return tokens per second of whole calls, speed-ups with intervals, and equal outputs."""
    plain = samples[Side(OURS)]
    rows = []
    for side, found in samples.items():
        drafted = sum(made.drafted or 0 for made in found.made)
        accepted = sum(made.accepted or 0 for made in found.made)
        pairs = zip(found.made, plain.made, strict=True)
        rows.append(
            {
                "side": side.name,
                "tokens_per_second": sum(steps) / sum(found.seconds),
                "over_own_autoregressive": _speedup(samples.get(side.plain()), found, steps),
                "over_transformers": _speedup(samples.get(GENERATE), found, steps),
                "acceptance": accepted / drafted if drafted else None,
                "equal_outputs": sum(one.output_ids == other.output_ids for one, other in pairs),
            }
        )
    return rows


def _speedup(baseline: Timed | None, found: Timed, steps: list[int]) -> list[float | None] | None:
    """Return the speed-up over the baseline and its 95 % interval over prompts.

    None without a baseline, or where no time passed.
    """
    if baseline is None:
        return None
    columns = steps, found.seconds, steps, baseline.seconds
    speedup = ratio_interval(numpy.array(columns, dtype=float).T)
    return [speedup.value, speedup.low, speedup.high] if speedup else None


def _shown(speedup: list[float | None] | None) -> str:
    if speedup is None:
        return "-"
    value, low, high = speedup
    return f"{value:.2f}" if low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def table(results: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    lines = [
        "# Early exit beside other decoders",
        "",
        "| decoder | tokens/s, whole calls | / own autoregressive | / transformers `generate` | "
        "accepted | equal outputs |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["sides"]:
        accepted = "-" if row["acceptance"] is None else f"{row['acceptance']:.3f}"
        lines.append(
            f"| {row['side']} | {row['tokens_per_second']:.0f} | "
            f"{_shown(row['over_own_autoregressive'])} | {_shown(row['over_transformers'])} | "
            f"{accepted} | {row['equal_outputs']} |"
        )
    measured = f"{results['data']}, greedy"
    lines += ["", conditions(results, results["runtime"], measured)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_script(main))
