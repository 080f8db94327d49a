"""Self-speculation by early exit, here and elsewhere: one model, one data set, the same tokens.

Every side makes as many tokens as plain decoding did up to its end, so that a whole call, the
prompt's pass included, is compared with a whole call. Sides take turns, prompt by prompt.
"""

import shlex
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy
import torch

from analysis.intervals import ratio_interval
from arguments.model import ModelArguments
from arguments.prompts import DataArguments, with_stored_template
from benchmarks.peer_engines import OURS, Decoded, Engine, Setting, Side, build
from benchmarks.peers import in_turn
from benchmarks.results_files import write_results
from command_line.errors import reject
from command_line.flags import flag, parse
from command_line.messages import warn
from command_line.script import run_script
from data import get_data
from files.commit import current_commit
from models.checkpoint import find_checkpoint
from models.loading import read_model
from models.runtime import start
from runs.prompt_encoding import encode
from self_speculation.generator_base import GenerationConfig
from self_speculation.text_generator import WARM_UP_STEPS, TextGenerator
from self_speculation.timing import now

SYSTEMS = (OURS, "transformers", "economize")
GENERATE = Side("transformers")
SEED = 42


@dataclass(frozen=True)
class EarlyExitArguments:
    """What is compared."""

    exit_layers: list[int] = flag([2, 3], "exit layers, on every side")
    num_speculations: list[int] = flag([4, 8, 12], "tokens drafted in a round, on every side")
    max_steps: int = flag(128, "most tokens of an output")
    output: str = flag("results/early_exit", "path of the .json and .md, without the suffix")

    def check(self) -> None:
        for name in ("exit_layers", "num_speculations", "max_steps"):
            value = getattr(self, name)
            if min(value if isinstance(value, list) else [value], default=0) < 1:
                reject(name, value, "must be at least 1")


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
    # Peers have the weights as transformers lays them; this project's engine lays its own.
    model = read_model(checkpoint, runtime).eval().requires_grad_(False)
    prompts = [encode(data, checkpoint, example.prompt) for example in examples]
    steps = lengths(model, checkpoint.tokenizer, prompts, flags.max_steps)
    capacity = max(map(len, prompts)) + max(steps)
    setting = Setting.endless(model, checkpoint.tokenizer, capacity, prompts)
    engines = prepare(sides_of(flags), setting)
    samples = measure(engines, prompts, steps, runtime.device)
    results = {
        "command": "python benchmarks/early_exit.py " + shlex.join(argv or sys.argv[1:]),
        "commit": current_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "model": model_flags.model,
        "data": f"{data.dataset}, {len(prompts)} prompts, {sum(steps)} tokens",
        "runtime": runtime.facts(),
        "sides": summarize(samples, steps),
    }
    write_results(Path(flags.output), results, table(results))
    print(table(results))
    return 0


def sides_of(flags: EarlyExitArguments) -> list[Side]:
    """Plain decoding of every system, then each exit layer with each draft length."""
    drafting = [
        Side(system, "self-speculative", exit_layer=exit_layer, drafts=drafts)
        for exit_layer in dict.fromkeys(flags.exit_layers)
        for drafts in dict.fromkeys(flags.num_speculations)
        for system in SYSTEMS
    ]
    return [*map(Side, SYSTEMS), *drafting]


def lengths(model: Any, tokenizer: Any, prompts: list[list[int]], most: int) -> list[int]:
    """Tokens of each output up to its end, of plain decoding."""
    capacity = max(map(len, prompts)) + most
    generator = TextGenerator(model, tokenizer, "autoregressive", GenerationConfig(), capacity)
    return [len(generator.generate(ids, max_steps=most).output_ids) for ids in prompts]


def prepare(sides: list[Side], setting: Setting) -> dict[Side, Engine]:
    """The engines that can be built and decode a first prompt; others are named and left out.

    This project's own may not fail.
    """
    engines = {}
    for side in sides:
        try:
            engine = build(side, setting)
            engine.decode(setting.prompts[0], WARM_UP_STEPS)
        except Exception as error:
            # Peers fail in their own ways, and what one of them cannot do the others still can.
            _leave_out(side, error)
            continue
        engines[side] = engine
    return engines


def _leave_out(side: Side, error: Exception) -> None:
    """Names a peer that failed; raises what this project's own failed with."""
    if side.system == OURS:
        raise error
    warn(f"{side.name} is left out: {type(error).__name__}: {str(error)[:200]}")


@dataclass
class Timed:
    """One side's outputs and seconds, prompt by prompt."""

    seconds: list[float]
    made: list[Decoded]


def measure(
    engines: dict[Side, Engine], prompts: list[list[int]], steps: list[int], device: torch.device
) -> dict[Side, Timed]:
    """Every side on every prompt, in an order that turns from prompt to prompt.

    A side that fails at one of them is named and left out; this project's own may not.
    """
    samples: dict[Side, Timed] = defaultdict(lambda: Timed([], []))
    engines, sides = dict(engines), list(engines)
    for number, (ids, count) in enumerate(zip(prompts, steps, strict=True)):
        for side in in_turn(sides, number, len(prompts)):
            if side not in engines:
                continue
            started = now(device)
            try:
                made = engines[side].decode(ids, count)
                seconds = now(device) - started
                made.check_count(count)
            except Exception as error:
                # As above.
                _leave_out(side, error)
                del engines[side]
                continue
            samples[side].seconds.append(seconds)
            samples[side].made.append(made)
    return {side: samples[side] for side in engines}


def summarize(samples: dict[Side, Timed], steps: list[int]) -> list[dict[str, Any]]:
    """Tokens per second of whole calls; speed-ups with their intervals; outputs that are equal."""
    plain = samples[Side(OURS)]
    rows = []
    for side, timed in samples.items():
        drafted = sum(made.drafted or 0 for made in timed.made)
        accepted = sum(made.accepted or 0 for made in timed.made)
        baseline = samples.get(side.plain())
        rows.append(
            {
                "side": side.name,
                "tokens_per_second": sum(steps) / sum(timed.seconds),
                "over_own_autoregressive": _speedup(baseline, timed, steps),
                "over_transformers": _speedup(samples.get(GENERATE), timed, steps),
                "acceptance": accepted / drafted if drafted else None,
                "equal_outputs": sum(
                    one.output_ids == other.output_ids
                    for one, other in zip(timed.made, plain.made, strict=True)
                ),
            }
        )
    return rows


def _speedup(baseline: Timed | None, timed: Timed, steps: list[int]) -> list[float | None] | None:
    """How many times as fast as the baseline, with the bounds of a 95 % interval over prompts.

    None without a baseline.
    """
    if baseline is None:
        return None
    columns = steps, timed.seconds, steps, baseline.seconds
    found = ratio_interval(numpy.array(columns, dtype=float).T)
    return [found.value, found.low, found.high]


def _shown(speedup: list[float | None] | None) -> str:
    if speedup is None:
        return "-"
    value, low, high = speedup
    return f"{value:.2f}" if low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    count = results["data"]
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
    facts = results["runtime"]
    lines += [
        "",
        f"{results['model']}, {count}, greedy, {facts['dtype']}, {facts['device']} "
        f"({facts['threads']} threads), torch {facts['versions']['torch']}, transformers "
        f"{facts['versions']['transformers']}, commit {str(results['commit'])[:12]}, "
        f"{results['date']}: `{results['command']}`",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_script(main))
