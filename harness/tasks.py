"""Tasks of lm-evaluation-harness by name, with their data, before any model is loaded."""

import difflib
import itertools
import json
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from command_line.errors import UsageError, reject
from command_line.messages import warn
from files.error_lines import error_line
from files.hashes import content_hash
from files.hub_reasons import causes


def find_tasks(names: list[str], include_path: str | None) -> TaskManager:
    """An index of tasks that holds these names. Raises `UsageError` for one that nobody knows.

    The harness's own tasks, some ten thousand files, are read only where a name, or a group that
    may refer to them, needs it.
    """
    if include_path is not None:
        local = TaskManager(include_path=include_path, include_defaults=False)
        if set(names) <= set(local.all_tasks) - set(local.all_groups):
            return local
    manager = TaskManager(include_path=include_path)
    for name in names:
        if name not in manager.task_index:
            damaged = _damaged(include_path) if include_path else None
            reject("tasks", name, damaged or _unknown_message(name, manager))
    return manager


def load_tasks(manager: TaskManager, names: list[str]) -> list[Any]:
    """The tasks and groups of these names with their data, as the harness evaluates them.

    Raises `UsageError` for a task that cannot be loaded, foremost for want of its data.
    """
    top: list[Any] = []
    for name in dict.fromkeys(names):
        try:
            loaded = manager.load([name])
        except Exception as error:
            # A task is a program with a data set, written by others, and fails in its own ways.
            reject("tasks", name, _reason(error))
        inner = set(itertools.chain(*loaded["group_map"].values()))
        members = loaded["groups"] | loaded["tasks"]
        top += [member for key, member in members.items() if key not in inner]
    try:
        manager.load(top)
    except ValueError as error:
        raise UsageError(f"--tasks {' '.join(names)}: {error}") from error
    return top


def single_tasks(manager: TaskManager, loaded: list[Any]) -> dict[str, Any]:
    """All tasks, those in groups included, by name."""
    return manager.load(loaded)["tasks"]


def check_shots(tasks: dict[str, Any], num_fewshot: int | None) -> None:
    """Refuses more solved examples than a task has, and warns where it shows none at all."""
    for name, task in tasks.items():
        own = task.get_config("num_fewshot")
        if own == 0 and num_fewshot:
            warn(f"--num_fewshot {num_fewshot}: task {name} has 0 fixed, and keeps it")
        wanted = own if num_fewshot is None or own == 0 else num_fewshot
        known = len(list(task.fewshot_docs())) if wanted else 0
        if known < (wanted or 0):
            reject("num_fewshot", wanted, f"task {name} has {known} solved examples")


def check_runnable(tasks: dict[str, Any], may_run_code: bool) -> None:
    """Refuses tasks that are not about text, and those that run code without leave."""
    for name, task in tasks.items():
        if getattr(task, "MULTIMODAL", False):
            reject("tasks", name, "shows images or sounds, which the model cannot see")
        if getattr(task, "UNSAFE_CODE", False) and not may_run_code:
            allowed = "runs code that the model writes; --confirm_run_unsafe_code true allows it"
            reject("tasks", name, allowed)


def task_facts(task: Any) -> dict[str, Any]:
    """What a log says of a task: its kind, and a hash of its definition and its documents."""
    definition, documents = task.dump_config(), task.eval_docs
    definition["metadata"] = (definition.get("metadata") or {}) | {"config_source": None}
    texts = (json.dumps(one, sort_keys=True, default=str) for one in (definition, *documents))
    return {
        "output_type": task.OUTPUT_TYPE,
        "version": task.VERSION,
        "documents": len(documents),
        "fingerprint": content_hash(*texts),
    }


def _unknown_message(name: str, manager: TaskManager) -> str:
    close = difflib.get_close_matches(name, manager.all_tasks, n=3)
    if close:
        return f"no such task; did you mean {' or '.join(close)}?"
    return f"none of the {len(manager.all_tasks)} tasks known; --include_path adds your own"


def _damaged(folder: str) -> str | None:
    """The first file of tasks that the harness passes over in silence, and why."""
    for path in sorted(Path(folder).rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # whatever it is, the harness passes over it
            return f"no such task; {path} cannot be read ({error_line(error)})"
    return None


def _reason(error: Exception) -> str:
    """One line for whatever kept a task from loading."""
    about_data = any(isinstance(one, OSError | DatasetsError) for one in causes(error))
    what = "its data cannot be loaded" if about_data else "cannot be loaded"
    return f"{what} ({error_line(error)})"
