"""All that defines a run, known before its weights are read.

The run id is a hash of it, so that a later start finds the log of an interrupted run.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.prompts import DataArguments
from arguments.pruning import PruneArguments, named_layers
from arguments.run import RunArguments
from data import Prompts, Selection, get_prompts
from files.hashes import content_hash, identity_hash, tokens_hash
from models.checkpoint import Checkpoint, find_checkpoint
from models.quantised import check_can_be_saved
from models.runtime import Runtime, start
from prompts.dataset_table import DATASETS
from runs import code_execution
from runs.metrics import scoring
from runs.passages import check_windows, encode_texts
from runs.prompt_encoding import check_chat_template, encode_all
from self_speculation.generator_base import ENGINE_VERSION

# The other keys of --model_args change neither tokens nor speed, or are part of the identity.
_DECISIVE_MODEL_ARGS = ("variant", "device_map", "max_memory")


@dataclass(frozen=True)
class RunDefinition:
    """A run's flags, device, checkpoint, examples, and the tokens of the examples' prompts."""

    arguments: RunArguments
    runtime: Runtime
    checkpoint: Checkpoint
    evaluated: Selection
    calibration: Selection | None
    prompt_ids: list[list[int]]
    calibration_ids: list[list[int]] | None

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """Return what a log says of the examples."""
        facts = {
            "evaluation": self.evaluated.facts(),
            "calibration": self.calibration and self.calibration.facts(),
            "stop_words": self.arguments.stop_words,
        }
        if self.arguments.data.execute_code:
            facts["execution"] = code_execution.isolation()
        if self.arguments.is_plain_text:
            facts |= self.arguments.measure.windows()
        return facts

    @cached_property
    def scoring(self) -> dict[str, Any]:
        """Return how texts are scored: one rule for the examples of all processes."""
        return scoring(example.reference for example in self.evaluated.examples)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Return all that defines the run: equal identities, equal tokens, speed and scores.

        Includes the prompts' tokens, because a chat template may add varying text, such as the
        date.
        """
        arguments, data = self.arguments, self.arguments.data
        identity = {
            "dataset": data.dataset,
            "data_fingerprint": self.data_facts["evaluation"]["fingerprint"],
            "prompt_tokens_fingerprint": tokens_hash(self.prompt_ids),
            "apply_chat_template": data.apply_chat_template,
            "truncate_prompt": data.truncate_prompt,
            "plan": plan_identity(arguments.prune, self.calibration_ids),
            "generation": self._decoding_identity(),
        } | engine_identity(arguments.model, self.runtime, self.checkpoint)
        if data.execute_code:  # otherwise no key, so that the ids of other runs stay the same
            tests = (example.tests or "" for example in self.evaluated.examples)
            identity["tests_fingerprint"] = content_hash(*tests)
        if data.numeric_match and not DATASETS[data.dataset].numeric:
            identity["numeric_match"] = True
        if DATASETS[data.dataset].turns and data.max_prompt_tokens:
            # It cuts later turns too, whose tokens are not known yet.
            identity["max_prompt_tokens"] = data.max_prompt_tokens
        if arguments.drafting is not None:
            identity["draft_plan"] = plan_identity(arguments.drafting, self.calibration_ids)
        return identity | self._draft_identity() | arguments.identity_of_measuring()

    def _draft_identity(self) -> dict[str, Any]:
        """Return what defines the drafts, as a key only where it is not the default."""
        found = self.arguments.draft.identity()
        if self.arguments.draft.draft_vocab is not None:
            flags, ids = self.arguments.calibrating, self.calibration_ids
            found["calibration_fingerprint"] = tokens_hash(ids or [])
            found["calibration_text"] = flags.calibration_text, flags.calibration_steps
        return {"drafting": found} if found else {}

    def _decoding_identity(self) -> dict[str, Any]:
        """Return the flags of decoding; of those, plain texts depend on the exit layer alone."""
        flags = self.arguments.generation
        if self.arguments.is_plain_text:
            flags = GenerationArguments(exit_layer=flags.exit_layer, sample=False)
        return decoding_identity(flags, self.arguments.stop_words)

    @property
    def run_id(self) -> str:
        return identity_hash(self.identity)


