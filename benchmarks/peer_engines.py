"""This project and its peers behind one call, from prompt ids to new ids.

A peer is imported where it is built, so that the others run without it.
"""

import copy
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arguments.pruning import PruneArguments
from benchmarks.gguf_files import write_gguf
from benchmarks.llama_cpp import complete, start_server
from models.weight_layout import favour_single_rows
from pruned_model import PruneModel, make_plan
from pruning.measurements import Measurements
from self_speculation.generator_base import Generation, GenerationConfig
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator

OURS = "this project"
PACKAGES = ("economize", "flashspec", "xllamacpp")
LONGEST_NGRAM = 3  # newest tokens that prompt lookup searches for in earlier ones


@dataclass(frozen=True)
class Side:
    """One of the decoders that are compared. `drafts` is the most tokens drafted per round.

    Outputs of a model without its `removed` layers are not compared.
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
        """Return the same system's autoregressive decoding of the whole model."""
        return Side(self.system, compiled=self.compiled)


GENERATE = Side("transformers")


@dataclass
class Decoded:
    """New token ids, and the facts that the side reports; None is not reported.

    `rounds`, `drafted` and `accepted` count verified drafts. `decode_seconds` and `steps` exclude
    the prompt's pass and the first token.
    """

    output_ids: list[int]
    rounds: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    decode_seconds: float | None = None
    steps: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of_rounds(
        cls, output_ids: list[int], rounds: list[tuple[int, int]], **timing: Any
    ) -> "Decoded":
        """Return the output of rounds, each of (drafted, accepted) tokens."""
        drafted, accepted = sum(d for d, _ in rounds), sum(a for _, a in rounds)
        return cls(output_ids, len(rounds), drafted, accepted, **timing)

    @classmethod
    def of_generation(cls, made: Generation) -> "Decoded":
        """Return the output of this project."""
        steps = {name: vars(step) for name, step in made.steps.items()}
        timing: dict[str, Any] = {"decode_seconds": made.decode_seconds, "steps": steps}
        if made.rounds:
            return cls.of_rounds(made.output_ids, made.rounds, **timing)
        return cls(made.output_ids, **timing)

    def check_count(self, steps: int) -> None:
        """Raise RuntimeError for another number of tokens, whose speed would differ."""
        if len(self.output_ids) != steps:
            raise RuntimeError(f"made {len(self.output_ids)} tokens, not {steps}")


@dataclass
class Engine:
    """A decoder: `decode(prompt_ids, steps)` returns exactly so many new tokens."""

    decode: Callable[[list[int], int], Decoded]
    compile_seconds: float | None = None


@dataclass
class Setting:
    """The weights that all sides share, and room for the longest sequence.

    The model is a causal model of transformers, as transformers loads it.
    """

    model: Any
    tokenizer: Any
    capacity: int
    prompts: list[list[int]]
    sampling: SamplingRule = SamplingRule()  # of this project's sides
    models: dict[tuple[int, bool], Any] = field(default_factory=dict)
    gguf: Path | None = None

    @classmethod
    def endless(
        cls, model: Any, tokenizer: Any, capacity: int, prompts: list[list[int]]
    ) -> "Setting":
        """Return a setting without an end token, so that all sides decode equally many tokens."""
        model.generation_config.eos_token_id = None
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.eos_token = None
        return cls(model, tokenizer, capacity, prompts)

    def without(self, removed: int, compiled: bool) -> Any:
        """Return the model without so many layers, with the weights in this project's layout.

        Angular distance on the prompts chooses the layers.
        """
        if not removed and compiled:
            return self.model
        if (removed, compiled) not in self.models:
            model = _sharing_copy(self.without(0, compiled) if removed else self.model)
            if removed:
                prompts = [torch.tensor([ids]) for ids in self.prompts]
                arguments = PruneArguments(prune_method="angular", prune_n=removed)
                measured = Measurements(model, lambda: prompts)
                PruneModel(model, make_plan(arguments, measured)).prune()
            if not compiled:
                favour_single_rows(model)
            self.models[removed, compiled] = model
        return self.models[removed, compiled]

    def gguf_file(self) -> Path:
        """Return the model in a temporary file, which is deleted with this setting or at exit."""
        if not self.gguf:
            folder = Path(tempfile.mkdtemp())
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            write_gguf(self.model, folder / "model.gguf")
            self.gguf = folder / "model.gguf"
        return self.gguf

    def column(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.model.device)


