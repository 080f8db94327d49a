"""The settings that decide what a training learns; a folder holds one training's."""

import hashlib
from array import array
from pathlib import Path
from typing import Any

from command_line.errors import UsageError
from training.arguments import TrainingArguments
from training.documents import Document

Configuration = dict[str, Any]

# Flags whose contents are compared instead: documents, models, a tokenizer's tokens.
_COMPARED_BY_CONTENTS = (
    *("data_path", "eval_path", "num_samples"),
    *("config", "tokenizer", "model", "teacher", "device"),
)
_DECIDE_ROUNDING_ALONE = ("compile",)
# The value that is left of a flag that earlier versions had: what they began goes on.
_FORMER_FLAGS = {"--batching": "length_grouped"}


def configuration(
    arguments: TrainingArguments,
    documents: list[Document],
    fingerprints: dict[str, str],
    device_type: str,
) -> Configuration:
    """Return all that decides what is learned; `fingerprints` name the models by contents."""
    groups = (arguments.learner, arguments.data, arguments.recipe, arguments.optimization)
    flags = {name: value for group in groups for name, value in vars(group).items()}
    decisive = {
        f"--{name}": value
        for name, value in flags.items()
        if name not in (*_COMPARED_BY_CONTENTS, *_DECIDE_ROUNDING_ALONE)
    }
    digest = hashlib.sha256()
    for document in documents:
        digest.update(array("q", document.ids).tobytes() + bytes(document.learned) + b"|")
    data = {"data": digest.hexdigest()[:16], "device": device_type}
    return decisive | fingerprints | data


def check_configuration(folder: Path, found: Any, asked: Configuration) -> None:
    """Refuse to go on with a training that other flags or data began."""
    if not isinstance(found, dict):
        raise UsageError(f"--output_dir {folder}: holds a training whose settings are {found!r}")
    found, asked = _FORMER_FLAGS | found, asked | _FORMER_FLAGS
    for name in [*asked, *found]:
        if found.get(name) != asked.get(name):
            raise UsageError(
                f"--output_dir {folder}: holds a training whose {name} is {found.get(name)}, not "
                f"{asked.get(name)}; name another folder, or the settings that it began with"
            )
