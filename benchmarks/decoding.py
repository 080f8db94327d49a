"""Speed of decoding, pruning and calibration, each beside its own baseline in the same run.

    python -m benchmarks.decoding --output_dir results

Each comparison alternates between its sides on the same prompts and reports ratios, because seconds
differ between machines and from minute to minute.
"""

import copy
import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from arguments.model import ModelArguments
from arguments.pruning import PruneArguments
from benchmarks.decoding_report import plot, table
from benchmarks.measuring import (
    SEED,
    human_eval,
    human_eval_prompts,
    law,
    quartiles,
    seconds_in_turn,
    timed,
)
from benchmarks.order import in_turn
from benchmarks.peer_engines import GENERATE, OURS, Decoded, Setting, Side, build
from benchmarks.results import head, write_results
from command_line.errors import reject
from command_line.flags import check_least, flag, parse
from command_line.script import run_script
from data import get_calibration_data, get_data
from models.loading import load_model
from models.runtime import start
from pruned_model import PruneModel, make_plan, weight_bytes
from pruning.measurements import Measurements
from pruning.plan import check_exit_layer, check_prune_n
from pruning.states import measure_states
from self_speculation.equality import first_difference, ties_allowed, verdict
from self_speculation.llama_model_utils import CachedLlama
from self_speculation.sampling import SamplingRule

FULL_STEPS = 40  # per size of the model
CALIBRATIONS = 3
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
        check_least(
            self, num_prompts=1, max_steps=3, exit_layer=1, exit_layers=1, num_speculations=1
        )
        if 0 not in self.removed:
            reject("removed", self.removed, "must hold 0, the whole model, to compare with")


def against_transformers(setting: Setting, arguments: DecodingArguments) -> dict[str, Any]:
    """Compare autoregressive decoding with `generate` on the same prompts, in turn.

    Both read the weights in this project's layout; in `benchmarks.peers` each side has its own.
    """
    sides = {"ours": Side(OURS), "generate": GENERATE}
    decoders = {name: _decoder(side, setting, arguments) for name, side in sides.items()}
    calls: dict[str, list[tuple[float, Decoded]]] = {name: [] for name in sides}
    for turn in range(2):  # each prompt once in either order
        for ids in setting.prompts:
            for name in in_turn(list(sides), turn, 2):
                calls[name].append(timed(setting.model.device, partial(decoders[name], ids)))
    pairs = list(zip(calls["ours"], calls["generate"], strict=True))
    equal = sum(one.output_ids == other.output_ids for (_, one), (_, other) in pairs)
    return {
        "tokens_per_second": {
            name: statistics.median(len(made.output_ids) / seconds for seconds, made in found)
            for name, found in calls.items()
        },
        "speedup_over_generate": quartiles([theirs / ours for (ours, _), (theirs, _) in pairs]),
        "equal_outputs": f"{equal} of {len(pairs)}",
    }


def self_speculation(setting: Setting, arguments: DecodingArguments) -> list[dict[str, Any]]:
    """Measure self-speculation by exit layer beside plain decoding, greedily and once sampled."""
    sampled = SamplingRule(True, temperature=0.6, top_p=0.9)
    cells = [(exit_layer, SamplingRule()) for exit_layer in arguments.exit_layers]
    rows = []
    for exit_layer, sampling in [*cells, (arguments.exit_layer, sampled)]:
        of_cell = replace(setting, sampling=sampling)
        plain = _decoder(Side(OURS), of_cell, arguments)
        spoken = _decoder(_drafting(exit_layer, arguments), of_cell, arguments)
        pairs = [(plain(ids), spoken(ids)) for ids in setting.prompts]
        cell = {"exit_layer": exit_layer, "sample": sampling.sample}
        rows.append(cell | _speculation_row(pairs))
    return rows


def _speculation_row(pairs: list[tuple[Decoded, Decoded]]) -> dict[str, Any]:
    plain, spoken = zip(*pairs, strict=True)
    found = law([vars(made) for made in plain], [vars(made) for made in spoken])
    # Each prompt counts alike, however long its output is.
    seconds, drafting = (
        sum(made.decode_seconds / (len(made.output_ids) - 1) for made in outputs)
        for outputs in (plain, spoken)
    )
    passes = sum(step["seconds"] for made in spoken for step in made.steps.values())
    return {
        "acceptance": found["r"],
        "draft_step_in_full_steps": found["c"],
        "verify_in_full_steps": found["v"],
        "predicted_speedup": found["predicted"],
        "measured_speedup": seconds / drafting,
        "round_overhead": sum(made.decode_seconds for made in spoken) / passes - 1,
    }


def removal(setting: Setting, arguments: DecodingArguments) -> dict[str, Any]:
    """Measure a full step's seconds and bytes of weights by layers removed, beside the ideal.

    Ideally, each removed layer saves an equal share of the step without embedding, norm and head.
    """
    whole, ids = setting.model, setting.prompts[0]
    layers, device = whole.config.num_hidden_layers, whole.device
    ids_1T = torch.tensor([ids[-1:]], device=device)
    actions: dict[Any, Callable[[], Any]] = {"head": partial(_head_alone, whole, ids_1T)}
    # Weights of its own, so that no size finds its layers in the processor's cache after another.
    models = {
        count: copy.deepcopy(setting.without(count, compiled=False))
        for count in sorted(arguments.removed)
    }
    for count, model in models.items():
        engine = CachedLlama(model, setting.capacity)
        engine.forward(torch.tensor([ids], device=device))
        actions[count] = partial(_step, engine, ids_1T, len(ids))
    seconds = seconds_in_turn(device, actions, FULL_STEPS)
    medians = {count: statistics.median(values) for count, values in seconds.items()}
    sizes = {count: weight_bytes(model) for count, model in models.items()}
    rows = [
        {
            "layers_removed": count,
            "step_seconds": medians[count],
            "share_of_ideal_time_saved": _share(
                medians[0] - medians[count], (medians[0] - medians["head"]) * count / layers
            ),
            "weight_bytes": sizes[count],
            "share_of_ideal_memory_saved": _share(
                sizes[0] - sizes[count], count * weight_bytes(whole.model.layers[0])
            ),
        }
        for count in models
    ]
    return {"head_seconds": medians["head"], "rows": rows}


