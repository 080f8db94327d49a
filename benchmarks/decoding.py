"""Decoding, pruning and calibration against their own yardsticks, all taken in one run.

    python -m benchmarks.decoding --output_dir results

Every comparison alternates between its sides on the same prompts, and reports ratios: seconds
differ from machine to machine and from minute to minute.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arguments.model import ModelArguments
from arguments.prompts import DataArguments
from arguments.pruning import PruneArguments
from benchmarks.decoding_report import plot, table
from command_line.errors import reject
from command_line.flags import flag, parse
from command_line.script import run_script
from data import get_calibration_data, get_data
from files.commit import current_commit
from models.loading import LoadedModel, load_model
from models.runtime import start
from pruned_model import PruneModel, angular_distances, make_plan, weight_bytes
from runs.metrics import predicted_speedup
from self_speculation.equality import first_difference, ties_allowed, verdict
from self_speculation.generator_base import Generation, GenerationConfig
from self_speculation.llama_model_utils import CachedLlama
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator
from self_speculation.timing import now

GREEDY = SamplingRule()
SEED = 42
EQUALITY_PLANS = {
    "base": {},
    "angular n=2": {"prune_method": "angular", "prune_n": 2},
    "angular n=6": {"prune_method": "angular", "prune_n": 6},
    "random p=0.1": {"prune_method": "random", "dropout_threshold": 0.1, "prune_seed": 42},
}


@dataclass
class DecodingArguments:
    """What is compared."""

    num_prompts: int = flag(6, "prompts of human_eval")
    max_steps: int = flag(128, "tokens of an output")
    exit_layer: int = flag(24, "exit layer of the equality and overhead checks")
    exit_layers: list[int] = flag([6, 12, 18, 24], "exit layers of the speed-up table")
    num_speculations: int = flag(4, "tokens drafted in one round")
    removed: list[int] = flag([0, 6, 12, 18, 24], "layers removed in the scaling table")
    output_dir: str = flag("results", "folder of decoding.json, .md and .png")

    def check(self) -> None:
        for name, least in (("num_prompts", 1), ("max_steps", 2), ("num_speculations", 1)):
            if getattr(self, name) < least:
                reject(name, getattr(self, name), f"must be at least {least}")
        if 0 not in self.removed:
            reject("removed", self.removed, "must hold 0, the whole model, to compare with")

    def data(self) -> DataArguments:
        """The data set's first prompts, as ever."""
        return DataArguments(num_samples=self.num_prompts, random_shuffle=False)


@dataclass
class Bench:
    """The loaded model with its prompts."""

    loaded: LoadedModel
    arguments: DecodingArguments
    prompts: list[list[int]]

    def calibration_prompts(self) -> list[torch.Tensor]:
        """Prompts that are not among those decoded, as plans take them."""
        data = self.arguments.data()
        found = get_calibration_data(data, PruneArguments(), get_data(data, SEED))
        texts = [example.prompt for example in found.examples]
        return [torch.tensor([self.loaded.tokenizer(text)["input_ids"]]) for text in texts]

    def generator(
        self,
        model: Any,
        strategy: str,
        exit_layer: int | None = None,
        sampling: SamplingRule = GREEDY,
    ) -> TextGenerator:
        config = GenerationConfig(
            sampling=sampling,
            max_steps=self.arguments.max_steps,
            kept_exit_layer=exit_layer,
            num_speculations=self.arguments.num_speculations,
        )
        capacity = max(map(len, self.prompts)) + self.arguments.max_steps
        return TextGenerator(model, self.loaded.tokenizer, strategy, config, capacity)


def against_transformers(bench: Bench) -> dict[str, Any]:
    """Autoregressive decoding against `generate`: the same prompts, in turn, medians of pairs.

    Both have the weights as they lie for this project; `benchmarks.peers` has each side's own.
    """
    model, steps = bench.loaded.model, bench.arguments.max_steps
    plain = bench.generator(model, "autoregressive")

    def ours(ids: list[int]) -> list[int]:
        return plain.generate(ids).output_ids

    def theirs(ids: list[int]) -> list[int]:
        ids_1T = torch.tensor([ids], device=model.device)
        mask = torch.ones_like(ids_1T)
        made = model.generate(ids_1T, attention_mask=mask, max_new_tokens=steps, do_sample=False)
        return made[0, len(ids) :].tolist()

    ours(bench.prompts[0]), theirs(bench.prompts[0])
    ratios, rates, equal = [], {"ours": [], "generate": []}, 0
    for turn, ids in enumerate(bench.prompts * 2):
        order = [("ours", ours), ("generate", theirs)][:: 1 if turn < len(bench.prompts) else -1]
        seconds, made = {}, {}
        for name, decode in order:
            seconds[name], made[name] = _timed(model.device, lambda d=decode, i=ids: d(i))
            rates[name].append(len(made[name]) / seconds[name])
        ratios.append(seconds["generate"] / seconds["ours"])
        equal += made["ours"] == made["generate"]
    return {
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "speedup_over_generate": _quartiles(ratios),
        "equal_outputs": f"{equal} of {len(ratios)}",
    }


