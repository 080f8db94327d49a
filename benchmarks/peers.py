"""This project beside other decoders of the same model, and all beside the memory's speed.

    python benchmarks/peers.py --output_dir results

Each side decodes the same prompts of HumanEval, greedily, batch 1, to the same number of tokens. It
also decodes one token, so that the tokens after it are timed alike on all sides. Sides take turns,
and ratios pair measurements of one turn, because seconds differ between machines and from minute to
minute. benchmarks/requirements.txt installs the peers; a missing or failing peer is left out and
named.
"""

import gc
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

if not __package__:  # started as a file, whose folder Python puts first
    sys.path.insert(0, str(Path(__file__).parent.parent))


from arguments.model import ModelArguments
from arguments.model_args import DTYPES
from benchmarks.bandwidth import Bandwidth, step_bytes
from benchmarks.measuring import human_eval_prompts
from benchmarks.order import in_turn
from benchmarks.peer_engines import OURS, PACKAGES, Setting, Side
from benchmarks.peers_report import plot, table
from benchmarks.peers_summary import summarize
from benchmarks.results import head, write_results
from benchmarks.turns import Turns
from command_line.errors import FailedError, reject
from command_line.flags import check_least, check_new_folder, flag, parse
from command_line.script import run_script
from models.loading import LoadedModel, load_model
from models.runtime import Runtime, start_compiled
from pruned_model import weight_bytes
from pruning.plan import check_exit_layer, check_prune_n
from self_speculation.equality import first_difference, verdict
from self_speculation.llama_model_utils import position_limit
from self_speculation.text_generator import WARM_UP_STEPS

_BUFFER_LIMIT = 4 * 2**30


@dataclass
class PeersArguments:
    """The sides that are compared."""

    num_prompts: int = flag(3, "prompts of human_eval")
    max_steps: int = flag(48, "tokens per output")
    repeats: int = flag(2, "outputs per side and prompt")
    exit_layers: list[int] = flag([6, 24], "exit layers of self-speculation, on each side")
    num_speculations: list[int] = flag([2, 4], "tokens drafted per round, on each side")
    num_lookups: int = flag(4, "tokens drafted per round of prompt lookup")
    removed: list[int] = flag([6, 12], "layers removed from this project's model")
    dtypes: list[str] = flag([], "dtypes, one after the other, instead of --dtype")
    output_dir: str = flag("results", "folder of peers.json, .md and .png")

    def check(self) -> None:
        check_least(self, num_prompts=1, max_steps=2, repeats=1, num_lookups=1)
        check_least(self, exit_layers=1, num_speculations=1, removed=0)
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                reject("dtypes", dtype, f"must be among {', '.join(DTYPES)}")
        check_new_folder("output_dir", self.output_dir, may_exist=True)

    def check_model(self, model: Any, longest_prompt: int) -> None:
        """Reject flags that do not suit the model and the prompts."""
        layers = model.config.num_hidden_layers
        for exit_layer in self.exit_layers:
            check_exit_layer("exit_layers", exit_layer, layers)
        for count in filter(None, self.removed):
            check_prune_n("removed", count, layers)
        room = position_limit(model.config) - longest_prompt
        if self.max_steps > room:
            reject("max_steps", self.max_steps, f"the longest prompt leaves room for {room}")


@dataclass
class Comparison:
    """The measurements of one dtype, which grow turn by turn."""

    turns: Turns
    arguments: PeersArguments
    samples: list[dict[str, Any]] = field(default_factory=list)
    reference: dict[int, list[int]] = field(default_factory=dict)  # by prompt

    def prepare(self, sides: Iterable[Side]) -> None:
        """Build each side and decode once with it."""
        longest = max(self.turns.setting.prompts, key=len)
        for side in sides:
            # The steps at an output's end may have shapes of their own to compile.
            steps = self.arguments.max_steps if side.compiled else WARM_UP_STEPS
            self.turns.prepare(side, longest, steps)

    def measure(self, bandwidth: Bandwidth) -> None:
        """Decode each prompt with each side, in another order each turn."""
        prompts = range(len(self.turns.setting.prompts))
        order = list(product(range(self.arguments.repeats), prompts))
        for turn, (repeat, prompt) in enumerate(order):
            at = {"turn": turn, "prompt": prompt, "repeat": repeat}
            for side in in_turn(list(self.turns.engines), turn, len(order)):
                with self.turns.attempt(side):
                    self.samples.append(at | self._sample(side, prompt, bandwidth))
            print(f"turn {turn + 1} of {len(order)}", file=sys.stderr, flush=True)

    def judge(self) -> None:
        """Add to each sample whether its output equals this project's plain decoding."""
        setting = self.turns.setting
        known: dict[tuple[int, tuple[int, ...]], str] = {}
        for sample in self.samples:
            output_ids = sample.pop("output_ids")
            expected = self.reference.get(sample["prompt"])
            if expected is None or sample["removed"]:
                sample["verdict"] = None
                continue
            key = (sample["prompt"], tuple(output_ids))
            if key not in known:
                prompt_ids = setting.prompts[sample["prompt"]]
                found = first_difference(setting.model, prompt_ids, expected, output_ids)
                known[key] = verdict(found, setting.model.dtype)
            sample["verdict"] = known[key]

    def _sample(self, side: Side, prompt: int, bandwidth: Bandwidth) -> dict[str, Any]:
        bytes_per_second = bandwidth.measure()
        prompt_ids = self.turns.setting.prompts[prompt]
        first_token_seconds, _ = self.turns.timed(side, prompt_ids, 1)
        seconds, made = self.turns.timed(side, prompt_ids, self.arguments.max_steps)
        if side == Side(OURS):
            self.reference.setdefault(prompt, made.output_ids)
        later = seconds - first_token_seconds  # on a busy machine, one token can take longer
        return {
            "side": side.name,
            "removed": side.removed,
            "seconds": seconds,
            "first_token_seconds": first_token_seconds,
            "later_seconds": later if later > 0 else None,
            "tokens": len(made.output_ids),
            "bytes_per_second": bytes_per_second,
        } | vars(made)


