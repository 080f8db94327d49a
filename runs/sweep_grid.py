"""The runs of a sweep: data sets x plans x exit layers x draft lengths."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arguments.generation import GenerationArguments
from arguments.measuring import MeasureArguments
from arguments.model import ModelArguments
from arguments.prompts import DataArguments
from arguments.pruning import PRUNE_METHODS, CalibrationArguments, PruneArguments
from arguments.run import LogArguments, RunArguments
from command_line.errors import reject
from command_line.flags import check_least, flag, is_folder
from prompts.dataset_table import DATASETS
from prompts.row_formats import FORMATS

# Names that --data_dir may use for the rows of a data set, beside the data set's own.
_SHARED_ROWS = {
    "cnn_dm_summarization": "cnn_dailymail",
    "cnn_dm_lm": "cnn_dailymail",
    "xsum_summarization": "xsum",
}
_SUFFIXES = ("", *(f"{suffix}{packed}" for suffix in FORMATS for packed in ("", ".gz")))
# Each flag that lists plans, and the method that needs it or may have it.
_PLAN_FLAGS = {"prune_ns": "angular", "dropout_thresholds": "random", "prune_seeds": "random"}
_CALIBRATION = ("calibration_dataset", "calibration_path", "calibration_excludes")
_NEEDED = {"angular": "prune_ns", "random": "dropout_thresholds"}


_QUALITY_BATCH_SIZE = 8


@dataclass(frozen=True)
class GridArguments:
    """The grid. Every plan is decoded autoregressively too, as the baseline of its speed-ups."""

    exit_layer_first: int = flag(1, "first exit layer, of the original model")
    exit_layer_last: int | None = flag(None, "last exit layer, included (default: L - 1)")
    exit_layer_step: int = flag(1, "from one exit layer to the next")
    num_speculations_first: int = flag(1, "first draft length")
    num_speculations_last: int = flag(6, "last draft length, included")
    num_speculations_step: int = flag(1, "from one draft length to the next")
    prune_methods: list[str] = flag(["base"], "criteria of the plans", PRUNE_METHODS)
    prune_ns: list[int] = flag([], "angular: a plan for each number of layers removed")
    dropout_thresholds: list[float] = flag([], "random: a plan for each probability")
    prune_seeds: list[int] = flag(
        [], "random: a plan for each seed and probability (default: that of --prune_seed)"
    )
    datasets: list[str] = flag([], "data sets (default: that of --dataset)", tuple(DATASETS))
    data_dir: str | None = flag(
        None,
        "folder with a file or folder of rows for every data set, by its name or cnn_dailymail, "
        "xsum (default: --data_path, or the hub)",
    )
    quality_samples: int | None = flag(
        None,
        "measure quality once per plan and data set, on so many examples, decoded autoregressively "
        "in batches (--batch_size, here 8 by default) and teacher-forced; needs --speed_samples",
    )
    speed_samples: int | None = flag(
        None,
        "measure speed on the first so many of the --quality_samples, with every decoder; 0 "
        "measures none",
    )
    dry_run: bool = flag(False, "list the runs and what is left of each, and run nothing")

    def check(self) -> None:
        for name in ("exit_layer", "num_speculations"):
            self._check_range(name)
        self._check_samples()
        for name, method in _PLAN_FLAGS.items():
            if getattr(self, name) and method not in self.prune_methods:
                given = " ".join(map(str, getattr(self, name)))
                reject(name, given, f"only with --prune_methods {method}")
        for method, name in _NEEDED.items():
            if method in self.prune_methods and not getattr(self, name):
                reject("prune_methods", method, f"needs --{name}")
        for count in self.prune_ns:
            if count < 1:
                reject("prune_ns", count, "must be 1 to L - 2, L being the model's layers")
        for threshold in self.dropout_thresholds:
            if not 0 <= threshold < 1:
                reject("dropout_thresholds", threshold, "must be in [0, 1)")
        if self.data_dir is not None and not is_folder(self.data_dir):
            reject("data_dir", self.data_dir, "is no folder")

    def _check_samples(self) -> None:
        check_least(self, quality_samples=1, speed_samples=0)
        quality, speed = self.quality_samples, self.speed_samples
        if speed is None or quality is None:
            for name, other in (("quality", "speed"), ("speed", "quality")):
                value = getattr(self, f"{name}_samples")
                if value is not None:
                    reject(f"{name}_samples", value, f"needs --{other}_samples")
        elif speed > quality:
            reject("speed_samples", speed, f"must be at most --quality_samples {quality}")

    def exit_layers(self, layers: int) -> list[int]:
        """Return the exit layers of a model with so many layers."""
        last = self.exit_layer_last or layers - 1
        return list(range(self.exit_layer_first, last + 1, self.exit_layer_step))

    def draft_lengths(self) -> list[int]:
        first, last = self.num_speculations_first, self.num_speculations_last
        return list(range(first, last + 1, self.num_speculations_step))

    def _check_range(self, name: str) -> None:
        first, last, step = (getattr(self, f"{name}_{end}") for end in ("first", "last", "step"))
        if first < 1:
            reject(f"{name}_first", first, "must be at least 1")
        if step < 1:
            reject(f"{name}_step", step, "must be at least 1")
        if last is not None and last < first:
            reject(f"{name}_last", last, f"is below --{name}_first {first}: the range is empty")


@dataclass(frozen=True)
class SweepArguments:
    """All flags of a sweep."""

    model: ModelArguments
    data: DataArguments
    calibration: CalibrationArguments
    generation: GenerationArguments
    log: LogArguments
    grid: GridArguments
    measure: MeasureArguments = field(default_factory=MeasureArguments)

    def __post_init__(self) -> None:
        for name, default in (
            ("exit_layer", -1),
            ("num_speculations", -1),
            ("generation_strategy", "autoregressive"),
        ):
            value = getattr(self.generation, name)
            if value != default:
                reject(name, value, "the grid sets it; see --exit_layer_first and its kin")
        if self.grid.quality_samples is None and self.measure.batch_size is not None:
            allowed = "needs --quality_samples; runs that are timed decode one prompt at a time"
            reject("batch_size", self.measure.batch_size, allowed)
        if self.grid.quality_samples is not None and self.data.num_samples is not None:
            allowed = "contradicts --quality_samples and --speed_samples"
            reject("num_samples", self.data.num_samples, allowed)
        for name in _CALIBRATION:
            value = getattr(self.calibration, name)
            if value is not None and "angular" not in self.grid.prune_methods:
                reject(name, value, "only with --prune_methods angular")
        if self.data.data_path and self.grid.data_dir:
            reject("data_dir", self.grid.data_dir, "contradicts --data_path")
        if self.data.data_path and len(self.datasets) > 1:
            reject("data_path", self.data.data_path, "is of one data set; name a --data_dir")

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(self.grid.datasets or [self.data.dataset]))

    def first_runs(self) -> Iterator[RunArguments]:
        """Yield the first run of every plan and data set; `check_run` has yet to pass.

        It is the run that measures the plan's quality if there is one, or else the autoregressive
        baseline of its speed-ups.
        """
        for dataset in self.datasets:
            path = self.data.data_path or self._rows_of(dataset)
            data = dataclasses.replace(self.data, dataset=dataset, data_path=path)
            data, measure = self._flags_for(data)
            for pruning in self._plans():
                baseline = RunArguments(
                    self.model, data, pruning, self.generation, self.log, measure=measure
                )
                yield self._of_quality(baseline) if self.grid.quality_samples else baseline

    def baseline(self, first: RunArguments) -> RunArguments | None:
        """Return the autoregressive run with which speed-ups of the first run's plan begin.

        None where no speed is asked for, and for plain texts, which are not decoded. It calibrates
        on none of the examples of quality, so that both runs have one plan.
        """
        quality, speed = self.grid.quality_samples, self.grid.speed_samples
        if first.is_plain_text or speed == 0:
            return None
        if quality is None:
            return first
        pruning = first.prune
        if first.calibrating.calibrates() and pruning.calibration_excludes is None:
            pruning = dataclasses.replace(pruning, calibration_excludes=quality)
        measure = dataclasses.replace(
            first.measure, batch_size=None, teacher_forced=False, repeats=self.measure.repeats
        )
        data = dataclasses.replace(first.data, num_samples=speed)
        return dataclasses.replace(first, data=data, prune=pruning, measure=measure)

    def _flags_for(self, data: DataArguments) -> tuple[DataArguments, MeasureArguments]:
        """Return the flags without those that other data sets of the sweep alone can use."""
        plain = {name for name in self.datasets if DATASETS[name].plain_text}
        measure = self.measure
        if data.dataset in plain and len(self.datasets) > len(plain):
            data = dataclasses.replace(
                data,
                template=None,
                apply_chat_template=False,
                truncate_prompt=False,
                max_prompt_tokens=None,
                n_shot=0,
            )
            measure = dataclasses.replace(measure, repeats=1)
        elif data.dataset not in plain and plain:
            measure = dataclasses.replace(measure, window=None, stride=None, first_token=None)
        return data, measure

    def _of_quality(self, run: RunArguments) -> RunArguments:
        size = self.measure.batch_size or _QUALITY_BATCH_SIZE
        forced = DATASETS[run.data.dataset].references
        measure = dataclasses.replace(
            run.measure, batch_size=size, repeats=1, teacher_forced=forced
        )
        data = dataclasses.replace(run.data, num_samples=self.grid.quality_samples)
        return dataclasses.replace(run, data=data, measure=measure)

    def check_run(self, run: RunArguments) -> None:
        """Raise `UsageError` for flags that the run's data set or plan does not allow."""
        name = run.data.dataset
        if self.grid.data_dir and not run.data.data_path and DATASETS[name].source is None:
            reject("data_dir", self.grid.data_dir, f"holds no rows of {name}")
        run.data.check()
        run.prune.check()

    def speculative(self, baseline: RunArguments, exit_layer: int) -> Iterator[RunArguments]:
        """Yield the runs of the same plan and data set that draft at one exit layer."""
        measure = dataclasses.replace(baseline.measure, teacher_forced=False)
        for drafts in self.grid.draft_lengths():
            generation = dataclasses.replace(
                self.generation,
                generation_strategy="self_speculative",
                exit_layer=exit_layer,
                num_speculations=drafts,
            )
            yield dataclasses.replace(baseline, generation=generation, measure=measure)

    def _plans(self) -> Iterator[PruneArguments]:
        for method in dict.fromkeys(self.grid.prune_methods):
            for changes in self._changes(method):
                values = dataclasses.asdict(self.calibration) | {"prune_method": method} | changes
                yield PruneArguments(**values)

    def _changes(self, method: str) -> Iterator[dict[str, Any]]:
        """Yield the flags in which the plans of a method differ."""
        grid = self.grid
        if method == "angular":
            yield from ({"prune_n": count} for count in dict.fromkeys(grid.prune_ns))
            return
        unmeasured: dict[str, Any] = dict.fromkeys(_CALIBRATION)
        if method == "base":
            yield unmeasured
            return
        for threshold in dict.fromkeys(grid.dropout_thresholds):
            for seed in dict.fromkeys(grid.prune_seeds or [self.calibration.prune_seed]):
                yield unmeasured | {"dropout_threshold": threshold, "prune_seed": seed}

    def _rows_of(self, dataset: str) -> str | None:
        """Return where --data_dir holds the rows of a data set; None leaves them to the hub."""
        if self.grid.data_dir is None:
            return None
        folder = Path(self.grid.data_dir)
        for name in (dataset, _SHARED_ROWS.get(dataset, dataset)):
            for suffix in _SUFFIXES:
                if (folder / f"{name}{suffix}").exists():
                    return str(folder / f"{name}{suffix}")
        return None
