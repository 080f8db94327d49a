"""Which prompts, and what becomes of their text on the way to the model."""

import typing
from dataclasses import dataclass, replace

from arguments.checkpoint_folders import PLACEHOLDER, stored_template
from command_line.errors import reject
from command_line.flags import flag, unescaped
from prompts.dataset_table import DATASETS

DEFAULT_DATASET = "human_eval"


@dataclass(frozen=True)
class PromptArguments:
    """What becomes of a text on its way to the model."""

    template: str | None = flag(
        None,
        r"text around every prompt, which takes the place of {message}; \n, \t and \\ understood "
        "(default: the one that a checkpoint of train.py stores, with the data set it was trained "
        "on)",
    )
    apply_chat_template: bool = flag(
        False, "hand the prompt to the model as a user's message, by its tokenizer's template"
    )
    truncate_prompt: bool = flag(
        False,
        "keep the tail of a prompt that, with --max_steps, exceeds the positions, instead of "
        "leaving it out",
    )
    prompt_field: str = flag("prompt", "custom_jsonl: the field that holds the prompt")
    response_field: str = flag("response", "custom_jsonl: the field that holds the reference")

    def check(self) -> None:
        if self.template is not None and PLACEHOLDER not in self.template:
            reject("template", repr(self.template), f"must hold {PLACEHOLDER}")
        for name in ("prompt_field", "response_field"):
            if getattr(self, name) == "":
                reject(name, "''", "must not be empty")

    def renamed_fields(self) -> dict[str, str]:
        """The fields of custom_jsonl, and what the user's rows call them."""
        return {"prompt": self.prompt_field, "response": self.response_field}

    def filled_template(self, message: str) -> str:
        """The message inside `--template`, or alone without one."""
        if self.template is None:
            return message
        return unescaped(self.template).replace(PLACEHOLDER, message)


_Prompting = typing.TypeVar("_Prompting", bound=PromptArguments)


def with_stored_template(
    prompting: _Prompting, model: str, dataset: str | None = None
) -> _Prompting:
    """The flags with the checkpoint's own template, where `--template` names none."""
    if prompting.template is not None:
        return prompting
    return replace(prompting, template=stored_template(model, dataset))


@dataclass(frozen=True)
class DataArguments(PromptArguments):
    """Which prompts."""

    dataset: str = flag(DEFAULT_DATASET, "the data set", tuple(DATASETS))
    data_path: str | None = flag(
        None,
        "JSONL, JSONL.gz, CSV or Parquet file of the data set's rows, or a folder with a test and "
        "a train file (default: the hub; for human_eval, a package)",
    )
    num_samples: int | None = flag(None, "examples to evaluate (default: all)")
    random_shuffle: bool = flag(True, "evaluate in an order drawn by --seed; false: as they come")
    n_shot: int = flag(
        0, "solved examples before every prompt, drawn by --seed from the training split"
    )
    execute_code: bool = flag(
        False,
        "human_eval: run the data set's tests on every completion, code that a model wrote, in a "
        "process of its own; gives pass@1",
    )

    def check(self) -> None:
        super().check()
        if self.num_samples is not None and self.num_samples < 1:
            reject("num_samples", self.num_samples, "must be at least 1")
        if self.n_shot < 0:
            reject("n_shot", self.n_shot, "must be 0 or more")
        if self.data_path == "":
            reject("data_path", "''", "must not be empty")
        if self.execute_code and DATASETS[self.dataset].tests is None:
            having = ", ".join(name for name, one in DATASETS.items() if one.tests)
            reject("execute_code", "true", f"--dataset {self.dataset} has no tests; {having} has")
