"""Trains a Llama with the LayerSkip recipe: from scratch, further, or by adapters."""

import os
import sys

from arguments.prompts import with_stored_template
from command_line.flags import parse
from command_line.script import command_text, run_script
from training.arguments import (
    LearnerArguments,
    OptimizationArguments,
    TrainingArguments,
    TrainingDataArguments,
    TrainingLogArguments,
)
from training.layerskip_recipe import Recipe

GROUPS = (
    LearnerArguments,
    TrainingDataArguments,
    Recipe,
    OptimizationArguments,
    TrainingLogArguments,
)

# oneDNN keeps a kernel for each of the last 1,024 shapes, and few batches share a shape: within
# some thousand steps that took 5 GB, and saved no time.
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def main(argv: list[str] | None = None) -> int:
    learner, data, *others = parse(argv, __doc__, *GROUPS)
    if learner.model is not None and data.dataset is not None:
        data = with_stored_template(data, learner.model, data.dataset)
    arguments = TrainingArguments(learner, data, *others)
    for cache in KERNEL_CACHES:
        os.environ.setdefault(cache, "64")
    # Read the texts before torch is imported, so that bad rows are refused within a second.
    from training.texts import get_training_texts

    texts = get_training_texts(arguments.data, arguments.optimization.seed)

    from training.run import run_training

    return run_training(arguments, texts, command_text(argv))


if __name__ == "__main__":
    sys.exit(run_script(main))
