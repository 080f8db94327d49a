"""The model that learns, with its tokenizer and its teacher, and the checkpoint that it becomes."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arguments.model import ModelArguments
from command_line.errors import UsageError, reject
from command_line.messages import warn
from files.writing import whole_folder
from models.checkpoint import find_checkpoint
from models.compilation import compiler_obstacle
from models.loading import LoadedModel, plan_beside, read_model
from models.quantised import check_can_be_saved
from models.runtime import Runtime
from models.saved import write_checkpoint
from training.arguments import LearnerArguments
from training.early_exits import EarlyExits, Teacher
from training.from_scratch import new_model


@dataclass(frozen=True)
class Learner:
    """The model that learns.

    `model` is transformers' own, or with LoRA peft's around it. `fingerprints` name the model that
    training begins with, and the teacher if it is another model. `plan_of_origin` is the plan of a
    pruned model.
    """

    model: nn.Module
    tokenizer: Any
    exits: EarlyExits
    teacher: Teacher | None
    fingerprints: dict[str, str]
    plan_of_origin: dict[str, Any] | None

    @property
    def config(self) -> Any:
        return self.exits.causal.config

    def save(self, folder: Path, dtype: torch.dtype, files: dict[str, Any]) -> None:
        """Write an ordinary checkpoint into a new folder, compared, whole or not at all.

        Adapters are merged into the weights for good. `files` are JSON values beside them.
        """
        model: Any = self.model
        merged = model.merge_and_unload() if hasattr(model, "peft_config") else model
        merged = merged.to(dtype)
        merged.config._attn_implementation = None
        _declare_end(merged.generation_config, self.tokenizer.eos_token_id)
        with whole_folder(folder, folder.with_name(f"{folder.name}.partial")) as partial:
            write_checkpoint(merged, self.tokenizer, partial, files)


def _declare_end(config: Any, end: int | None) -> None:
    """Make the tokenizer's end token end the generation, if no other token does."""
    if end is None or config.eos_token_id is not None:
        return
    config.eos_token_id = end
    if not config.do_sample:
        # transformers 5 refuses to save a changed configuration with settings of a sampling that
        # is off.
        config.update(temperature=None, top_p=None, top_k=None)


def make_learner(
    arguments: LearnerArguments, runtime: Runtime, texts: Iterable[str], seed: int
) -> Learner:
    """Load or make the model; in float32, as small updates vanish in half precision.

    A tokenizer may be trained on `texts`. Raise `UsageError` for a model or configuration that does
    not work.
    """
    if arguments.model is None:
        loaded = new_model(arguments, texts, seed)
    else:
        loaded = _load(arguments.model, arguments.attention, runtime, learns=True)
    model: Any = loaded.model  # transformers' or peft's, whose parts have no types
    model.to(runtime.device).train()
    if arguments.lora_rank:
        torch.manual_seed(seed)
        model = _with_adapters(arguments, model)
    exits, fingerprints = EarlyExits(loaded.model), {"model": loaded.fingerprint}
    if arguments.compile:
        obstacle = compiler_obstacle(runtime.device)
        if obstacle is None:
            exits.compile_layers()
        else:
            warn(f"--compile true: {obstacle}; training goes on without")
    teacher: Teacher | None = None
    teacher_name = arguments.teacher_name()
    if teacher_name is not None and arguments.lora_rank and arguments.teacher is None:
        teacher = Teacher(exits, model.disable_adapter)
    elif teacher_name is not None:
        other = _load_teacher(teacher_name, arguments.attention, runtime, loaded)
        teacher = Teacher(EarlyExits(other.model.eval().requires_grad_(False)))
        fingerprints["teacher"] = other.fingerprint
    return Learner(model, loaded.tokenizer, exits, teacher, fingerprints, loaded.plan_of_origin)


def _load(name: str, attention: str, runtime: Runtime, learns: bool) -> LoadedModel:
    found = ModelArguments(model=name, model_args=f"attn_implementation={attention}")
    checkpoint = find_checkpoint(found)
    if learns:
        check_can_be_saved("model", name, "it", checkpoint.config)
    model = read_model(checkpoint, runtime)
    plan = plan_beside(checkpoint) if learns else None
    return LoadedModel(model, checkpoint.tokenizer, name, checkpoint.fingerprint, plan)


def _load_teacher(name: str, attention: str, runtime: Runtime, learner: LoadedModel) -> LoadedModel:
    """Load a teacher that says the same tokens as the model that learns."""
    try:
        teacher = _load(name, attention, runtime, learns=False)
    except UsageError as error:
        raise UsageError(str(error).replace("--model", "--teacher", 1)) from error
    found, needed = teacher.config.vocab_size, learner.config.vocab_size
    if found != needed:
        reject("teacher", name, f"its vocab_size is {found}, not {needed}")
    if teacher.tokenizer.get_vocab() != learner.tokenizer.get_vocab():
        reject("teacher", name, "its tokens are not those of the model that learns")
    return teacher


def _with_adapters(arguments: LearnerArguments, causal: Any) -> Any:
    """Return peft's model around transformers' own."""
    from peft import LoraConfig, get_peft_model

    width = causal.config.hidden_size
    if arguments.lora_rank > width:
        reject("lora_rank", arguments.lora_rank, f"must not exceed the model's width, {width}")
    settings = LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,  # type: ignore[arg-type]  # peft takes fractions too
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.19 asks for a property that transformers 5.23 has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(causal, settings)
