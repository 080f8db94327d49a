"""All flags of one run."""

import typing
from dataclasses import dataclass, field

from arguments.generation import GenerationArguments
from arguments.measuring import MeasureArguments
from arguments.model import ModelArguments
from arguments.prompts import DataArguments, with_stored_template
from arguments.pruning import PruneArguments
from command_line.errors import reject
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
    measure: MeasureArguments = field(default_factory=MeasureArguments)

    def __post_init__(self) -> None:
        strategy, size = self.generation.generation_strategy, self.measure.batch_size
        if size > 1 and strategy != "autoregressive":
            allowed = f"--generation_strategy {strategy} decodes one prompt at a time"
            reject("batch_size", size, allowed)
        self.data = with_stored_template(self.data, self.model.model, self.data.dataset)

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Return the words of `--stop_words`; without the flag, the data set's own."""
        chosen = self.generation.chosen_stop_words()
        return DATASETS[self.data.dataset].stop_words if chosen is None else chosen


MEASURED_GROUPS = tuple(typing.get_type_hints(RunArguments).values())
RUN_GROUPS = MEASURED_GROUPS[:-1]  # of a script that decodes and measures nothing