def self_speculation(bench: Bench) -> list[dict[str, Any]]:
    """Acceptance, predicted and measured speed-up by exit layer, each beside plain decoding.

    Greedy, and once more with the default sampling, which costs more beside the passes.
    """
    model, arguments = bench.loaded.model, bench.arguments
    sampled = SamplingRule(True, temperature=0.6, top_p=0.9)
    cells = [(exit_layer, GREEDY) for exit_layer in arguments.exit_layers]
    rows = []
    for exit_layer, sampling in [*cells, (arguments.exit_layer, sampled)]:
        plain = bench.generator(model, "autoregressive", sampling=sampling)
        spoken = bench.generator(model, "self_speculative", exit_layer, sampling)
        plain.warm_up(bench.prompts[0])
        spoken.warm_up(bench.prompts[0])
        pairs = [(plain.generate(ids), spoken.generate(ids)) for ids in bench.prompts]
        cell = {"exit_layer": exit_layer, "sample": sampling.sample}
        rows.append(cell | _speculation_row(pairs))
    return rows


def _speculation_row(pairs: list[tuple[Generation, Generation]]) -> dict[str, Any]:
    full = _mean_step([plain for plain, _ in pairs], "full")
    spoken = [made for _, made in pairs]
    drafted = sum(made.drafted_tokens for made in spoken)
    c, v = _mean_step(spoken, "draft") / full, _mean_step(spoken, "verify") / full
    k = drafted / sum(len(made.rounds) for made in spoken)
    r = sum(made.accepted_tokens for made in spoken) / drafted
    passes = sum(step.seconds for made in spoken for step in made.steps.values())
    seconds = {
        side: sum(made.decode_seconds / (len(made.output_ids) - 1) for made in outputs)
        for side, outputs in zip(("plain", "spoken"), zip(*pairs, strict=True), strict=True)
    }
    return {
        "acceptance": r,
        "draft_step_in_full_steps": c,
        "verify_in_full_steps": v,
        "predicted_speedup": predicted_speedup(k, r, c, v),
        "measured_speedup": seconds["plain"] / seconds["spoken"],
        "round_overhead": sum(made.decode_seconds for made in spoken) / passes - 1,
    }


def removal(bench: Bench, steps: int = 40) -> dict[str, Any]:
    """Seconds of a full step and bytes of weights by layers removed, against what is ideal.

    Ideal is that every layer removed saves an equal share of what all layers take: the step without
    embedding, norm and head. Steps of all sizes alternate.
    """
    whole = bench.loaded.model
    layers, device = whole.config.num_hidden_layers, whole.device
    engines, sizes = {}, {}
    for count in bench.arguments.removed:
        model = copy.deepcopy(whole)
        arguments = PruneArguments(prune_method="angular", prune_n=count)
        prompts = [torch.tensor([ids]) for ids in bench.prompts]
        if count:
            PruneModel(model, make_plan(arguments, model, lambda p=prompts: p)).prune()
        engines[count] = CachedLlama(model, capacity=512)
        engines[count].forward(torch.tensor([bench.prompts[0]], device=device))
        sizes[count] = weight_bytes(model)
    ids_1T = torch.tensor([bench.prompts[0][-1:]], device=device)
    seconds: dict[Any, list[float]] = {count: [] for count in [*engines, "head"]}
    for _ in range(steps):
        for count, engine in engines.items():
            seconds[count].append(_timed(device, lambda e=engine: e.forward(ids_1T))[0])
            engine.rollback(engine.length - 1)
        seconds["head"].append(_timed(device, lambda: _head_alone(whole, ids_1T))[0])
    medians = {count: statistics.median(values) for count, values in seconds.items()}
    rows = [
        {
            "layers_removed": count,
            "step_seconds": medians[count],
            "share_of_ideal_time_saved": _share(
                medians[0] - medians[count], (medians[0] - medians["head"]) * count / layers
            ),
            "weight_bytes": sizes[count],
            "share_of_ideal_memory_saved": _share(
                sizes[0] - sizes[count],
                count * weight_bytes(whole.model.layers[0]),
            ),
        }
        for count in engines
    ]
    return {"head_seconds": medians["head"], "rows": rows}


