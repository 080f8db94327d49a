"""Saved states, from which an interrupted training goes on: weights, optimizers and progress.

The next batch and every random draw follow from the seed and the step alone.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from command_line.errors import UsageError
from files.reading import read_settings
from files.values import made_of
from files.writing import replace_json, whole_folder
from training.configuration import Configuration, check_configuration
from training.optimizers import learning

_WEIGHTS = "weights.safetensors"
_OPTIMIZER = "optimizer_{}.safetensors"
_PROGRESS = "progress.json"
_NAME = "state-{:08d}"
_ANY = "state-" + "[0-9]" * 8


@dataclass
class Progress:
    """Steps, tokens and seconds so far; measuring and saving take no part of the seconds."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class TrainingState:
    """The saved states in a folder; a training goes on from the newest.

    A state is written whole or not at all. The state before it stays until a step from the newest
    shows that the newest state's weights are sound.
    """

    def __init__(
        self,
        folder: Path,
        configuration: Configuration,
        model: nn.Module,
        optimizers: list[Optimizer],
    ) -> None:
        self._folder = folder
        self._configuration = configuration
        self._model = model
        self._optimizers = optimizers
        self._unproven: Path | None = None  # the newest state, while an older one stays beside it

    def newest(self) -> Path | None:
        """Return the folder of the newest state."""
        return max(self._folder.glob(_ANY), default=None)

    def save(self, progress: Progress) -> None:
        """Write a state beside the older one. Raise OSError, which leaves the older one."""
        target = self._folder / _NAME.format(progress.step)
        try:
            with whole_folder(target, self._folder / "state.partial") as partial:
                partial.mkdir()
                save_file(_learned(self._model), partial / _WEIGHTS)
                for number, optimizer in enumerate(self._optimizers):
                    save_file(_tensors(optimizer), partial / _OPTIMIZER.format(number))
                values = {"configuration": self._configuration} | vars(progress)
                replace_json(partial / _PROGRESS, values)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        self._unproven = target

    def prove(self) -> None:
        """Remove the older states, after a sound step from the newest."""
        if self._unproven is not None:
            self.remove(but=self._unproven)
            self._unproven = None

    def disprove(self) -> None:
        """Remove the newest state if no step from it was sound so far."""
        if self._unproven is not None:
            shutil.rmtree(self._unproven, ignore_errors=True)
            self._unproven = None

    def load(self, folder: Path) -> Progress:
        """Go on from a state. Raise `UsageError` if it is damaged or of other settings."""
        try:
            values = read_settings(folder / _PROGRESS)
            check_configuration(self._folder, values.pop("configuration"), self._configuration)
            progress = made_of(Progress, values)
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
        is_alone = len(list(self._folder.glob(_ANY))) == 1
        self._unproven = None if is_alone else folder
        return progress

    def remove(self, but: Path | None = None) -> None:
        """Remove all states, or all but one."""
        for folder in self._folder.glob(_ANY):
            if folder != but:
                shutil.rmtree(folder, ignore_errors=True)


def _learned(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that training changes; the others are read from their checkpoint."""
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
        # Copy: a loaded tensor is a view of its file, which is removed later.
        state.setdefault(int(index), {})[name] = tensor.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
