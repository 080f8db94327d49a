"""This project and its peers behind one call: prompt ids in, new ids and what they took out.

A peer is imported where it is built, so that one that is not installed is missed by nothing else.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from arguments.pruning import PruneArguments
from models.weight_layout import favour_single_rows
from pruned_model import PruneModel, make_plan
from self_speculation.generator_base import GenerationConfig
from self_speculation.text_generator import TextGenerator

OURS = "this project"
LONGEST_NGRAM = 3  # of the newest tokens, looked up in the earlier ones


@dataclass(frozen=True)
class Side:
    """One of the decoders compared. `drafts` are the tokens drafted a round, at most.

    `removed` layers make another model, whose outputs are compared with nothing.
    """

    system: str
    method: str = "autoregressive"
    compiled: bool = False
    exit_layer: int | None = None
    drafts: int | None = None
    removed: int = 0

    @property
    def name(self) -> str:
        parts = [f"{self.system} {self.method}"]
        parts += [f"E={self.exit_layer}"] if self.exit_layer else []
        parts += [f"k={self.drafts}"] if self.drafts else []
        parts += [f"{self.removed} layers removed"] if self.removed else []
        return ", ".join([*parts, *(["compiled"] if self.compiled else [])])

    def plain(self) -> "Side":
        """The same system's autoregressive decoding of the whole model."""
        return Side(self.system, compiled=self.compiled)


@dataclass
class Decoded:
    """New token ids, and what is known of how they came about.

    `rounds`, `drafted` and `accepted` are of verified drafts; None where nothing was drafted.
    `decode_seconds` and `steps` exclude the prompt's pass and the first token.
    """

    output_ids: list[int]
    rounds: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    decode_seconds: float | None = None
    steps: dict[str, dict[str, float]] = field(default_factory=dict)

    def check_count(self, steps: int) -> None:
        """Raises RuntimeError where it is not so many tokens: their speed would be another."""
        if len(self.output_ids) != steps:
            raise RuntimeError(f"made {len(self.output_ids)} tokens, not {steps}")


@dataclass
class Engine:
    """A decoder that is ready: `decode(prompt_ids, steps)` makes exactly so many new tokens."""

    decode: Callable[[list[int], int], Decoded]
    compile_seconds: Callable[[], float | None] = lambda: None


@dataclass
class Setting:
    """What all sides share: weights, and room for the longest sequence."""

    model: nn.Module
    tokenizer: Any
    capacity: int
    prompts: list[list[int]]
    models: dict[tuple[int, bool], nn.Module] = field(default_factory=dict)

    @classmethod
    def endless(
        cls, model: nn.Module, tokenizer: Any, capacity: int, prompts: list[list[int]]
    ) -> "Setting":
        """A setting in which no side knows an end token, so that all make as many tokens."""
        model.generation_config.eos_token_id = None
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.eos_token = None
        return cls(model, tokenizer, capacity, prompts)

    def without(self, removed: int, compiled: bool) -> nn.Module:
        """This project's model without so many layers, its weights as its decoder is given them.

        Layers go by angular distance on the prompts. Peers have the model as transformers loads it.
        """
        if not removed and compiled:
            return self.model
        if (removed, compiled) not in self.models:
            model = _sharing_copy(self.without(0, compiled) if removed else self.model)
            if removed:
                prompts = [torch.tensor([ids]) for ids in self.prompts]
                arguments = PruneArguments(prune_method="angular", prune_n=removed)
                PruneModel(model, make_plan(arguments, model, lambda: prompts)).prune()
            if not compiled:
                favour_single_rows(model)
            self.models[removed, compiled] = model
        return self.models[removed, compiled]

    def column(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.model.device)


