"""Speed of decoding, pruning and calibration, each beside its own baseline in the same run.

    python -m benchmarks.decoding --output_dir results

Each comparison alternates between its sides on the same prompts and reports ratios, because seconds
differ between machines and from minute to minute.
"""

import copy
import json
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from arguments.model import ModelArguments
from arguments.pruning import PruneArguments
from benchmarks.conditions import head, write_results
from benchmarks.decoding_report import plot, table
from benchmarks.measuring import SEED, human_eval, human_eval_prompts, quartiles, timed
from command_line.errors import reject
from command_line.flags import check_least, flag, parse
from command_line.script import run_script
from data import get_calibration_data, get_data
from models.loading import LoadedModel, load_model
from models.runtime import start
from pruned_model import PruneModel, angular_distances, make_plan, weight_bytes
from runs.metrics import predicted_speedup
from self_speculation.equality import first_difference, ties_allowed, verdict
from self_speculation.generator_base import Generation, GenerationConfig
from self_speculation.llama_model_utils import CachedLlama
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator

GREEDY = SamplingRule()
EQUALITY_PLANS: dict[str, dict[str, Any]] = {
    "base": {},
    "angular n=2": {"prune_method": "angular", "prune_n": 2},
    "angular n=6": {"prune_method": "angular", "prune_n": 6},
    "random p=0.1": {"prune_method": "random", "dropout_threshold": 0.1, "prune_seed": 42},
}


@dataclass
class DecodingArguments:
    """The sides that are compared."""

    num_prompts: int = flag(6, "prompts of human_eval")
    max_steps: int = flag(128, "tokens per output")
    exit_layer: int = flag(24, "exit layer of the equality and overhead checks")
    exit_layers: list[int] = flag([6, 12, 18, 24], "exit layers of the speed-up table")
    num_speculations: int = flag(4, "tokens drafted in one round")
    removed: list[int] = flag([0, 6, 12, 18, 24], "layers removed in the scaling table")
    output_dir: str = flag("results", "folder of decoding.json, .md and .png")

    def check(self) -> None:
        check_least(self, num_prompts=1, max_steps=2, num_speculations=1)
        if 0 not in self.removed:
            reject("removed", self.removed, "must hold 0, the whole model, to compare with")


@dataclass
class Bench:
    """The loaded model, a causal model of transformers, with the prompts."""

    loaded: LoadedModel
    arguments: DecodingArguments
    prompts: list[list[int]]

    @property
    def model(self) -> Any:
        return self.loaded.model

    def calibration_prompts(self) -> list[torch.Tensor]:
        """Return the prompts that a plan is calibrated on, none of which is decoded."""
        data = human_eval(self.arguments.num_prompts)
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
    """Compare autoregressive decoding with `generate` on the same prompts, in turn.

    Both read the weights in this project's layout; in `benchmarks.peers` each side has its own.
    """
    model, steps = bench.model, bench.arguments.max_steps
    plain = bench.generator(model, "autoregressive")

    def ours(ids: list[int]) -> list[int]:
        return plain.generate(ids).output_ids

    def theirs(ids: list[int]) -> list[int]:
        ids_1T = torch.tensor([ids], device=model.device)
        mask = torch.ones_like(ids_1T)
        made = model.generate(ids_1T, attention_mask=mask, max_new_tokens=steps, do_sample=False)
        return made[0, len(ids) :].tolist()

    ours(bench.prompts[0]), theirs(bench.prompts[0])
    sides = [("ours", ours), ("generate", theirs)]
    rates: dict[str, list[float]] = {name: [] for name, _ in sides}
    ratios, equal = [], 0
    for turn, ids in enumerate(bench.prompts * 2):
        seconds, made = {}, {}
        for name, decode in sides[:: 1 if turn < len(bench.prompts) else -1]:
            seconds[name], made[name] = timed(model.device, partial(decode, ids))
            rates[name].append(len(made[name]) / seconds[name])
        ratios.append(seconds["generate"] / seconds["ours"])
        equal += made["ours"] == made["generate"]
    return {
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "speedup_over_generate": quartiles(ratios),
        "equal_outputs": f"{equal} of {len(ratios)}",
    }


