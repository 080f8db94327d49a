"""Finds, loads and checks tasks of lm-evaluation-harness, before any model is loaded."""

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
from files.error_lines import causes, error_line
from files.hashes import content_hash


def find_tasks(names: list[str], include_path: str | None) -> TaskManager:
    """Return an index of tasks that holds these names. Raise `UsageError` for an unknown name.

    The harness's own tasks, some ten thousand files, are read only for a name that is not local,
    or for a group, which may refer to them.
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


def load_tasks(manager: TaskManager, names: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return tasks and groups of these names with their data, as the harness takes them.

    The dict holds all single tasks by name, including those in groups.
    Raise `UsageError` for a task that cannot be loaded, such as for lack of its data.
    """
    top: list[Any] = []
    for name in dict.fromkeys(names):
        try:
            loaded = manager.load([name])
        except Exception as error:
            # A task is a foreign program with a data set, and raises errors of every type.
            reject("tasks", name, _reason(error))
        inner = set(itertools.chain(*loaded["group_map"].values()))
        members = loaded["groups"] | loaded["tasks"]
        top += [member for key, member in members.items() if key not in inner]
    try:
        return top, manager.load(top)["tasks"]
    except ValueError as error:
        raise UsageError(f"--tasks {' '.join(names)}: {error}") from error


def check_shots(tasks: dict[str, Any], num_fewshot: int | None) -> None:
    """Refuse more solved examples than a task has; warn if a task is fixed to show none."""
    for name, task in tasks.items():
        own = task.get_config("num_fewshot")
        if own == 0 and num_fewshot:
            warn(f"--num_fewshot {num_fewshot}: task {name} has 0 fixed, and keeps it")
        wanted = own if num_fewshot is None or own == 0 else num_fewshot
        known = len(list(task.fewshot_docs())) if wanted else 0
        if known < (wanted or 0):
            reject("num_fewshot", wanted, f"task {name} has {known} solved examples")


def check_runnable(tasks: dict[str, Any], may_run_code: bool) -> None:
    """Refuse tasks that are not about text, and tasks that run code without permission."""
    for name, task in tasks.items():
        if getattr(task, "MULTIMODAL", False):
            reject("tasks", name, "shows images or sounds, which the model cannot see")
        if getattr(task, "UNSAFE_CODE", False) and not may_run_code:
            allowed = "runs code that the model writes; --confirm_run_unsafe_code true allows it"
            reject("tasks", name, allowed)


def task_facts(task: Any) -> dict[str, Any]:
    """Return a task's part of the log: its kind, and a hash of definition and documents."""
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
    """Return the first file of tasks that the harness skips silently, and why."""
    for path in sorted(Path(folder).rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # the harness skips the file, whatever the error
            return f"no such task; {path} cannot be read ({error_line(error)})"
    return None


def _reason(error: Exception) -> str:
    """Return one line that says why a task does not load."""
    about_data = any(isinstance(one, OSError | DatasetsError) for one in causes(error))
    what = "its data cannot be loaded" if about_data else "cannot be loaded"
    return f"{what} ({error_line(error)})"
