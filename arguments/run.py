"""All flags of one run."""

import typing
from dataclasses import dataclass

from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.prompts import DataArguments, with_stored_template
from arguments.pruning import PruneArguments
from command_line.flags import check_new_folder, flag
from prompts.dataset_table import DATASETS


@dataclass
class LogArguments:
    """Where results go."""

    output_dir: str = flag("./logs", "folder of the run's two files")

    def check(self) -> None:
        check_new_folder("output_dir", self.output_dir, may_exist=True)


@dataclass
class RunArguments:
    """All flags of one run; a checkpoint's own template is filled in."""

    model: ModelArguments
    data: DataArguments
    prune: PruneArguments
    generation: GenerationArguments
    log: LogArguments

    def __post_init__(self) -> None:
        self.data = with_stored_template(self.data, self.model.model, self.data.dataset)

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Return the words of `--stop_words`; without the flag, the data set's own."""
        chosen = self.generation.chosen_stop_words()
        return DATASETS[self.data.dataset].stop_words if chosen is None else chosen


RUN_GROUPS = tuple(typing.get_type_hints(RunArguments).values())
