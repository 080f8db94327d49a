"""The flags of eval.py.

Nothing here imports torch or the harness, so that a mistyped flag is answered at once.
"""

import sys
from dataclasses import dataclass

from arguments.drafting import check_together
from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.prompts import PromptArguments
from arguments.pruning import PruneArguments
from arguments.run import LogArguments
from command_line.errors import reject
from command_line.flags import check_least, flag, is_folder

_SEEDS = 2**32  # numpy, which the harness seeds, takes no larger ones
# The harness's own: at most 256 tokens, greedily, and its seed of few-shot examples.
DEFAULTS = {"max_steps": 256, "sample": False, "seed": 1234}


@dataclass(frozen=True)
class HarnessArguments:
    """Which tasks of lm-evaluation-harness, and how they are asked."""

    tasks: list[str] = flag([], "names of tasks, groups or tags")
    include_path: str | None = flag(None, "folder of your own tasks' YAML files")
    num_fewshot: int | None = flag(None, "solved examples before a prompt (default: the task's)")
    limit: int | None = flag(None, "documents per task, from the first (default: all)")
    batch_size: int = flag(
        8, "log-likelihoods computed, and texts decoded autoregressively, at once"
    )
    system_instruction: str | None = flag(None, "text before prompts, or the chat's system message")
    log_samples: bool = flag(False, "put every document with its answers into the log")
    confirm_run_unsafe_code: bool = flag(False, "allow tasks that run code that the model writes")

    def check(self) -> None:
        if not self.tasks:
            reject("tasks", None, "must name at least one task")
        if "" in self.tasks:
            reject("tasks", "''", "must not be empty")
        if self.include_path is not None and not is_folder(self.include_path):
            reject("include_path", self.include_path or "''", "is no folder")
        check_least(self, num_fewshot=0, batch_size=1)
        if self.limit is not None and not 1 <= self.limit <= sys.maxsize:
            reject("limit", self.limit, f"must be 1 to {sys.maxsize}")


@dataclass
class EvaluationArguments:
    """All flags of one evaluation."""

    model: ModelArguments
    prune: PruneArguments
    prompt: PromptArguments
    generation: GenerationArguments
    harness: HarnessArguments
    log: LogArguments

    def check(self) -> None:
        """Refuse flags that tasks decide themselves, and seeds that the harness cannot take."""
        check_together(self.prune, self.generation)
        if not 0 <= self.generation.seed < _SEEDS:
            reject("seed", self.generation.seed, f"must be 0 to {_SEEDS - 1}")
        if self.prompt.template is not None:
            reject("template", repr(self.prompt.template), "tasks make their own prompts")
        if self.prompt.truncate_prompt:
            reject("truncate_prompt", "true", "tasks' prompts keep their tails without it")
        if self.prompt.max_prompt_tokens is not None:
            allowed = "tasks' prompts are cut to the model's positions alone"
            reject("max_prompt_tokens", self.prompt.max_prompt_tokens, allowed)
        if self.generation.stop_words is not None:
            words = " ".join(map(repr, self.generation.stop_words))
            reject("stop_words", words, "tasks decide what ends an output")