def calibration(bench: Bench, repeats: int = 3) -> dict[str, Any]:
    """The calibration pass against a bare forward pass over the same prompts."""
    model = bench.loaded.model
    prompts = bench.calibration_prompts()

    @torch.inference_mode()
    def bare() -> None:
        for prompt in prompts:
            model.model(input_ids=prompt.to(model.device), use_cache=False)

    bare()
    ratios = []
    for _ in range(repeats):
        bare_seconds, _ = _timed(model.device, bare)
        seconds, _ = _timed(model.device, lambda: angular_distances(model, prompts))
        ratios.append(seconds / bare_seconds)
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    states = (layers + 1) * width * model.dtype.itemsize
    return {
        "prompts": len(prompts),
        "seconds_over_bare_forward": _quartiles(ratios),
        "bytes_of_states_held_a_prompt": states,
    }


def equality(bench: Bench) -> list[dict[str, Any]]:
    """Greedy self-speculation against autoregression on whole and pruned models."""
    rows = []
    prompts = bench.calibration_prompts()
    for name, changes in EQUALITY_PLANS.items():
        model = copy.deepcopy(bench.loaded.model)
        plan = make_plan(PruneArguments(**changes), model, lambda: prompts)
        PruneModel(model, plan).prune()
        kept = plan.kept_exit_layer(bench.arguments.exit_layer)
        plain = bench.generator(model, "autoregressive")
        spoken = bench.generator(model, "self_speculative", kept)
        verdicts, tokens = {"equal": 0, "tie": 0, "wrong": 0}, 0
        for ids in bench.prompts:
            one, other = plain.generate(ids).output_ids, spoken.generate(ids).output_ids
            found = first_difference(model, ids, one, other)
            verdicts[verdict(found, model.dtype)] += 1
            tokens += len(one)
        rows.append({"plan": name, "removed": plan.removed_layers, "tokens": tokens} | verdicts)
    return rows


def lossless(rows: list[dict[str, Any]]) -> bool:
    """Nothing wrong, and no more ties than rounding explains."""
    tokens, ties = (sum(row[key] for row in rows) for key in ("tokens", "tie"))
    return not any(row["wrong"] for row in rows) and ties <= ties_allowed(tokens)


def main(argv: list[str] | None = None) -> int:
    arguments, model_arguments = parse(argv, __doc__, DecodingArguments, ModelArguments)
    if model_arguments.compile:
        reject("compile", "true", "eager decoding is measured; benchmarks/peers.py compares both")
    runtime = start(model_arguments)
    loaded = load_model(model_arguments, runtime)
    examples = get_data(arguments.data(), SEED).examples
    prompts = [loaded.tokenizer(example.prompt)["input_ids"] for example in examples]
    bench = Bench(loaded, arguments, prompts)
    results = {
        "command": "python -m benchmarks.decoding " + " ".join(argv or sys.argv[1:]),
        "commit": current_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "model": loaded.name,
        "layers": loaded.model.config.num_hidden_layers,
        "num_speculations": arguments.num_speculations,
        "runtime": runtime.facts(),
    }
    for part in (against_transformers, self_speculation, removal, calibration, equality):
        results[part.__name__] = part(bench)
        print(json.dumps({part.__name__: results[part.__name__]}, indent=1), flush=True)
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "decoding.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "decoding.md").write_text(table(results))
    plot(results, folder / "decoding.png")
    return 0 if lossless(results["equality"]) else 1


def _timed(device: torch.device, action: Callable[[], Any]) -> tuple[float, Any]:
    begin = now(device)
    result = action()
    return now(device) - begin, result


@torch.inference_mode()
def _head_alone(model: Any, ids_1T: torch.Tensor) -> torch.Tensor:
    return model.lm_head(model.model.norm(model.get_input_embeddings()(ids_1T)))


def _mean_step(outputs: list[Generation], name: str) -> float:
    steps = [made.steps[name] for made in outputs]
    return sum(step.seconds for step in steps) / sum(step.calls for step in steps)


def _quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


if __name__ == "__main__":
    sys.exit(run_script(main))