def sides_of(arguments: PeersArguments, cuda: bool) -> Iterator[Side]:
    """Return all sides, plain decoding first."""
    # economize and flashspec compile by CUDA graphs.
    graphs = (False, True) if cuda else (False,)
    kinds = {OURS: (False, True), "transformers": (False, True), "economize": graphs}
    yield from (Side(system, compiled=kind) for system in kinds for kind in kinds[system])
    yield Side("llama.cpp")
    early_exits = kinds | {"transformers": (False,)}  # its early exit refuses a static cache
    for system, exit_layer, drafts in product(
        early_exits, dict.fromkeys(arguments.exit_layers), dict.fromkeys(arguments.num_speculations)
    ):
        for kind in early_exits[system]:
            yield Side(system, "self-speculative", kind, exit_layer, drafts)
    lookups = {
        "transformers": (False,),
        "economize": graphs,
        "flashspec": graphs,
        "llama.cpp": (False,),
    }
    for system, compiled in ((name, kind) for name in lookups for kind in lookups[name]):
        yield Side(system, "prompt lookup", compiled, drafts=arguments.num_lookups)
    for count in dict.fromkeys(filter(None, arguments.removed)):
        yield from (Side(OURS, compiled=kind, removed=count) for kind in kinds[OURS])


def compare(arguments: PeersArguments, runtime: Runtime, loaded: LoadedModel) -> dict[str, Any]:
    """Measure one loaded model; return samples and summary."""
    prompts = human_eval_prompts(arguments.num_prompts, loaded.tokenizer)
    longest = max(map(len, prompts))
    model: Any = loaded.model
    arguments.check_model(model, longest)
    setting = Setting.endless(model, loaded.tokenizer, longest + arguments.max_steps, prompts)
    turns = Turns(setting)
    comparison = Comparison(turns, arguments)
    sides = list(sides_of(arguments, runtime.device.type == "cuda"))
    comparison.prepare(sides)
    if Side(OURS) not in turns.engines:
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
        "setup": turns.setup,
        "left_out": turns.left_out,
        "samples": comparison.samples,
    }
    return measured | {"summary": summarize(measured)}


def main(argv: list[str] | None = None) -> int:
    arguments, model_arguments = parse(argv, __doc__, PeersArguments, ModelArguments)
    if model_arguments.compile:
        reject("compile", "true", "eager and compiled decoding are both measured")
    path = Path(arguments.output_dir) / "peers"
    results = head("python benchmarks/peers.py", argv, model_arguments.model) | {
        "data": "human_eval",
        "arguments": vars(arguments),
        "packages": {name: _version(name) for name in PACKAGES},
        "dtypes": {},
    }
    for dtype in dict.fromkeys(arguments.dtypes) or [model_arguments.dtype]:
        of_dtype = replace(model_arguments, dtype=dtype)
        # A compiled start leaves the weights in transformers' layout, which the peers share.
        runtime = start_compiled(of_dtype)
        measured = compare(arguments, runtime, load_model(of_dtype, runtime))
        results["dtypes"][measured["runtime"]["dtype"]] = measured
        # Now, so that an interrupted run keeps the finished dtypes.
        write_results(path, results, table(results))
        plot(results, path.with_suffix(".png"))
        gc.collect()
    print(table(results))
    return 0 if _ours_is_right(results) else 1


def _ours_is_right(results: dict[str, Any]) -> bool:
    """Return whether each side of this project ran and, up to ties, equals its plain decoding."""
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
