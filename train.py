"""Trains a Llama with the LayerSkip recipe: from scratch, further, or by adapters."""

import sys

from arguments import with_stored_template
from command_line import command_text, parse, run_script
from training_arguments import (
    LearnerArguments,
    OptimizationArguments,
    RecipeArguments,
    TrainingArguments,
    TrainingDataArguments,
    TrainingLogArguments,
)

GROUPS = (
    LearnerArguments,
    TrainingDataArguments,
    RecipeArguments,
    OptimizationArguments,
    TrainingLogArguments,
)


def main(argv: list[str] | None = None) -> int:
    learner, data, *others = parse(argv, __doc__, *GROUPS)
    if learner.model is not None and data.dataset is not None:
        data = with_stored_template(data, learner.model, data.dataset)
    arguments = TrainingArguments(learner, data, *others)
    # What needs no torch comes first, so that it is refused within a second.
    from training_text import get_training_texts

    texts = get_training_texts(arguments.data, arguments.optimization.seed)

    from training_run import run_training

    return run_training(arguments, texts, command_text(argv))


if __name__ == "__main__":
    sys.exit(run_script(main))
