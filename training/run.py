"""From texts to a trained checkpoint in a folder, in one go or in several."""

from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from arguments.checkpoint_folders import PROMPT_FILE
from arguments.pruning import PLAN_FILE
from command_line.errors import EXIT_INTERRUPTED, FailedError, UsageError, reject
from files.commit import current_commit
from files.reading import read_settings
from files.writing import held_folder
from models.runtime import Runtime, device_type, quieten_libraries
from training.arguments import TrainingArguments
from training.documents import Document, check_vocabulary, encode_texts
from training.learner import Learner, make_learner
from training.log import TrainingLog, check_log
from training.loop import Training, start_accelerator
from training.optimizers import learning
from training.state import check_configuration
from training.texts import TrainingText, spoken

CHECKPOINT = "checkpoint"
FACTS_FILE = "training.json"  # beside the weights of a checkpoint that was trained here


def run_training(
    arguments: TrainingArguments,
    texts: tuple[list[TrainingText], list[TrainingText]],
    command: str,
) -> int:
    """Trains until all steps are done; returns the exit code.

    Raises `UsageError` for a model or data that do not fit, and `FailedError` for a training that
    breaks down; what it had is in its state.
    """
    quieten_libraries()
    flags = arguments.learner
    accelerator = start_accelerator(device_type(flags.device), flags.mixed_precision)
    code = _train(arguments, texts, command, accelerator)
    # What reduces gradients holds the process group, and goes first: torch 2.13 would otherwise
    # destroy the group with Python's lock held, and wait for a thread that waits for the lock.
    accelerator.free_memory()
    accelerator.end_training()  # or NCCL complains of what it still holds
    return code


def _train(
    arguments: TrainingArguments,
    texts: tuple[list[TrainingText], list[TrainingText]],
    command: str,
    accelerator: Accelerator,
) -> int:
    flags, data, seed = arguments.learner, arguments.data, arguments.optimization.seed
    runtime = Runtime(accelerator.device, torch.float32)
    learner = make_learner(flags, runtime, spoken(texts[0]), seed)
    documents, held_out = (
        encode_texts(some, learner.tokenizer, data.apply_chat_template, data.max_length)
        for some in texts
    )
    _check(arguments, learner, documents, held_out)
    writes = accelerator.is_main_process
    output_dir = arguments.log.output_dir
    held = held_folder(output_dir, ".training.lock", "is at a training in it")
    with held if writes else nullcontext():
        accelerator.wait_for_everyone()
        training = Training(arguments, learner, documents, held_out, accelerator)
        if _is_complete(training, writes):
            return 0
        training.resume()
        accelerator.wait_for_everyone()  # before one of them may remove what it was read from
        if writes:
            print(_summary(training, learner, documents, held_out))
        log = TrainingLog(training.folder, training.progress.step, writes)
        facts = _facts(runtime, accelerator.num_processes)
        log.add("start", **_beginning(arguments, training, command), **facts)
        if not training.run(log):
            kept = training.state.newest()
            print(f"interrupted; the same command goes on after {kept.name if kept else 'no step'}")
            return EXIT_INTERRUPTED
        if writes:
            _finish(arguments, training, learner, log, command)
        accelerator.wait_for_everyone()
    return 0


def _beginning(arguments: TrainingArguments, training: Training, command: str) -> dict[str, Any]:
    return {
        "step": training.progress.step,
        "total_steps": training.total_steps,
        "command": command,
        "arguments": asdict(arguments),
    }


def _check(
    arguments: TrainingArguments,
    learner: Learner,
    documents: list[Document],
    held_out: list[Document],
) -> None:
    """Refuses what the model cannot learn from."""
    flags = arguments.data
    if not documents:
        reject("data_path", flags.data_path, "holds nothing to learn")
    if flags.max_length > learner.config.max_position_embeddings:
        limit = learner.config.max_position_embeddings
        reject("max_length", flags.max_length, f"exceeds the model's {limit} positions")
    check_vocabulary([*documents, *held_out], learner.config.vocab_size, arguments.learner)


def _summary(
    training: Training, learner: Learner, documents: list[Document], held_out: list[Document]
) -> str:
    tokens = sum(map(len, documents))
    learned = sum(parameter.numel() for parameter in learning(learner.model).values())
    begins = training.progress.step
    return (
        f"{learner.exits.num_layers} layers, {learned:,} parameters learn; {len(documents):,} "
        f"documents of {tokens:,} tokens, {len(held_out):,} held out; {training.total_steps:,} "
        f"steps" + (f", going on after step {begins:,}" if begins else "")
    )


def _facts(runtime: Runtime, processes: int) -> dict[str, Any]:
    facts = runtime.facts() | {"processes": processes, "commit": current_commit()}
    del facts["ranks"], facts["dtype"]
    return facts


def _finish(
    arguments: TrainingArguments,
    training: Training,
    learner: Learner,
    log: TrainingLog,
    command: str,
) -> None:
    """Writes the checkpoint, and takes the state away that is in it now."""
    folder = training.folder
    evaluations = log.of_kind("eval")
    facts = {
        "command": command,
        "configuration": training.configuration,
        "progress": {
            name: value
            for name, value in vars(training.progress).items()
            if name != "configuration"
        },
        "held_out": evaluations[-1] if evaluations else None,
        "commit": current_commit(),
    }
    files = {FACTS_FILE: facts}
    if learner.plan_of_origin is not None:
        files[PLAN_FILE] = learner.plan_of_origin
    if arguments.data.template is not None:
        files[PROMPT_FILE] = {
            "dataset": arguments.data.dataset,
            "template": arguments.data.template,
        }
    try:
        learner.save(folder / CHECKPOINT, getattr(torch, arguments.log.save_dtype), files)
    except (OSError, ValueError, SafetensorError) as error:
        raise FailedError(
            f"--output_dir {folder}: the checkpoint cannot be written ({error}); the state stays, "
            "and the same command goes on from it"
        ) from error
    log.plot()
    training.state.remove()
    print(f"checkpoint {folder / CHECKPOINT}")


def _is_complete(training: Training, writes: bool) -> bool:
    """Whether the folder holds the end of this training; raises `UsageError` for another's."""
    folder, path = training.folder, training.folder / CHECKPOINT / FACTS_FILE
    if not path.is_file():
        check_log(folder)
        if path.parent.exists():
            raise UsageError(f"--output_dir {folder}: its {CHECKPOINT} is no training's")
        return False
    try:
        found = read_settings(path)["configuration"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"its {FACTS_FILE} cannot be read ({error})"
        raise UsageError(f"--output_dir {folder}: {reason}") from error
    check_configuration(folder, found, training.configuration)
    if writes:
        training.state.remove()  # which a kill right after the end may have left
        print(f"the training in {folder} is complete; another --output_dir trains anew")
    return True
