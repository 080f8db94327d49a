"""A training's log, a JSON object per line, and the plot of it."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import save_figure
from command_line.errors import reject
from command_line.messages import warn
from files.reading import TooLargeError, bounded_lines, opened
from files.writing import LineFile, json_text, replace_lines

LOG_NAME = "training.jsonl"
PLOT_NAME = "training"


def check_log(folder: Path) -> None:
    """Refuse a folder in which the log would overwrite a file that is no training's log."""
    path = folder / LOG_NAME
    try:
        if path.exists() and (path.is_dir() or path.stat().st_size) and not _read(path):
            reject("output_dir", folder, f"holds a {LOG_NAME} that is no training's log")
    except OSError as error:
        reject("output_dir", folder, f"its {LOG_NAME} cannot be read ({error.strerror})")


class TrainingLog:
    """`OUTPUT_DIR/training.jsonl`: a line `start`, then lines `step` and `eval`.

    A line `step` holds means over the steps since the line before. Lines beyond the step that a
    training goes on from are removed, as they come again. Only the process that `writes` touches
    the file. A full disk raises nothing: a warning says that the log lacks a line, and the next
    line that can be written brings all lines with it.
    """

    def __init__(self, folder: Path, first_step: int, writes: bool = True) -> None:
        self._path = folder / LOG_NAME
        self._writes = writes
        self._file: LineFile | None = None  # while the file holds all lines
        self._lines: list[dict[str, Any]] = []
        if first_step:
            self._lines = [line for line in _read(self._path) if line.get("step", 0) <= first_step]
        if writes:
            self._write()

    def add(self, kind: str, **values: Any) -> None:
        """Append a line."""
        self._lines.append({"kind": kind} | values)
        if self._writes:
            self._write()

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self) -> None:
        """Write the newest line, or all lines while the file lacks some."""
        try:
            if self._file is None:
                replace_lines(self._path, self._lines)
                self._file = LineFile(self._path)
            else:
                self._file.add(json_text(self._lines[-1]))
        except OSError as error:
            self.close()
            warn(f"--output_dir {self._path.parent}: the log lacks a line ({error.strerror})")

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of a kind."""
        return [line for line in self._lines if line["kind"] == kind]

    def plot(self) -> None:
        """Write the plot of loss and acceptance, PNG and PDF, once there is a step to show."""
        if not self.of_kind("step"):
            return
        try:
            save_figure(_figure(self), self._path.parent / PLOT_NAME)
        except OSError as error:
            warn(f"--output_dir {self._path.parent}: the plot is not written ({error.strerror})")


def _read(path: Path) -> list[dict[str, Any]]:
    """Return a training's whole lines; one may be incomplete. Raise OSError."""
    lines = []
    if path.is_file():
        with opened(path) as file, suppress(TooLargeError):
            for text in bounded_lines(file):
                with suppress(ValueError, RecursionError):
                    lines.append(json.loads(text))
    return [line for line in lines if _is_ours(line)]


def _is_ours(line: Any) -> bool:
    return isinstance(line, dict) and "kind" in line and isinstance(line.get("step", 0), int)


def shown_exits(layers: int) -> list[int]:
    """Return the exit layers that a plot or a progress bar has room for."""
    quarters = {round(layers * share) for share in (0.25, 0.5, 0.75)}
    return sorted({1, 2, 3, *quarters, layers} & set(range(1, layers + 1)))


def _figure(log: TrainingLog) -> Figure:
    steps, evaluations = log.of_kind("step"), log.of_kind("eval")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, acceptance = figure.subplots(1, 2)
    exits = shown_exits(max(int(exit_layer) for line in steps for exit_layer in line["loss"]))
    for exit_layer in exits:
        points = [
            (line["tokens"], line["loss"][str(exit_layer)])
            for line in steps
            if str(exit_layer) in line["loss"]
        ]
        _line(loss, points, exit_layer, exits)
        points = [(line["tokens"], line["acceptance"][exit_layer - 1]) for line in evaluations]
        _line(acceptance, points, exit_layer, exits)
    loss.set(xlabel="tokens seen", ylabel="training loss (nats per token)", yscale="log")
    acceptance.set(xlabel="tokens seen", ylabel="acceptance on held-out rows")
    loss.set_title("Loss by exit layer", fontsize=10)
    acceptance.set_title("Acceptance by exit layer", fontsize=10)
    for axes in (loss, acceptance):
        axes.grid(color="0.9")
    loss.legend(title="exit layer", fontsize=8, title_fontsize=8)
    return figure


_MARKERS = "osv^DPX<>hp"


def _line(axes: Axes, points: list[tuple[float, float]], exit_layer: int, exits: list[int]) -> None:
    if not points:
        return
    place = exits.index(exit_layer)
    axes.plot(
        *zip(*points, strict=True),
        color=str(0.75 * (1 - place / max(len(exits) - 1, 1))),
        marker=_MARKERS[place],
        markevery=max(len(points) // 8, 1),
        markersize=4,
        linewidth=1,
        label=str(exit_layer),
    )
