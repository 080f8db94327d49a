"""One cell of a study before its weights are read: what is to be run, and by which name.

The name is the run id: a hash of all that defines the run, known before anything is decoded, so
that a run that was broken off is found again.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from arguments import CellArguments
from data import Selection, get_prompts
from prompt_encoding import check_chat_template
from run_log import content_hash, identity_hash
from runtime import Checkpoint, Runtime, find_checkpoint, start
from self_speculation.generator_base import ENGINE_VERSION

# Which of the folder's weights are read, and where they lie. What else --model_args may say is
# known otherwise, or changes neither tokens nor speed.
_DECISIVE_MODEL_ARGS = ("variant", "device_map")


@dataclass(frozen=True)
class Cell:
    """A cell whose model and examples are found."""

    arguments: CellArguments
    runtime: Runtime
    checkpoint: Checkpoint
    evaluated: Selection
    calibration: Selection | None

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """What a log says of the examples."""
        return {
            "evaluation": _selection_facts(self.evaluated),
            "calibration": self.calibration and _selection_facts(self.calibration),
            "stop_words": self.arguments.stop_words,
        }

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that defines the run: the same identity, the same tokens at the same speed."""
        arguments, facts = self.arguments, self.runtime.facts()
        extra = arguments.model.extra()
        return {
            "model_fingerprint": self.checkpoint.fingerprint,
            "model_args": {key: extra[key] for key in _DECISIVE_MODEL_ARGS if key in extra},
            "dataset": arguments.data.dataset,
            "data_fingerprint": self.data_facts["evaluation"]["fingerprint"],
            "apply_chat_template": arguments.data.apply_chat_template,
            "truncate_prompt": arguments.data.truncate_prompt,
            "plan": self._plan_identity(),
            "generation": self._decoding_identity(),
            "dtype": facts["dtype"],
            "device": facts["device"],
            "attention": self.checkpoint.attention,
            "compile": False,
            "engine_version": ENGINE_VERSION,
        }

    @property
    def run_id(self) -> str:
        return identity_hash(self.identity)

    def _plan_identity(self) -> dict[str, Any]:
        """What the plan is decided by; calibration examples by their texts, however drawn."""
        flags = self.arguments.prune
        calibration = self.data_facts["calibration"]
        return {
            "method": flags.prune_method,
            "prune_n": flags.prune_n,
            "dropout_threshold": flags.dropout_threshold,
            "prune_seed": flags.prune_seed if flags.prune_method == "random" else None,
            "calibration_fingerprint": calibration and calibration["fingerprint"],
        }

    def _decoding_identity(self) -> dict[str, Any]:
        """The flags of decoding, those without effect on it set to None."""
        flags = self.arguments.generation
        idle = [] if flags.sample else ["temperature", "top_k", "top_p", "seed"]
        if flags.generation_strategy == "autoregressive":
            idle.append("num_speculations")
        words = {"stop_words": self.arguments.stop_words}
        return dataclasses.asdict(flags) | dict.fromkeys(idle) | words


def find_cell(arguments: CellArguments, prompts: tuple[Selection, Selection | None] | None) -> Cell:
    """Settles the device and finds the model, and the examples unless they are local and known.

    The model comes first: one that is gated should not cost the download of a data set.
    """
    runtime = start(arguments.model)
    checkpoint = find_checkpoint(arguments.model)
    check_chat_template(arguments.data, checkpoint)
    seed = arguments.generation.seed
    found = prompts or get_prompts(arguments.data, arguments.prune, seed)
    return Cell(arguments, runtime, checkpoint, *found)


def _selection_facts(selection: Selection) -> dict[str, Any]:
    """Where examples come from, and a fingerprint of their texts."""
    texts = ((e.example_id, e.prompt, e.reference) for e in selection.examples)
    return selection.facts() | {"fingerprint": content_hash(*itertools.chain(*texts))}