def calibration(setting: Setting, arguments: DecodingArguments) -> dict[str, Any]:
    """Compare the calibration pass with a bare forward pass over the same prompts."""
    model = setting.model
    prompts = _calibration_prompts(setting, arguments)

    @torch.inference_mode()
    def bare() -> None:
        for prompt in prompts:
            model.model(input_ids=prompt.to(model.device), use_cache=False)

    bare()
    actions: dict[str, Callable[[], Any]] = {
        "bare": bare,
        "calibration": partial(measure_states, model, prompts),
    }
    seconds = seconds_in_turn(model.device, actions, CALIBRATIONS)
    pairs = zip(seconds["calibration"], seconds["bare"], strict=True)
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    states = (layers + 1) * width * model.dtype.itemsize
    return {
        "prompts": len(prompts),
        "seconds_over_bare_forward": quartiles([one / bare for one, bare in pairs]),
        "bytes_of_states_held_a_prompt": states,
    }


def equality(setting: Setting, arguments: DecodingArguments) -> list[dict[str, Any]]:
    """Compare outputs of greedy self-speculation with plain ones, of whole and pruned models."""
    rows = []
    prompts = _calibration_prompts(setting, arguments)
    for name, changes in EQUALITY_PLANS.items():
        model = copy.deepcopy(setting.model)
        plan = make_plan(PruneArguments(**changes), Measurements(model, lambda: prompts))
        PruneModel(model, plan).prune()
        pruned = replace(setting, model=model, models={})
        kept = plan.kept_exit_layer(arguments.exit_layer)
        plain = _decoder(Side(OURS), pruned, arguments)
        spoken = _decoder(_drafting(kept, arguments), pruned, arguments)
        verdicts, tokens = Counter(equal=0, tie=0, wrong=0), 0
        for ids in setting.prompts:
            one, other = plain(ids).output_ids, spoken(ids).output_ids
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
    _check_layers(arguments, loaded.config.num_hidden_layers)
    prompts = human_eval_prompts(arguments.num_prompts, loaded.tokenizer)
    capacity = max(map(len, prompts)) + arguments.max_steps
    setting = Setting(loaded.model, loaded.tokenizer, capacity, prompts)
    results = head("python -m benchmarks.decoding", argv, loaded.name) | {
        "layers": loaded.config.num_hidden_layers,
        "num_speculations": arguments.num_speculations,
        "runtime": runtime.facts(),
    }
    for part in (against_transformers, self_speculation, removal, calibration, equality):
        results[part.__name__] = part(setting, arguments)
        print(json.dumps({part.__name__: results[part.__name__]}, indent=1), flush=True)
    path = Path(arguments.output_dir) / "decoding"
    write_results(path, results, table(results))
    plot(results, path.with_suffix(".png"))
    return 0 if lossless(results["equality"]) else 1


def _check_layers(arguments: DecodingArguments, layers: int) -> None:
    check_exit_layer("exit_layer", arguments.exit_layer, layers)
    for exit_layer in arguments.exit_layers:
        check_exit_layer("exit_layers", exit_layer, layers)
    for count in filter(None, arguments.removed):
        check_prune_n("removed", count, layers)


def _decoder(
    side: Side, setting: Setting, arguments: DecodingArguments
) -> Callable[[list[int]], Decoded]:
    """Return the side's decoding of a prompt, warm."""
    engine = build(side, setting)

    def decode(ids: list[int]) -> Decoded:
        return engine.decode(ids, arguments.max_steps)

    decode(setting.prompts[0])
    return decode


def _drafting(exit_layer: int | None, arguments: DecodingArguments) -> Side:
    drafts = arguments.num_speculations
    return Side(OURS, "self-speculative", exit_layer=exit_layer, drafts=drafts)


def _calibration_prompts(setting: Setting, arguments: DecodingArguments) -> list[torch.Tensor]:
    """Return the prompts that a plan is calibrated on, none of which is decoded."""
    data = human_eval(arguments.num_prompts)
    found = get_calibration_data(data, PruneArguments(), get_data(data, SEED))
    texts = [example.prompt for example in found.examples]
    return [torch.tensor([setting.tokenizer(text)["input_ids"]]) for text in texts]


def _step(engine: CachedLlama, ids_1T: torch.Tensor, length: int) -> None:
    """Run the token that follows the first `length` positions."""
    engine.rollback(length)
    engine.forward(ids_1T)


@torch.inference_mode()
def _head_alone(model: Any, ids_1T: torch.Tensor) -> torch.Tensor:
    return model.lm_head(model.model.norm(model.get_input_embeddings()(ids_1T)))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


if __name__ == "__main__":
    sys.exit(run_script(main))
