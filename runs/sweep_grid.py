"""The runs of a sweep: data sets x plans x exit layers x draft lengths."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arguments.drafting import (
    CountingArguments,
    DraftArguments,
    DraftOptions,
    calibrating,
    check_options,
    layers_of,
)
from arguments.generation import GenerationArguments
from arguments.measuring import MeasureArguments
from arguments.model import ModelArguments
from arguments.prompts import DataArguments
from arguments.pruning import CalibrationArguments, PruneArguments
from arguments.run import LogArguments, RunArguments
from command_line.errors import reject
from prompts.dataset_table import DATASETS
from prompts.row_formats import FORMATS
from runs.sweep_flags import GridArguments
from runs.sweep_plans import calibrated_like, plans_of, with_plan

# Names that --data_dir may use for the rows of a data set, beside the data set's own.
_SHARED_ROWS = {
    "cnn_dm_summarization": "cnn_dailymail",
    "cnn_dm_lm": "cnn_dailymail",
    "xsum_summarization": "xsum",
}
_SUFFIXES = ("", *(f"{suffix}{packed}" for suffix in FORMATS for packed in ("", ".gz")))
_QUALITY_BATCH_SIZE = 8


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
    drafting: DraftOptions = field(default_factory=DraftOptions)

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
        drafters = self.grid.drafters
        check_options(self.drafting, drafters)
        for name in self._drafters("plan"):
            self.grid.check_drafts_by_plans(name)
        plans_of(self.grid, self.calibration, counts=self.drafting.draft_vocab is not None)
        if "early_exit" not in (*drafters, self.drafting.hybrid_drafter):
            self.grid.check_no_exit_layers()
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
            counts = self.drafting.draft_vocab is not None
            for pruning in plans_of(self.grid, self.calibration, counts):
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
        for name in self._drafters("exit_layer"):
            yield from self._drafting(baseline, self._flags_of(name), exit_layer)

    def layerless(self, baseline: RunArguments) -> Iterator[RunArguments]:
        """Yield the runs of the same plan and data set in which no layer drafts."""
        for name in self._drafters(None):
            yield from self._drafting(baseline, self._flags_of(name))

    def pruned_drafts(self, baseline: RunArguments, plan: PruneArguments) -> Iterator[RunArguments]:
        """Yield the runs in which the layers that a plan keeps draft for the baseline's model.

        The drafter's plan has the seed and the calibration of `plan`.
        """
        pruning = calibrated_like(baseline.prune, plan)
        for name in self._drafters("plan"):
            draft = with_plan(self._flags_of(name), plan)
            yield from self._drafting(baseline, draft, prune=pruning)

    def has_drafter(self, layers: str | None) -> bool:
        """Return whether a drafter of the grid runs these layers."""
        return bool(self._drafters(layers))

    def _drafters(self, layers: str | None) -> list[str]:
        """Return the drafters of the grid that run these layers: those of an exit, a plan, none."""
        found = dict.fromkeys(self.grid.drafters)
        return [name for name in found if layers_of(name, self.drafting) == layers]

    def _flags_of(self, drafter: str) -> DraftArguments:
        """Return the flags of a drafter, with those options that the drafter takes."""
        options = dataclasses.asdict(self.drafting)
        unset = DraftOptions()
        unused = {name: getattr(unset, name) for name, _ in self.drafting.unused_with(drafter)}
        if "draft_threshold" in unused:
            unused["draft_stop"] = unset.draft_stop
        return DraftArguments(**options | unused, drafter=drafter)

    def _drafting(
        self, run: RunArguments, draft: DraftArguments, exit_layer: int = -1, **changes: Any
    ) -> Iterator[RunArguments]:
        """Yield the speculative runs of each draft length, with other changes of the run."""
        measure = dataclasses.replace(run.measure, teacher_forced=False)
        changes["prune"] = self._counting(changes.get("prune", run.prune), draft)
        for drafts in self.grid.draft_lengths():
            generation = dataclasses.replace(
                self.generation,
                generation_strategy="self_speculative",
                exit_layer=exit_layer,
                num_speculations=drafts,
            )
            yield dataclasses.replace(
                run, generation=generation, measure=measure, draft=draft, **changes
            )

    def _counting(self, plan: PruneArguments, draft: DraftArguments) -> PruneArguments:
        """Return a plan's flags with the sweep's calibration if the drafter alone calibrates."""
        if draft.draft_vocab is None or not isinstance(calibrating(plan, draft), CountingArguments):
            return plan
        excludes = self.calibration.calibration_excludes or self.grid.quality_samples
        return dataclasses.replace(
            calibrated_like(plan, self.calibration),
            prune_seed=plan.prune_seed,
            calibration_excludes=excludes,
        )

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
