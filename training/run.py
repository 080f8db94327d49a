"""From texts to a trained checkpoint in a folder, in one start or in several."""

from contextlib import closing, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch._dynamo.exc import TorchDynamoException

from arguments.checkpoint_folders import PROMPT_FILE
from arguments.pruning import PLAN_FILE
from command_line.errors import EXIT_INTERRUPTED, FailedError, UsageError, reject
from files.commit import current_commit
from files.error_lines import compiler_error_line
from files.reading import read_settings
from files.writing import held_folder
from models.runtime import Runtime, device_type, quieten_libraries
from training.arguments import TrainingArguments
from training.configuration import check_configuration
from training.documents import Document, encode_texts
from training.learner import Learner, make_learner
from training.log import TrainingLog, check_log
from training.loop import Training
from training.optimizers import learning
from training.texts import TrainingText

CHECKPOINT = "checkpoint"
FACTS_FILE = "training.json"  # beside the weights of a checkpoint that was trained here


def run_training(
    arguments: TrainingArguments,
    texts: tuple[list[TrainingText], list[TrainingText]],
    command: str,
) -> int:
    """Train until all steps are done; return the exit code.

    Raise `UsageError` for a model or data that do not fit, and `FailedError` if training breaks
    down; the newest state is kept then.
    """
    quieten_libraries()
    flags = arguments.learner
    on_cpu = device_type(flags.device) == "cpu"
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=flags.mixed_precision)
    try:
        code = _train(arguments, texts, command, accelerator)
    except TorchDynamoException as error:
        reason = f"--compile true: {compiler_error_line(error)}; --compile false trains without"
        raise FailedError(reason) from error
    # The reducer of gradients holds the process group, and goes first: torch 2.13 would otherwise
    # destroy the group with Python's lock held, and wait for a thread that waits for the lock.
    accelerator.free_memory()
    accelerator.end_training()  # without it, NCCL complains
    return code


def _train(
    arguments: TrainingArguments,
    texts: tuple[list[TrainingText], list[TrainingText]],
    command: str,
    accelerator: Accelerator,
) -> int:
    runtime = Runtime(accelerator.device, torch.float32)
    strings = (string for text in texts[0] for string in text.strings)
    learner = make_learner(arguments.learner, runtime, strings, arguments.optimization.seed)
    data, writes = arguments.data, accelerator.is_main_process
    documents, held_out = (
        encode_texts(some, learner.tokenizer, data.apply_chat_template, data.max_length)
        for some in texts
    )
    _check_fits(arguments, learner, documents, held_out)
    held = held_folder(arguments.log.output_dir, ".training.lock", "is at a training in it")
    with held if writes else nullcontext():
        accelerator.wait_for_everyone()
        training = Training(arguments, learner, documents, held_out, accelerator)
        if _is_complete(training):
            return 0
        training.resume()
        accelerator.wait_for_everyone()  # before one process removes the state that others read
        with closing(TrainingLog(training.folder, training.progress.step, writes)) as log:
            log.add("start", **_beginning(training, runtime, command))
            if writes:
                print(_summary(training))
            if not training.run(log):
                kept = training.state.newest()
                after = kept.name if kept else "no step"
                print(f"interrupted; the same command goes on after {after}")
                return EXIT_INTERRUPTED
            if writes:
                _finish(training, log, command)
        accelerator.wait_for_everyone()
    return 0


def _check_fits(
    arguments: TrainingArguments,
    learner: Learner,
    documents: list[Document],
    held_out: list[Document],
) -> None:
    """Refuse documents that the model cannot learn from."""
    data, flags, config = arguments.data, arguments.learner, learner.config
    if not documents:
        reject("data_path", data.data_path, "holds nothing to learn")
    if data.max_length > config.max_position_embeddings:
        allowed = f"exceeds the model's {config.max_position_embeddings} positions"
        reject("max_length", data.max_length, allowed)
    largest = max(max(document.ids) for document in [*documents, *held_out])
    if largest >= config.vocab_size:
        name = "model" if flags.tokenizer is None else "tokenizer"
        limit = f"the model's vocab_size is {config.vocab_size}"
        reject(name, getattr(flags, name), f"its tokenizer makes token {largest}, {limit}")


def _beginning(training: Training, runtime: Runtime, command: str) -> dict[str, Any]:
    """Return the values of the log's line `start`."""
    facts = runtime.facts()
    del facts["ranks"], facts["dtype"]
    return {
        "step": training.progress.step,
        "total_steps": training.total_steps,
        "command": command,
        "arguments": asdict(training.arguments),
        **facts,
        "processes": training.accelerator.num_processes,
        "commit": current_commit(),
    }


def _summary(training: Training) -> str:
    learner, documents = training.learner, training.documents
    tokens = sum(map(len, documents))
    learned = sum(parameter.numel() for parameter in learning(learner.model).values())
    begins = training.progress.step
    return (
        f"{learner.exits.num_layers} layers, {learned:,} parameters learn; {len(documents):,} "
        f"documents of {tokens:,} tokens, {len(training.held_out):,} held out; "
        f"{training.total_steps:,} steps" + (f", going on after step {begins:,}" if begins else "")
    )


def _finish(training: Training, log: TrainingLog, command: str) -> None:
    """Write the checkpoint, then remove the states."""
    folder, learner, arguments = training.folder, training.learner, training.arguments
    evaluations = log.of_kind("eval")
    files = {
        FACTS_FILE: {
            "command": command,
            "configuration": training.configuration,
            "progress": vars(training.progress),
            "held_out": evaluations[-1] if evaluations else None,
            "commit": current_commit(),
        }
    }
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


def _is_complete(training: Training) -> bool:
    """Return whether the folder holds the end of this training.

    Raise `UsageError` for a folder with another's.
    """
    folder, path = training.folder, training.folder / CHECKPOINT / FACTS_FILE
    if not path.is_file():
        check_log(folder)
        if path.parent.exists():
            raise UsageError(f"--output_dir {folder}: its {CHECKPOINT} is no training's")
        return False
    try:
        found = read_settings(path)["configuration"]
    except (OSError, ValueError, KeyError) as error:
        reason = f"its {FACTS_FILE} cannot be read ({error})"
        raise UsageError(f"--output_dir {folder}: {reason}") from error
    check_configuration(folder, found, training.configuration)
    if training.accelerator.is_main_process:
        training.state.remove()  # a kill right after the end may have left it
        print(f"the training in {folder} is complete; another --output_dir trains anew")
    return True
