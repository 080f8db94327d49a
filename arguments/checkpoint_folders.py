"""Checkpoints on this machine: those that ship with the project, and the user's folders."""

from pathlib import Path

from command_line.errors import reject
from files.reading import read_settings

PROMPT_FILE = "prompt_template.json"  # beside the weights of a model trained with a template
PLACEHOLDER = "{message}"
SHIPPED = {"layerskip-topv2-5m": Path(__file__).parents[1] / "checkpoints" / "layerskip-topv2-5m"}


def checkpoint_folder(model: str) -> Path | None:
    """Return the folder of a shipped checkpoint or of a path; None for other models."""
    if model in SHIPPED:
        return SHIPPED[model]
    try:
        folder = Path(model).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # no possible path, no such user
        return None


def stored_template(model: str, dataset: str | None = None) -> str | None:
    """Return the template that a checkpoint was trained with, as `--template` takes it.

    Return None without a template, and where the template belongs to another data set than
    `dataset`. Raise `UsageError` for a file that holds something else.
    """
    folder = checkpoint_folder(model)
    if folder is None or not (folder / PROMPT_FILE).is_file():
        return None
    try:
        stored = read_settings(folder / PROMPT_FILE)
        template, trained_on = stored["template"], stored["dataset"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"its {PROMPT_FILE} cannot be read ({type(error).__name__}: {error})"
        reject("model", model, reason)
    if not isinstance(template, str) or PLACEHOLDER not in template:
        reject("model", model, f"the template in its {PROMPT_FILE} must hold {PLACEHOLDER}")
    return template if dataset in (None, trained_on) else None