def _sharing_copy(model: Any) -> Any:
    """Return a copy whose modules and parameters can be changed, over the same memory."""
    shared = {
        id(parameter): nn.Parameter(parameter.data, requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, shared)


def build(side: Side, setting: Setting) -> Engine:
    """Return the side's engine. Raise ImportError without its package, or the package's error."""
    return ENGINES[side.system](side, setting)


def _this_project(side: Side, setting: Setting) -> Engine:
    config = GenerationConfig(
        sampling=setting.sampling,
        kept_exit_layer=side.exit_layer,
        num_speculations=side.drafts or 0,
    )
    strategy = "self_speculative" if side.exit_layer else "autoregressive"
    model = setting.without(side.removed, side.compiled)
    generator = TextGenerator(
        model, setting.tokenizer, strategy, config, setting.capacity, side.compiled
    )

    def decode(ids: list[int], steps: int) -> Decoded:
        return Decoded.of_generation(generator.generate(ids, max_steps=steps))

    return Engine(decode, generator.engine.compile_seconds)


def _transformers(side: Side, setting: Setting) -> Engine:
    from transformers import CompileConfig

    model = setting.model
    options: dict[str, Any] = {"do_sample": False}
    if side.compiled:
        compile_config: Any = CompileConfig()
        # Without an accelerator, transformers 5.23 compiles only by this private switch.
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
        return _decoded_by_passes(made[0, len(ids) :].tolist(), widths, len(ids))

    return Engine(decode)


@contextmanager
def _assisting(model: Any, drafts: int) -> Iterator[None]:
    """Fix the draft length of transformers' early exit, and restore the model's config.

    transformers 5.23 reads these settings from the model's generation config and ignores them as
    arguments of `generate`. While it drafts, it shortens the model's config; an error leaves it so.
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
def _full_passes(model: Any) -> Iterator[list[int]]:
    """Yield the list of tokens per pass over all layers; drafting passes have fewer layers."""
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


def _decoded_by_passes(output_ids: list[int], widths: list[int], prompt_tokens: int) -> Decoded:
    """Return the output of passes over all layers, each of a known token and its drafts.

    The first pass has the prompt for the known token. Each pass yields its accepted drafts and a
    token of its own.
    """
    rounds = len(widths)
    drafted = sum(widths) - prompt_tokens - (rounds - 1)
    return Decoded(output_ids, rounds, drafted, accepted=len(output_ids) - rounds)


def _economize(side: Side, setting: Setting) -> Engine:
    import economize
    from economize.techniques.early_exit import EarlyExitConfig
    from economize.techniques.lookup import LookupConfig

    techniques = []
    if side.exit_layer:
        # The other sides exit through the model's own norm and head too.
        techniques = [EarlyExitConfig(exit_layer=side.exit_layer, head="shared")]
    elif side.drafts:
        techniques = [LookupConfig(max_ngram=LONGEST_NGRAM)]
    model = economize.apply(setting.model, *techniques)
    # A cycle holds the drafts and the token of the exact pass. CUDA graphs are its compilation.
    decoding = economize.DecodeConfig(
        cycle_length=(side.drafts or 0) + 1, cuda_graphs=side.compiled
    )

    def decode(ids: list[int], steps: int) -> Decoded:
        made = model.decode(setting.column(ids)[0], steps, decoding=decoding)
        if side.drafts:
            return Decoded.of_rounds(made.tokens.tolist(), made.acceptance)
        return Decoded(made.tokens.tolist())

    return Engine(decode)


def _flashspec(side: Side, setting: Setting) -> Engine:
    import flashspec
    from flashspec.engine import ArmSpec, NgramDrafter, TargetModel

    model, drafts = setting.model, side.drafts or 0
    config = flashspec.FlashSpecConfig(
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        compile=side.compiled,
        compile_max_cache_len=max(16, setting.capacity + drafts + 1),
        bandit=flashspec.BanditConfig(n_arms=1),
        sampling=flashspec.SamplingConfig(temperature=0, variant="greedy", gamma=drafts),
    )
    target = TargetModel("target", model.device, model.dtype, model=model)
    drafter = NgramDrafter(max_ngram=LONGEST_NGRAM)
    only = ArmSpec(drafter=0, gamma=drafts)
    engine = flashspec.SpeculativeEngine(config, [drafter], target, arms=[only])

    def decode(ids: list[int], steps: int) -> Decoded:
        made = engine.generate(setting.column(ids), steps, eos_token_ids=())
        rounds = [(step.proposed, step.accepted) for step in made.arm_steps]
        return Decoded.of_rounds(made.output_ids[0].tolist(), rounds)

    return Engine(decode)


def _llama_cpp(side: Side, setting: Setting) -> Engine:
    import xllamacpp

    model, drafts = setting.model, side.drafts or 0
    if model.device.type != "cpu":
        raise RuntimeError("xllamacpp's wheel on PyPI decodes on the CPU only")
    path = setting.gguf_file()
    server = start_server(xllamacpp, path, model.dtype, setting.capacity, drafts)

    def decode(ids: list[int], steps: int) -> Decoded:
        output_ids, timings = complete(server, ids, steps)
        seconds = timings["predicted_ms"] / 1000
        if not drafts:
            return Decoded(output_ids, decode_seconds=seconds)
        drafted, accepted = timings.get("draft_n", 0), timings.get("draft_n_accepted", 0)
        # Each pass yields its accepted drafts and a token of its own.
        return Decoded(output_ids, len(output_ids) - accepted, drafted, accepted, seconds)

    return Engine(decode)


ENGINES: dict[str, Callable[[Side, Setting], Engine]] = {
    OURS: _this_project,
    "transformers": _transformers,
    "economize": _economize,
    "flashspec": _flashspec,
    "llama.cpp": _llama_cpp,
}
