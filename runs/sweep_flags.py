"""The flags of a sweep's grid: which plans, decoders and data sets."""

from dataclasses import dataclass

from arguments.drafting import DRAFTER_NAMES
from arguments.pruning import METHODS, PATCHES, PRUNE_METHODS, named_layers
from command_line.errors import reject
from command_line.flags import check_least, flag, is_folder
from prompts.dataset_table import DATASETS

# Each flag that lists plans, and the flag of a run that takes one value of its list.
PLAN_LISTS = {
    "prune_ns": "prune_n",
    "dropout_thresholds": "dropout_threshold",
    "prune_layers": "prune_layers",
}
_LIST_OF = {value: name for name, value in PLAN_LISTS.items()}
_RANDOM_BY = METHODS["random"].needs


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
    prune_ns: list[int] = flag(
        [], "a plan for each number of layers removed, of every criterion that takes --prune_n"
    )
    dropout_thresholds: list[float] = flag([], "random: a plan for each probability")
    prune_layers: list[str] = flag([], "layers: a plan for each word, as in 21,22,25 3,4")
    prune_patches: list[str] = flag(
        ["none"], "each plan that removes layers, once with each patch", PATCHES
    )
    random_by: list[str] = flag(
        [],
        "random: the flags whose lists make its plans (default: dropout_threshold if "
        "--dropout_thresholds are given, else prune_n)",
        _RANDOM_BY,
    )
    prune_seeds: list[int] = flag(
        [], "random: a plan for each seed (default: three, from --prune_seed on)"
    )
    drafters: list[str] = flag(
        ["early_exit"],
        "early_exit: each plan drafts with its first layers; pruned: the layers that each plan "
        "keeps draft for the unpruned model, which needs base among --prune_methods; lookup, "
        "recycling, hybrid: like --drafter",
        DRAFTER_NAMES,
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
        self._check_lists()
        for count in self.prune_ns:
            if count < 1:
                reject("prune_ns", count, "must be 1 to L - 2, L being the model's layers")
        for threshold in self.dropout_thresholds:
            if not 0 <= threshold < 1:
                reject("dropout_thresholds", threshold, "must be in [0, 1)")
        for text in self.prune_layers:
            named_layers("prune_layers", text)
        if self.data_dir is not None and not is_folder(self.data_dir):
            reject("data_dir", self.data_dir, "is no folder")

    def lists_of(self, method: str) -> list[str]:
        """Return the flags whose lists make the plans of a criterion."""
        given = [_LIST_OF[need] for need in METHODS[method].needs if getattr(self, _LIST_OF[need])]
        if method != "random":
            return given
        return [_LIST_OF[name] for name in dict.fromkeys(self.random_by)] or given[:1]

    def _check_lists(self) -> None:
        """Refuse methods without the values that they need, and values that no method takes."""
        methods = list(dict.fromkeys(self.prune_methods))
        for method in methods:
            needs = [f"--{_LIST_OF[need]}" for need in METHODS[method].needs]
            if needs and not self.lists_of(method):
                reject("prune_methods", method, f"needs {' or '.join(needs)}")
        for name in ("random_by", "prune_seeds"):
            if getattr(self, name) and "random" not in methods:
                self._refuse(name, "only with --prune_methods random")
        for name in self.random_by:
            if not getattr(self, _LIST_OF[name]):
                reject("random_by", name, f"needs --{_LIST_OF[name]}")
        taken = {name for method in methods for name in self.lists_of(method)}
        for name, single in PLAN_LISTS.items():
            if getattr(self, name) and name not in taken:
                takers = [one for one, method in METHODS.items() if single in method.needs]
                by_other = "random" in takers and "random" in methods
                others = "--random_by " + " ".join(_RANDOM_BY)
                methods_of_it = f"--prune_methods {', '.join(takers)}"
                self._refuse(name, f"only with {others if by_other else methods_of_it}")
        if methods == ["base"] and set(self.prune_patches) != {"none"}:
            self._refuse("prune_patches", "--prune_methods base removes nothing to replace")

    def check_drafts_by_plans(self, drafter: str) -> None:
        """Refuse a drafter that keeps a plan's layers, in a grid without plan or verifier."""
        if "base" not in self.prune_methods:
            reject("drafters", drafter, "needs base among --prune_methods, which verifies")
        if set(self.prune_methods) == {"base"}:
            reject("drafters", drafter, "needs a criterion among --prune_methods beside base")
        if self.speed_samples == 0:
            reject("drafters", drafter, "drafts nothing with --speed_samples 0")

    def check_no_exit_layers(self) -> None:
        """Refuse exit layers, for a grid without a drafter that has one."""
        for name, default in (("first", 1), ("last", None), ("step", 1)):
            value = getattr(self, f"exit_layer_{name}")
            if value != default:
                reject(f"exit_layer_{name}", value, "only with --drafters early_exit")

    def _refuse(self, name: str, allowed: str) -> None:
        """Refuse the list of a flag that no plan would use."""
        reject(name, " ".join(map(str, getattr(self, name))), allowed)

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