def engine_identity(
    arguments: ModelArguments, runtime: Runtime, checkpoint: Checkpoint
) -> dict[str, Any]:
    """Return what identifies the model, the device and the engine."""
    facts, options = runtime.facts(), arguments.options
    return {
        "model_fingerprint": checkpoint.fingerprint,
        "model_args": {key: options[key] for key in _DECISIVE_MODEL_ARGS if key in options},
        "dtype": facts["dtype"],
        "device": facts["device"],
        "attention": checkpoint.attention,
        "compile": runtime.compiled,
        "engine_version": ENGINE_VERSION,
    }


def plan_identity(flags: PruneArguments, tokens: list[list[int]] | None) -> dict[str, Any]:
    """Return what decides the plan; `tokens` are those of the calibration examples.

    Flags of newer methods are keys only where they are used, so that other runs keep their ids.
    """
    identity: dict[str, Any] = {
        "method": flags.prune_method,
        "prune_n": flags.prune_n,
        "dropout_threshold": flags.dropout_threshold,
        "prune_seed": flags.prune_seed if flags.prune_method == "random" else None,
        "calibration_fingerprint": None,
    }
    if tokens is not None and flags.calibrates():  # another plan may calibrate on them alone
        identity["calibration_fingerprint"] = tokens_hash(tokens)
    if flags.prune_layers is not None:
        identity["prune_layers"] = named_layers("prune_layers", flags.prune_layers)
    if flags.prune_patch != "none":
        identity["prune_patch"] = flags.prune_patch
    if flags.calibrates() and flags.calibration_text != "prompts":
        identity["calibration_text"] = flags.calibration_text, flags.calibration_steps
    return identity


def decoding_identity(flags: GenerationArguments, stop_words: tuple[str, ...]) -> dict[str, Any]:
    """Return the flags of decoding; those without effect are None."""
    idle = [] if flags.sample else ["temperature", "top_k", "top_p", "seed"]
    if flags.generation_strategy == "autoregressive":
        idle.append("num_speculations")
    return dataclasses.asdict(flags) | dict.fromkeys(idle) | {"stop_words": stop_words}


def define_run(arguments: RunArguments, prompts: Prompts | None) -> RunDefinition:
    """Define a single run; `prompts` are its examples if they have been read already."""
    return run_definer((lambda *_: prompts) if prompts else get_prompts)(arguments)


def run_definer(
    read: Callable[..., Prompts] = get_prompts,
) -> Callable[[RunArguments], RunDefinition]:
    """Return a function that defines runs, and finds each model and reads each example once.

    It chooses the device and finds the model before it reads examples, so that a gated model does
    not cost the download of a data set.
    """
    checkpoint_of, prompts_of = functools.cache(find_checkpoint), functools.cache(read)

    @functools.cache
    def ids_of(
        model: ModelArguments, data: DataArguments, calibration: PruneArguments, seed: int
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        evaluated, calibrating = prompts_of(data, calibration, seed)
        encoded = partial(encode_all, data, checkpoint_of(model))
        calibration_ids = None if calibrating is None else encoded(calibrating)
        if DATASETS[data.dataset].plain_text:
            return encode_texts(checkpoint_of(model), evaluated), calibration_ids
        return encoded(evaluated), calibration_ids

    def define(arguments: RunArguments) -> RunDefinition:
        runtime = start(arguments.model, parallel=True)
        checkpoint, folder = checkpoint_of(arguments.model), arguments.prune.save_pruned
        check_can_be_saved("save_pruned", folder, checkpoint.name, checkpoint.config)
        converses = DATASETS[arguments.data.dataset].turns is not None
        check_chat_template(arguments.data, checkpoint, converses)
        check_windows(arguments, checkpoint)
        calibration = _calibration_flags(arguments.calibrating)
        drawn_by = arguments.data, calibration, arguments.generation.seed
        found, ids = prompts_of(*drawn_by), ids_of(arguments.model, *drawn_by)
        return RunDefinition(arguments, runtime, checkpoint, *found, *ids)

    return define


def _calibration_flags(flags: PruneArguments) -> PruneArguments:
    """Return the flags with those reset that do not decide which examples calibrate the plan."""
    if not flags.calibrates():
        return PruneArguments()
    return dataclasses.replace(flags, prune_n=None, save_pruned=None)