def _sharing_copy(model: nn.Module) -> nn.Module:
    """The same weights in the same memory, but modules and parameters that can be changed."""
    shared = {
        id(parameter): nn.Parameter(parameter.data, requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, shared)


def build(side: Side, setting: Setting) -> Engine:
    """The side's engine. Raises whatever its package raises, or ImportError without it."""
    return ENGINES[side.system](side, setting)


def _this_project(side: Side, setting: Setting) -> Engine:
    config = GenerationConfig(kept_exit_layer=side.exit_layer, num_speculations=side.drafts)
    strategy = "self_speculative" if side.exit_layer else "autoregressive"
    model = setting.without(side.removed, side.compiled)
    generator = TextGenerator(
        model, setting.tokenizer, strategy, config, setting.capacity, side.compiled
    )

    def decode(ids: list[int], steps: int) -> Decoded:
        made = generator.generate(ids, max_steps=steps)
        timed = {
            name: {"calls": step.calls, "seconds": step.seconds}
            for name, step in made.steps.items()
        }
        drafts = _drafts(made.rounds) if side.drafts else {}
        return Decoded(made.output_ids, **drafts, decode_seconds=made.decode_seconds, steps=timed)

    return Engine(decode, lambda: generator.engine.compile_seconds)


def _transformers(side: Side, setting: Setting) -> Engine:
    from transformers import CompileConfig

    model = setting.model
    options: dict[str, Any] = {"do_sample": False}
    if side.compiled:
        compile_config = CompileConfig()
        # Elsewhere than on accelerators, transformers 5.23 compiles for this private switch alone.
        compile_config._compile_all_devices = True
        options |= {"cache_implementation": "static", "compile_config": compile_config}
    if side.exit_layer:
        options["assistant_early_exit"] = side.exit_layer
    elif side.drafts:
        options["prompt_lookup_num_tokens"] = side.drafts
        options["max_matching_ngram_size"] = LONGEST_NGRAM

    def decode(ids: list[int], steps: int) -> Decoded:
        ids_1T = setting.column(ids)
        inputs = {"attention_mask": torch.ones_like(ids_1T), "max_new_tokens": steps}
        if not side.drafts:
            return Decoded(model.generate(ids_1T, **inputs, **options)[0, len(ids) :].tolist())
        with _assisting(model, side.drafts), _full_passes(model) as widths:
            made = model.generate(ids_1T, **inputs, **options)
        output_ids = made[0, len(ids) :].tolist()
        return Decoded(output_ids, **_drafts_of_passes(widths, len(ids), len(output_ids)))

    return Engine(decode)


@contextmanager
def _assisting(model: nn.Module, drafts: int) -> Iterator[None]:
    """Fixes the draft length of transformers' early exit, and undoes what a failed call leaves.

    transformers 5.23 takes these settings of the assistant, which early exit is itself, from the
    model's own generation config: as arguments of `generate` they are read by nothing. While it
    drafts, it shortens the model's config.
    """
    config, layers = model.generation_config, model.config.num_hidden_layers
    settings = {
        "num_assistant_tokens": drafts,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }
    before = {name: getattr(config, name) for name in settings}
    try:
        config.update(**settings)
        yield
    finally:
        config.update(**before)
        model.config.num_hidden_layers = layers


@contextmanager
def _full_passes(model: nn.Module) -> Iterator[list[int]]:
    """How many tokens went into every pass over all layers; drafting passes have fewer layers."""
    widths: list[int] = []
    layers = model.config.num_hidden_layers

    def note(_: nn.Module, __: tuple, inputs: dict[str, Any]) -> None:
        if model.config.num_hidden_layers == layers:
            widths.append(inputs["input_ids"].shape[1])

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield widths
    finally:
        handle.remove()


def _drafts_of_passes(widths: list[int], prompt_tokens: int, output_tokens: int) -> dict[str, int]:
    """Drafts of an output whose every pass took one known token and those drafted after it.

    The first took the prompt for the one known token. Each yields its accepted drafts and a token
    of its own.
    """
    rounds = len(widths)
    drafted = sum(widths) - prompt_tokens - (rounds - 1)
    return {"rounds": rounds, "drafted": drafted, "accepted": output_tokens - rounds}


def _economize(side: Side, setting: Setting) -> Engine:
    import economize
    from economize.techniques.early_exit import EarlyExitConfig
    from economize.techniques.lookup import LookupConfig

    techniques = []
    if side.exit_layer:
        # The model's own norm and head, as the other sides have them.
        techniques = [EarlyExitConfig(exit_layer=side.exit_layer, head="shared")]
    elif side.drafts:
        techniques = [LookupConfig(max_ngram=LONGEST_NGRAM)]
    model = economize.apply(setting.model, *techniques)
    # A cycle is the drafts and the token of the exact pass. Its compilation is CUDA graphs.
    decoding = economize.DecodeConfig(
        cycle_length=(side.drafts or 0) + 1, cuda_graphs=side.compiled
    )

    def decode(ids: list[int], steps: int) -> Decoded:
        made = model.decode(setting.column(ids)[0], steps, decoding=decoding)
        drafts = _drafts(made.acceptance) if side.drafts else {}
        return Decoded(made.tokens.tolist(), **drafts)

    return Engine(decode)


def _flashspec(side: Side, setting: Setting) -> Engine:
    import flashspec
    from flashspec.engine import ArmSpec, NgramDrafter, TargetModel

    model = setting.model
    config = flashspec.FlashSpecConfig(
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        compile=side.compiled,
        compile_max_cache_len=max(16, setting.capacity + side.drafts + 1),
        bandit=flashspec.BanditConfig(n_arms=1),
        sampling=flashspec.SamplingConfig(temperature=0, variant="greedy", gamma=side.drafts),
    )
    target = TargetModel("target", model.device, model.dtype, model=model)
    drafter = NgramDrafter(max_ngram=LONGEST_NGRAM)
    only = ArmSpec(drafter=0, gamma=side.drafts)
    engine = flashspec.SpeculativeEngine(config, [drafter], target, arms=[only])

    def decode(ids: list[int], steps: int) -> Decoded:
        made = engine.generate(setting.column(ids), steps, eos_token_ids=())
        rounds = [(step.proposed, step.accepted) for step in made.arm_steps]
        return Decoded(made.output_ids[0].tolist(), **_drafts(rounds))

    return Engine(decode)


def _drafts(rounds: list[tuple[int, int]]) -> dict[str, int]:
    return {
        "rounds": len(rounds),
        "drafted": sum(drafted for drafted, _ in rounds),
        "accepted": sum(accepted for _, accepted in rounds),
    }


ENGINES: dict[str, Callable[[Side, Setting], Engine]] = {
    OURS: _this_project,
    "transformers": _transformers,
    "economize": _economize,
    "flashspec": _flashspec,
}
