"""What a training goes on from after it was broken off: weights, optimizers and the step.

Which batch comes next, and every random draw, is a function of seed and step alone.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from command_line.errors import UsageError
from files.reading import read_settings
from files.values import check_kinds
from files.writing import whole_folder
from training.optimizers import learning

_WEIGHTS = "weights.safetensors"
_OPTIMIZER = "optimizer_{}.safetensors"
_PROGRESS = "progress.json"
_NAME = "state-{:08d}"
_ANY = "state-" + "[0-9]" * 8


@dataclass
class Progress:
    """How far a training is, and by which settings. Seconds are of training alone."""

    configuration: dict[str, Any]
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class TrainingState:
    """The states below a folder, of which the newest counts.

    A state is there as a whole or not at all, whenever a process is killed: it is written under
    another name first. The one before goes once a step from the newest has shown that its weights
    are sound.
    """

    def __init__(self, folder: Path, model: nn.Module, optimizers: list[Optimizer]) -> None:
        self._folder = folder
        self._model = model
        self._optimizers = optimizers
        self._proven = True

    def newest(self) -> Path | None:
        """The folder of the newest state."""
        return max(self._folder.glob(_ANY), default=None)

    def save(self, progress: Progress) -> None:
        """Writes a state beside the one before. Raises OSError, which leaves that one."""
        target = self._folder / _NAME.format(progress.step)
        if target.exists():
            return
        try:
            with whole_folder(target, self._folder / "state.partial") as partial:
                partial.mkdir()
                save_file(_learned(self._model), partial / _WEIGHTS)
                for number, optimizer in enumerate(self._optimizers):
                    save_file(_tensors(optimizer), partial / _OPTIMIZER.format(number))
                (partial / _PROGRESS).write_text(json.dumps(vars(progress), indent=2) + "\n")
        except SafetensorError as error:
            raise OSError(str(error)) from error
        self._proven = False

    def prove(self) -> None:
        """Says that a step from the newest state's weights is sound: those before it go."""
        if not self._proven:
            self.remove(but=self.newest())
            self._proven = True

    def disprove(self) -> None:
        """Takes the newest state away, unless a step from it was sound."""
        if not self._proven:
            shutil.rmtree(self.newest(), ignore_errors=True)
            self._proven = True

    def load(self, folder: Path, configuration: dict[str, Any]) -> Progress:
        """Goes on from a state; raises `UsageError` where it is damaged or of other settings."""
        try:
            progress = Progress(**read_settings(folder / _PROGRESS))
            check_kinds(progress)
            check_configuration(self._folder, progress.configuration, configuration)
            _restore(self._model, load_file(folder / _WEIGHTS))
            for number, optimizer in enumerate(self._optimizers):
                _restore_optimizer(optimizer, load_file(folder / _OPTIMIZER.format(number)))
        except UsageError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UsageError(
                f"--output_dir {self._folder}: its {folder.name} cannot be read ({error}); remove "
                "that folder to begin anew"
            ) from error
        self._proven = len(list(self._folder.glob(_ANY))) == 1
        return progress

    def remove(self, but: Path | None = None) -> None:
        """Takes all states away, or all but one, once they are of no more use."""
        for folder in self._folder.glob(_ANY):
            if folder != but:
                shutil.rmtree(folder, ignore_errors=True)


def check_configuration(folder: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuses to go on with a training that other flags or data began."""
    if not isinstance(found, dict):
        raise UsageError(f"--output_dir {folder}: holds a training whose settings are {found!r}")
    for name in [*asked, *found]:
        if found.get(name) != asked.get(name):
            raise UsageError(
                f"--output_dir {folder}: holds a training whose {name} is {found.get(name)}, not "
                f"{asked.get(name)}; name another folder, or the settings that it began with"
            )


def _learned(model: nn.Module) -> dict[str, Tensor]:
    """What training changes; what stays is read from where it came from."""
    return {name: item.detach().contiguous() for name, item in learning(model).items()}


def _restore(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = learning(model)
    if own.keys() != tensors.keys():
        raise ValueError("its weights are those of another model")
    for name, item in own.items():
        item.data.copy_(tensors[name])


def _tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, values in state.items()
        for name, value in values.items()
    }


def _restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        # A copy, as what is loaded is a view of the file, which may be taken away.
        state.setdefault(int(index), {})[name] = tensor.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
