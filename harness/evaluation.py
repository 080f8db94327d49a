"""One evaluation by lm-evaluation-harness: flags in, scores and a log out."""

import dataclasses
import json
import logging
import traceback
from pathlib import Path
from typing import Any

import datasets
import lm_eval
from lm_eval.utils import handle_non_serializable, make_table

from command_line.errors import FailedError, InterruptedRunError, UsageError
from command_line.messages import warn
from files.commit import current_commit
from files.error_lines import error_line
from files.writing import kept_from_errors, replace_json
from harness.arguments import EvaluationArguments
from harness.model import HarnessModel, summarize_requests
from harness.requests import decoding_of
from harness.tasks import check_runnable, check_shots, find_tasks, load_tasks, task_facts
from models.checkpoint import find_checkpoint
from models.runtime import start
from processes.ranks import joined
from runs.definition import decoding_identity, engine_identity, plan_identity
from runs.loop import settled
from runs.preparation import PreparedModel, exit_layer_facts, load_pruned, model_facts
from runs.record import RunRecord
from runs.writer import begin_log, timestamp


def run_evaluation(arguments: EvaluationArguments, command: str) -> tuple[RunRecord, Path]:
    """Load tasks, then the model; evaluate and log. Return the run and its file.

    Raise `UsageError` for tasks that are unknown, lack their data or are not supported, and
    `FailedError` for a task that breaks down; the log then holds its error and the generated texts.
    """
    # The harness warns of a model that is already loaded, and of every prompt that it cuts.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it raises its errors too
    flags = arguments.harness
    manager = find_tasks(flags.tasks, flags.include_path)
    with joined().together():
        start(arguments.model, parallel=True)
        find_checkpoint(arguments.model)  # a missing model should not cost a download
        loaded, tasks = load_tasks(manager, flags.tasks)
        facts = _checked_tasks(arguments, tasks)
        prepared = load_pruned(
            arguments.model, arguments.prune, arguments.prompt, arguments.generation, parallel=True
        )
        print(prepared.pruned.report())
        record = make_record(arguments, prepared, facts, command)
        return record, _evaluated(arguments, prepared, record, manager, loaded)


def _checked_tasks(
    arguments: EvaluationArguments, tasks: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the tasks' part of the log; refuse tasks that are not supported."""
    flags = arguments.harness
    check_runnable(tasks, flags.confirm_run_unsafe_code)
    check_shots(tasks, flags.num_fewshot)
    generating = {name: t for name, t in tasks.items() if t.OUTPUT_TYPE == "generate_until"}
    for name, task in generating.items():
        decoding_of(arguments.generation, task.config.generation_kwargs or {}, name)
    speculates = arguments.generation.generation_strategy == "self_speculative"
    if speculates and len(generating) < len(tasks):
        warn(
            "the exit layer of self-speculation only drafts: log-likelihoods are those of the "
            "whole model"
        )
    return {name: task_facts(task) for name, task in tasks.items()}


def _evaluated(
    arguments: EvaluationArguments,
    prepared: PreparedModel,
    record: RunRecord,
    manager: Any,
    loaded: list[Any],
) -> Path:
    """Let the harness score the model; log the scores. Return the log's path."""
    flags, ranks = arguments.harness, prepared.runtime.ranks
    path = begin_log(arguments.log.output_dir, "eval", record, ranks)
    model = HarnessModel(prepared, arguments.generation, flags.batch_size)

    def finish(status: str) -> None:
        record.status, record.ended = status, timestamp()
        facts = summarize_requests(model.generated) | {"texts_at_once": model.texts_at_once}
        record.metrics["generation"] = facts
        if flags.log_samples:
            facts["samples"] = model.generated
        if ranks.leads:
            with kept_from_errors(arguments.log.output_dir):
                replace_json(path, record.to_dict())

    with settled(finish, keeps_quiet=False):
        try:
            results = evaluate(arguments, model, manager, loaded)
            if ranks.leads:
                record.metrics["harness"] = plain(results)
        except InterruptedRunError:
            raise
        except Exception as error:
            # Tasks are foreign programs, and raise errors of every type.
            record.metrics["error"] = "".join(traceback.format_exception(error))
            if isinstance(error, UsageError):
                raise
            reason = f"failed ({error_line(error)}); {path} tells where"
            raise FailedError(f"--tasks {' '.join(flags.tasks)}: {reason}") from error
    return path


def evaluate(
    arguments: EvaluationArguments, model: HarnessModel, manager: Any, loaded: list[Any]
) -> dict[str, Any]:
    """Return the harness's own results of these tasks."""
    flags, seed = arguments.harness, arguments.generation.seed
    return lm_eval.simple_evaluate(
        model=model,
        tasks=loaded,
        task_manager=manager,
        num_fewshot=flags.num_fewshot,
        limit=flags.limit,
        batch_size=flags.batch_size,
        apply_chat_template=arguments.prompt.apply_chat_template,
        system_instruction=flags.system_instruction,
        log_samples=flags.log_samples,
        confirm_run_unsafe_code=flags.confirm_run_unsafe_code,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )


def make_record(
    arguments: EvaluationArguments,
    prepared: PreparedModel,
    tasks: dict[str, dict[str, Any]],
    command: str,
) -> RunRecord:
    """Return the log without scores: all that defines the evaluation, and where it runs."""
    calibration = prepared.calibration and prepared.calibration.facts()
    generation, flags = arguments.generation, arguments.harness
    identity = {
        "tasks": {name: facts["fingerprint"] for name, facts in tasks.items()},
        "num_fewshot": flags.num_fewshot,
        "limit": flags.limit,
        "batch_size": flags.batch_size,
        "system_instruction": flags.system_instruction,
        "apply_chat_template": arguments.prompt.apply_chat_template,
        "harness_seed": generation.seed,  # draws few-shot examples too
        "harness_version": lm_eval.__version__,
        "plan": plan_identity(arguments.prune, prepared.calibration_ids),
        "generation": decoding_identity(generation, ()),
    }
    return RunRecord(
        identity=identity | engine_identity(arguments.model, prepared.runtime, prepared.checkpoint),
        command=command,
        arguments=dataclasses.asdict(arguments),
        model=model_facts(prepared.loaded, prepared.pruned),
        data={"tasks": tasks, "calibration": calibration},
        plan=prepared.plan.to_dict(),
        exit_layer=exit_layer_facts(generation, prepared.plan),
        runtime=prepared.runtime.facts(),
        commit=current_commit(),
    )


def tables(record: RunRecord) -> str:
    """Return the harness's tables of scores, and the speed of generated texts."""
    results, generation = record.metrics["harness"], record.metrics["generation"]
    parts = [make_table(results)]
    if results.get("groups"):
        parts.append(make_table(results, "groups"))
    if generation["tokens_per_second"] is not None:
        at_once = generation["texts_at_once"]
        together = f", up to {at_once} texts at a time" if at_once > 1 else ""
        parts.append(f"speed     {generation['tokens_per_second']:.1f} tokens/s{together}")
    if generation["drafted_tokens"]:
        drafted = generation["drafted_tokens"]
        parts.append(f"drafts    {generation['acceptance_rate']:.1%} of {drafted} accepted")
    return "\n".join(parts)


def plain(values: Any) -> Any:
    """Return the values as JSON holds them; numbers that are not finite become None."""
    text = json.dumps(values, default=handle_non_serializable)
    return json.loads(text, parse_constant=lambda _: None)
