"""What defines a run, before its weights are read, and the name that follows from it.

The name is the run id: a hash of all that defines the run, known before anything is decoded, so
that a run that was broken off is found again.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.prompts import DataArguments
from arguments.pruning import PruneArguments
from arguments.run import RunArguments
from data import Selection, get_prompts
from files.hashes import content_hash, identity_hash, tokens_hash
from models.checkpoint import Checkpoint, find_checkpoint
from models.quantised import check_can_be_saved
from models.runtime import Runtime, start
from runs import code_execution
from runs.metrics import scoring
from runs.prompt_encoding import check_chat_template, encode_all
from self_speculation.generator_base import ENGINE_VERSION

# Which of the folder's weights are read, and where they lie. What else --model_args may say is
# known otherwise, or changes neither tokens nor speed.
_DECISIVE_MODEL_ARGS = ("variant", "device_map", "max_memory")


@dataclass(frozen=True)
class RunDefinition:
    """A run whose model and examples are found.

    `prompt_ids` and `calibration_ids` are the tokens of the examples, as the model reads them.
    """

    arguments: RunArguments
    runtime: Runtime
    checkpoint: Checkpoint
    evaluated: Selection
    calibration: Selection | None
    prompt_ids: list[list[int]]
    calibration_ids: list[list[int]] | None

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """What a log says of the examples."""
        return {
            "evaluation": selection_facts(self.evaluated),
            "calibration": self.calibration and selection_facts(self.calibration),
            "stop_words": self.arguments.stop_words,
        } | ({"execution": code_execution.isolation()} if self._executes else {})

    @cached_property
    def scoring(self) -> dict[str, Any]:
        """How texts are scored: one rule for all examples, whichever process decodes them."""
        return scoring(example.reference for example in self.evaluated.examples)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that defines the run: the same identity, the same tokens at the same speed.

        And the same scores: tests that are executed are part of it. Prompts count by their tokens
        too, since a chat template may put other words around the same text, such as the date.
        """
        arguments, calibration = self.arguments, self.calibration_ids
        return (
            {
                "dataset": arguments.data.dataset,
                "data_fingerprint": self.data_facts["evaluation"]["fingerprint"],
                "prompt_tokens_fingerprint": tokens_hash(self.prompt_ids),
                "apply_chat_template": arguments.data.apply_chat_template,
                "truncate_prompt": arguments.data.truncate_prompt,
                "plan": plan_identity(arguments.prune, calibration and tokens_hash(calibration)),
                "generation": decoding_identity(arguments.generation, arguments.stop_words),
            }
            | engine_identity(arguments.model, self.runtime, self.checkpoint)
            | self._tests_identity
        )

    @property
    def _executes(self) -> bool:
        return self.arguments.data.execute_code

    @property
    def _tests_identity(self) -> dict[str, str]:
        """Empty where no tests are run, so that such a run is called as it always was."""
        if not self._executes:
            return {}
        tests = (example.tests for example in self.evaluated.examples)
        return {"tests_fingerprint": content_hash(*tests)}

    @property
    def run_id(self) -> str:
        return identity_hash(self.identity)


def engine_identity(
    arguments: ModelArguments, runtime: Runtime, checkpoint: Checkpoint
) -> dict[str, Any]:
    """What decodes, on what."""
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


def plan_identity(flags: PruneArguments, calibration: str | None) -> dict[str, Any]:
    """Return what decides the plan; calibration examples count by their tokens."""
    return {
        "method": flags.prune_method,
        "prune_n": flags.prune_n,
        "dropout_threshold": flags.dropout_threshold,
        "prune_seed": flags.prune_seed if flags.prune_method == "random" else None,
        "calibration_fingerprint": calibration,
    }


def decoding_identity(flags: GenerationArguments, stop_words: tuple[str, ...]) -> dict[str, Any]:
    """The flags of decoding, those without effect on it set to None."""
    idle = [] if flags.sample else ["temperature", "top_k", "top_p", "seed"]
    if flags.generation_strategy == "autoregressive":
        idle.append("num_speculations")
    return dataclasses.asdict(flags) | dict.fromkeys(idle) | {"stop_words": stop_words}


def define_run(
    arguments: RunArguments, prompts: tuple[Selection, Selection | None] | None
) -> RunDefinition:
    """Settles the device and finds the model, and the examples unless they are local and known.

    The model comes first: one that is gated should not cost the download of a data set.
    """
    runtime = start(arguments.model, parallel=True)
    checkpoint = find_checkpoint(arguments.model)
    check_can_be_saved(
        "save_pruned", arguments.prune.save_pruned, checkpoint.name, checkpoint.config
    )
    check_chat_template(arguments.data, checkpoint)
    seed = arguments.generation.seed
    found = prompts or get_prompts(arguments.data, arguments.prune, seed)
    ids = [encode_all(arguments.data, checkpoint, selection) for selection in found]
    return RunDefinition(arguments, runtime, checkpoint, *found, *ids)


def run_definer() -> Callable[[RunArguments], RunDefinition]:
    """Return a function that defines runs; it finds each model and reads each example once."""
    checkpoint_of = functools.cache(find_checkpoint)
    prompts_of = functools.cache(get_prompts)

    @functools.cache
    def ids_of(model: ModelArguments, data: DataArguments, *others: Any) -> list[Any]:
        checkpoint = checkpoint_of(model)
        return [encode_all(data, checkpoint, found) for found in prompts_of(data, *others)]

    def find(arguments: RunArguments) -> RunDefinition:
        runtime = start(arguments.model, parallel=True)
        checkpoint = checkpoint_of(arguments.model)
        check_chat_template(arguments.data, checkpoint)
        calibration = _what_calibrates(arguments.prune)
        drawn_by = arguments.data, calibration, arguments.generation.seed
        found, ids = prompts_of(*drawn_by), ids_of(arguments.model, *drawn_by)
        return RunDefinition(arguments, runtime, checkpoint, *found, *ids)

    return find


def _what_calibrates(flags: PruneArguments) -> PruneArguments:
    """The flags that decide on which examples a plan calibrates, the others as they come."""
    if not flags.calibrates():
        return PruneArguments()
    return dataclasses.replace(flags, prune_n=None, save_pruned=None)


def selection_facts(selection: Selection) -> dict[str, Any]:
    """Where examples come from, and a fingerprint of their texts."""
    texts = ((e.example_id, e.prompt, e.reference) for e in selection.examples)
    return selection.facts() | {"fingerprint": content_hash(*itertools.chain(*texts))}