def self_speculation(bench: Bench) -> list[dict[str, Any]]:
    """Measure self-speculation by exit layer beside plain decoding, greedily and once sampled."""
    model, arguments = bench.model, bench.arguments
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
    """Measure a full step's seconds and bytes of weights by layers removed, beside the ideal.

    Ideally, each removed layer saves an equal share of the step without embedding, norm and head.
    Steps of all sizes alternate.
    """
    whole = bench.model
    layers, device = whole.config.num_hidden_layers, whole.device
    prompts = [torch.tensor([ids]) for ids in bench.prompts]
    engines, sizes = {}, {}
    for count in bench.arguments.removed:
        model = copy.deepcopy(whole)
        arguments = PruneArguments(prune_method="angular", prune_n=count)
        if count:
            PruneModel(model, make_plan(arguments, model, lambda: prompts)).prune()
        engines[count] = CachedLlama(model, capacity=512)
        engines[count].forward(torch.tensor([bench.prompts[0]], device=device))
        sizes[count] = weight_bytes(model)
    ids_1T = torch.tensor([bench.prompts[0][-1:]], device=device)
    seconds: dict[Any, list[float]] = {count: [] for count in [*engines, "head"]}
    for _ in range(steps):
        for count, engine in engines.items():
            seconds[count].append(timed(device, partial(engine.forward, ids_1T))[0])
            engine.rollback(engine.length - 1)
        seconds["head"].append(timed(device, partial(_head_alone, whole, ids_1T))[0])
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
    """Compare the calibration pass with a bare forward pass over the same prompts."""
    model = bench.model
    prompts = bench.calibration_prompts()

    @torch.inference_mode()
    def bare() -> None:
        for prompt in prompts:
            model.model(input_ids=prompt.to(model.device), use_cache=False)

    bare()
    ratios = []
    for _ in range(repeats):
        bare_seconds, _ = timed(model.device, bare)
        seconds, _ = timed(model.device, partial(angular_distances, model, prompts))
        ratios.append(seconds / bare_seconds)
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    states = (layers + 1) * width * model.dtype.itemsize
    return {
        "prompts": len(prompts),
        "seconds_over_bare_forward": quartiles(ratios),
        "bytes_of_states_held_a_prompt": states,
    }


def equality(bench: Bench) -> list[dict[str, Any]]:
    """Compare outputs of greedy self-speculation with plain ones, of whole and pruned models."""
    rows = []
    prompts = bench.calibration_prompts()
    for name, changes in EQUALITY_PLANS.items():
        model = copy.deepcopy(bench.model)
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
    """Return whether nothing is wrong and rounding explains the ties."""
    tokens, ties = (sum(row[key] for row in rows) for key in ("tokens", "tie"))
    return not any(row["wrong"] for row in rows) and ties <= ties_allowed(tokens)


def main(argv: list[str] | None = None) -> int:
    arguments, model_arguments = parse(argv, __doc__, DecodingArguments, ModelArguments)
    if model_arguments.compile:
        reject("compile", "true", "only eager decoding is measured; see benchmarks/peers.py")
    runtime = start(model_arguments)
    loaded = load_model(model_arguments, runtime)
    prompts = human_eval_prompts(arguments.num_prompts, loaded.tokenizer)
    bench = Bench(loaded, arguments, prompts)
    results = head("python -m benchmarks.decoding", argv, loaded.name) | {
        "layers": bench.model.config.num_hidden_layers,
        "num_speculations": arguments.num_speculations,
        "runtime": runtime.facts(),
    }
    for part in (against_transformers, self_speculation, removal, calibration, equality):
        results[part.__name__] = part(bench)
        print(json.dumps({part.__name__: results[part.__name__]}, indent=1), flush=True)
    path = Path(arguments.output_dir) / "decoding"
    write_results(path, results, table(results))
    plot(results, path.with_suffix(".png"))
    return 0 if lossless(results["equality"]) else 1


@torch.inference_mode()
def _head_alone(model: Any, ids_1T: torch.Tensor) -> torch.Tensor:
    return model.lm_head(model.model.norm(model.get_input_embeddings()(ids_1T)))


def _mean_step(outputs: list[Generation], name: str) -> float:
    steps = [made.steps[name] for made in outputs]
    return sum(step.seconds for step in steps) / sum(step.calls for step in steps)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


if __name__ == "__main__":
    sys.exit(run_script(main))
