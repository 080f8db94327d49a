"""All flags of one run."""

import typing
from dataclasses import dataclass, field, replace
from typing import Any

from arguments.drafting import DraftArguments, calibrating, check_together
from arguments.generation import GenerationArguments
from arguments.measuring import MeasureArguments
from arguments.model import ModelArguments
from arguments.prompts import DataArguments, with_stored_template
from arguments.pruning import PruneArguments
from command_line.errors import reject
from command_line.flags import check_new_folder, flag
from prompts.dataset_table import DATASETS

_PLAIN_TEXTS = tuple(name for name, dataset in DATASETS.items() if dataset.plain_text)


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
    draft: DraftArguments = DraftArguments()
    measure: MeasureArguments = field(default_factory=MeasureArguments)

    def __post_init__(self) -> None:
        check_together(self.prune, self.generation, self.draft)
        strategy, size = self.generation.generation_strategy, self.measure.at_once
        if size > 1 and strategy != "autoregressive":
            allowed = f"--generation_strategy {strategy} decodes one prompt at a time"
            reject("batch_size", size, allowed)
        if self.draft.lookup_history and self.measure.repeats > 1:
            allowed = "would look answers up in those of the pass before, with --repeats"
            reject("lookup_history", "true", allowed)
        if self.is_plain_text:
            self._check_plain_text()
            return
        self._check_prompts()
        self.data = with_stored_template(self.data, self.model.model, self.data.dataset)

    @property
    def drafting(self) -> PruneArguments | None:
        """The flags of the drafter's plan; None for another drafter."""
        return self.draft.pruning(self.prune)

    @property
    def calibrating(self) -> PruneArguments:
        """The flags that decide which examples calibrate the plans."""
        return calibrating(self.prune, self.draft)

    @property
    def is_plain_text(self) -> bool:
        """Whether the run measures whole texts and decodes nothing."""
        return DATASETS[self.data.dataset].plain_text

    @property
    def is_teacher_forced(self) -> bool:
        """Whether the run measures the likelihood of texts that are given to the model."""
        return self.measure.teacher_forced or self.is_plain_text

    def identity_of_measuring(self) -> dict[str, Any]:
        """Return the flags that decide what is measured; see `MeasureArguments.identity`."""
        if not self.is_plain_text:
            return self.measure.identity()
        return replace(self.measure, teacher_forced=False).identity() | self.measure.windows()

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Return the words of `--stop_words`; without the flag, the data set's own."""
        chosen = self.generation.chosen_stop_words()
        return DATASETS[self.data.dataset].stop_words if chosen is None else chosen

    def _check_prompts(self) -> None:
        """Refuse flags of plain texts, and a likelihood of references that the data set lacks."""
        name = f"--dataset {self.data.dataset}"
        for flag_name in ("window", "stride", "first_token"):
            value = getattr(self.measure, flag_name)
            if value is not None:
                reject(flag_name, value, f"only with --dataset {' or '.join(_PLAIN_TEXTS)}")
        if self.measure.teacher_forced and not DATASETS[self.data.dataset].references:
            reject("teacher_forced", "true", f"{name} has no references")

    def _check_plain_text(self) -> None:
        """Refuse flags of decoding and prompting, for texts that are read as they are."""
        name = f"--dataset {self.data.dataset}"
        strategy, repeats = self.generation.generation_strategy, self.measure.repeats
        if strategy != "autoregressive":
            allowed = f"{name} decodes nothing, and perplexity does not depend on the decoder"
            reject("generation_strategy", strategy, allowed)
        if repeats > 1:
            reject("repeats", repeats, f"{name} times no decoding; one pass measures all")
        for flag_name, default in (
            ("template", None),
            ("apply_chat_template", False),
            ("truncate_prompt", False),
            ("max_prompt_tokens", None),
        ):
            value = getattr(self.data, flag_name)
            if value != default:
                reject(flag_name, value, f"{name} measures each text as it is")


MEASURED_GROUPS = tuple(typing.get_type_hints(RunArguments).values())
RUN_GROUPS = MEASURED_GROUPS[:-1]  # of a script that decodes and measures nothing
