"""The flags that choose prompts, and that change their text before the model reads it."""

import typing
from dataclasses import dataclass, replace

from arguments.checkpoint_folders import PLACEHOLDER, stored_template
from command_line.errors import reject
from command_line.flags import check_least, flag, unescaped
from prompts.dataset_table import DATASETS

DEFAULT_DATASET = "human_eval"


@dataclass(frozen=True)
class PromptArguments:
    """How prompts are changed before the model reads them."""

    template: str | None = flag(
        None,
        r"text around each prompt, with {message} in the prompt's place and \n, \t and \\ as "
        "escapes (default: the template that train.py stored with the checkpoint, for the data "
        "set of the training)",
    )
    apply_chat_template: bool = flag(
        False, "format the prompt as a user's message with the tokenizer's chat template"
    )
    truncate_prompt: bool = flag(
        False,
        "keep the tail of a prompt that, with --max_steps, exceeds the model's positions, instead "
        "of skipping the prompt",
    )
    max_prompt_tokens: int | None = flag(
        None, "keep at most this many of a prompt's last tokens (default: all)"
    )
    prompt_field: str = flag("prompt", "custom_jsonl: field of the prompt")
    response_field: str = flag("response", "custom_jsonl: field of the reference")

    def check(self) -> None:
        if self.template is not None and PLACEHOLDER not in self.template:
            reject("template", repr(self.template), f"must hold {PLACEHOLDER}")
        check_least(self, max_prompt_tokens=1)
        for name in ("prompt_field", "response_field"):
            if getattr(self, name) == "":
                reject(name, "''", "must not be empty")

    def renamed_fields(self) -> dict[str, str]:
        """Map each field of custom_jsonl to the name that the user's rows have for it."""
        return {"prompt": self.prompt_field, "response": self.response_field}

    def filled_template(self, message: str) -> str:
        """Return the message inside `--template`; without a template, the message alone."""
        if self.template is None:
            return message
        return unescaped(self.template).replace(PLACEHOLDER, message)


_Prompting = typing.TypeVar("_Prompting", bound=PromptArguments)


def with_stored_template(
    prompting: _Prompting, model: str, dataset: str | None = None
) -> _Prompting:
    """Return the flags with the checkpoint's own template where `--template` is not given."""
    if prompting.template is not None:
        return prompting
    return replace(prompting, template=stored_template(model, dataset))


@dataclass(frozen=True)
class DataArguments(PromptArguments):
    """Which prompts, and how they are changed."""

    dataset: str = flag(DEFAULT_DATASET, "the data set", tuple(DATASETS))
    data_path: str | None = flag(
        None,
        "the data set's rows: a JSONL, JSONL.gz, CSV or Parquet file, or a folder with a test and "
        "a train file (default: the hub; for human_eval, a package)",
    )
    num_samples: int | None = flag(None, "examples to evaluate (default: all)")
    random_shuffle: bool = flag(
        True, "evaluate in an order drawn by --seed; false: in the order of the rows"
    )
    n_shot: int = flag(
        0, "solved examples before each prompt, drawn by --seed from the training split"
    )
    execute_code: bool = flag(
        False,
        "human_eval, mbpp: run the data set's tests on each completion, which is code that a "
        "model wrote, each in a separate process; measures pass@1",
    )
    numeric_match: bool = flag(
        False,
        "also compare the numbers that text and reference give as answers, as gsm8k always does",
    )

    def check(self) -> None:
        super().check()
        check_least(self, num_samples=1, n_shot=0)
        if self.data_path == "":
            reject("data_path", "''", "must not be empty")
        if self.execute_code and DATASETS[self.dataset].tests is None:
            having = ", ".join(name for name, dataset in DATASETS.items() if dataset.tests)
            reject("execute_code", "true", f"--dataset {self.dataset} has no tests; {having} have")
        if not DATASETS[self.dataset].references:
            has_no = f"--dataset {self.dataset} has no answers to"
            if self.n_shot:
                reject("n_shot", self.n_shot, f"{has_no} show")
            if self.numeric_match:
                reject("numeric_match", "true", f"{has_no} compare with")

    @property
    def compares_numbers(self) -> bool:
        """Whether data set or flag asks for the score `numeric_match`."""
        return self.numeric_match or DATASETS[self.dataset].numeric
