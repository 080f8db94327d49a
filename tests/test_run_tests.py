"""The shell scripts call sweep.py with the right flags, and again after a run that killed it."""

import itertools
import os
import shlex
import subprocess
import sys
from collections import Counter

import pytest

import sweep
from command_line.errors import EXIT_BUSY, EXIT_INTERRUPTED, UsageError
from runs.reader import find_runs, read_record
from tests.conftest import ROOT, numbered

DEFAULT_DATASETS = ["cnn_dm_lm", "human_eval", "xsum_summarization", "cnn_dm_summarization"]
# A stand-in for Python. It records each call, and obeys the next line of the file `acts`: an exit
# code, whether the sweep began, and the run that ended it.
PYTHON = """#!/usr/bin/env bash
cd "$(dirname "$0")"
printf '%q ' "$@" >>calls
echo >>calls
[ -e acts ] || exit 0
read -r code begun run <acts
sed -i 1d acts
[ -z "$begun" ] || touch "$SWEEP_TRIES"
[ -z "$run" ] || echo "$run" >>"$SWEEP_TRIES"
exit "$code"
"""
SLEEP = '#!/usr/bin/env bash\necho "$@" >>"$(dirname "$0")/naps"\n'


class Shell:
    """Run the shell scripts in a folder with stand-ins for Python and sleep."""

    def __init__(self, folder):
        self.folder = folder
        for name, text in (("python", PYTHON), ("sleep", SLEEP)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def __call__(self, *flags, script="run_tests", acts=(), **environment):
        (self.folder / "calls").unlink(missing_ok=True)
        if acts:
            (self.folder / "acts").write_text("".join(f"{act}\n" for act in acts))
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", str(ROOT / script), *flags],
            env={"PATH": path, "PYTHON": str(self.folder / "python")} | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self):
        path = self.folder / "calls"
        return list(map(shlex.split, path.read_text().splitlines())) if path.exists() else []

    def arguments(self, *flags, **environment):
        """Return the parsed flags of the only call of sweep.py."""
        done = self(*flags, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        ((script, *words),) = self.calls()
        assert script == str(ROOT / "sweep.py")
        return sweep.parse_sweep(words)


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def runs_of(arguments):
    """Yield data set, plan, exit layer and draft length of each run of a sweep."""
    for baseline in arguments.first_runs():
        drafting = (arguments.speculative(baseline, e) for e in arguments.grid.exit_layers(99))
        for run in [baseline, *itertools.chain.from_iterable(drafting)]:
            plan = run.prune.prune_method, run.prune.prune_n or run.prune.dropout_threshold
            yield run.data.dataset, plan, run.generation.exit_layer, run.generation.num_speculations


def test_the_usual_sweep(shell):
    arguments = shell.arguments()
    plans = [("angular", 1), ("angular", 2), ("angular", 3)]
    plans += [("random", 0.1)] * 3 + [("random", 0.2)] * 3  # three seeds each
    points = itertools.product(DEFAULT_DATASETS, plans, [(-1, -1), (8, 6)])
    assert list(runs_of(arguments)) == [(name, plan, *point) for name, plan, point in points]
    assert arguments.model.model == "facebook/layerskip-llama2-7B"
    assert {run.prune.prune_seed for run in arguments.first_runs()} == {42, 43, 44}
    assert arguments.data.num_samples == 20
    assert arguments.log.output_dir == "./logs/eval"


def test_base_and_pruned_runs_share_prompts_exit_layer_and_draft_length(shell):
    """Pruned runs at exit layer 30 were once compared with a base run at 31."""
    base, pruned = shell.arguments(script="run_tests_base"), shell.arguments()
    points = ({(name, *point) for name, _, *point in runs_of(one)} for one in (base, pruned))
    assert len(set(map(frozenset, points))) == 1
    assert {plan for _, plan, *_ in runs_of(base)} == {("base", None)}
    for group in ("model", "data", "calibration", "generation", "log"):
        assert getattr(base, group) == getattr(pruned, group)


def test_the_environment_sets_the_sweep_and_flags_pass_through(shell, tmp_path):
    (tmp_path / "rows" / "xsum").mkdir(parents=True)
    (tmp_path / "rows" / "top_v2.csv.gz").write_text("")
    rows = str(tmp_path / "rows")
    arguments = shell.arguments(
        *("--max_steps", "7", "--template", "it's {message} \\n $HOME *"),
        MODEL="a/b c",
        DATASETS="xsum_summarization top_v2 human_eval",
        PRUNE_NS="4",
        THRESHOLDS="0.5",
        PRUNE_SEEDS="1 2",
        NUM_SAMPLES="9",
        EXIT_LAYER="3",
        NUM_SPECULATIONS="2",
        OUTPUT_DIR="o ut",
        DATA_DIR=rows,
    )
    assert len(list(runs_of(arguments))) == 3 * 3 * 2
    assert {run[2:] for run in runs_of(arguments)} == {(-1, -1), (3, 2)}
    baselines = list(arguments.first_runs())
    assert {(one.model.model, one.data.num_samples) for one in baselines} == {("a/b c", 9)}
    assert {(one.generation.max_steps, one.log.output_dir) for one in baselines} == {(7, "o ut")}
    assert {one.data.template for one in baselines} == {"it's {message} \\n $HOME *"}
    random = [one.prune for one in baselines if one.prune.prune_method == "random"]
    assert {one.prune_seed for one in random} == {1, 2}
    assert {one.data.dataset: one.data.data_path for one in baselines} == {
        "xsum_summarization": f"{rows}/xsum",
        "top_v2": f"{rows}/top_v2.csv.gz",
        "human_eval": None,
    }


def test_a_method_without_values_has_no_plans(shell):
    assert {plan for _, plan, *_ in runs_of(shell.arguments(THRESHOLDS="", PRUNE_NS="1"))} == {
        ("angular", 1)
    }
    assert {plan[0] for _, plan, *_ in runs_of(shell.arguments(PRUNE_NS=""))} == {"random"}


def test_each_criterion_takes_its_values_from_the_environment(shell):
    arguments = shell.arguments(
        PRUNE_METHODS="base random last layers taylor magnitude",
        PRUNE_NS="2 4",
        PRUNE_LAYERS="3,4 7",
        PRUNE_PATCHES="none linear",
        RANDOM_BY="prune_n",
        PRUNE_SEEDS="5 6",
        DATASETS="human_eval",
        DRAFTERS="pruned",
    )
    plans = [run.prune for run in arguments.first_runs()]
    counts = {"base": 1, "random": 2 * 2 * 2, "last": 4, "layers": 4, "taylor": 4, "magnitude": 4}
    assert Counter(plan.prune_method for plan in plans) == counts
    assert {plan.dropout_threshold for plan in plans} == {None}
    assert arguments.grid.drafters == ["pruned"]


@pytest.mark.parametrize(
    ("asked", "drafters"), [("pruned", ["early_exit"]), ("lookup pruned", ["lookup"])]
)
def test_the_base_runs_have_no_pruned_drafters(shell, asked, drafters):
    found = shell.arguments(script="run_tests_base", DRAFTERS=asked)
    assert found.grid.drafters == drafters


def test_options_of_drafters_are_passed_on(shell):
    options = ["--hybrid_drafter", "early_exit", "--draft_vocab", "99", "--draft_stop", "adaptive"]
    found = shell.arguments(*options, DRAFTERS="hybrid", EXIT_LAYER="3")
    assert (found.grid.drafters, found.grid.exit_layer_first) == (["hybrid"], 3)
    assert (found.drafting.draft_vocab, found.drafting.draft_stop) == (99, "adaptive")


@pytest.mark.parametrize(
    ("acts", "code"),
    [
        (["0 begun"], 0),
        (["2"], 2),  # a bad setting
        (["2 begun"], 1),  # a bad run
        (["1 begun"], 1),
        (["130 begun a"], EXIT_INTERRUPTED),
        (["137"], 1),  # before any run
        (["137 begun a", "0"], 0),
        (["1 begun a", "139 begun a", "137 begun b", "1 begun"], 1),
        ([f"{EXIT_BUSY} begun", f"{EXIT_BUSY} begun", "0 begun"], 0),
    ],
)
def test_the_sweep_starts_again_after_a_run_that_ended_it(shell, acts, code):
    done = shell(acts=acts)
    assert done.returncode == code
    calls = shell.calls()
    assert len(calls) == len(acts)
    assert calls.count(calls[0]) == len(acts)
    waited = (shell.folder / "naps").exists()
    assert waited == (acts[0].startswith(str(EXIT_BUSY)))
    assert (shell.folder / "acts").read_text() == ""


def test_a_dry_run_is_one_process(shell):
    assert shell.arguments("--dry-run", NPROC="2").grid.dry_run


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PRUNE_METHODS": "magic"}, "'magic'"),
        ({"DATA_DIR": "nowhere"}, "--data_dir nowhere: is no folder"),
        ({"DATASETS": ""}, "--datasets: expected at least one argument"),
        ({"PRUNE_NS": "", "THRESHOLDS": ""}, "--prune_methods: expected at least one argument"),
        ({"NPROC": "two"}, "NPROC two: must be a number of processes"),
        ({"PYTHON": "no-such-python"}, "PYTHON no-such-python: no such command"),
    ],
)
def test_bad_settings_are_one_line(shell, environment, message):
    done = shell(**environment)
    lines = done.stderr.splitlines()
    if done.returncode == 0:
        with pytest.raises(UsageError) as caught:
            sweep.parse_sweep(shell.calls()[0][1:])
        lines = str(caught.value).splitlines()
    else:
        assert (done.returncode, shell.calls()) == (2, [])
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    "flag",
    ["--exit_layer", "--exit_layer=4", "--prune_method", "--datasets", "--drafters", "--random_by"],
)
def test_flags_in_which_runs_differ_come_from_the_environment(shell, flag):
    """With an exit layer, an autoregressive run is another model and no baseline."""
    done = shell(flag, "4")
    assert done.returncode == 2
    assert "set it in the environment" in done.stderr
    assert shell.calls() == []


def test_help_names_every_setting(shell):
    done = shell("--help")
    assert done.returncode == 0
    plans = ("PRUNE_NS", "PRUNE_LAYERS", "PRUNE_PATCHES", "THRESHOLDS", "RANDOM_BY", "PRUNE_SEEDS")
    for name in ("MODEL", "DATASETS", *plans, "DRAFTERS", "NUM_SAMPLES"):
        assert f"  {name} " in done.stdout
    assert "#" not in done.stdout


def test_more_processes_go_through_torchrun(shell):
    assert shell(NPROC="2").returncode == 0
    (call,) = shell.calls()
    assert call[:2] == ["-m", "torch.distributed.run"]
    assert call[2:5] == ["--standalone", "--nproc_per_node", "2"]
    # launch_ranks wraps the command, and adds a file for exit codes.
    command = call[call.index("--as-rank") + 2 :]
    assert command[:2] == [str(shell.folder / "python"), str(ROOT / "sweep.py")]


# Runs sweep.py, and kills the process at the second prompt of a run that drafts with a random plan.
FRAGILE = """
import os, signal, sys
import sweep
from command_line.script import run_script
from runs import measuring

ordinary = measuring.measure_examples

def fatal(run, decoder, keys, encoded):
    flags = run.arguments
    drafts = flags.generation.exit_layer > 0
    if keys[0].example == 1 and flags.prune.prune_method == "random" and drafts:
        os.kill(os.getpid(), signal.SIGKILL)
    return ordinary(run, decoder, keys, encoded)

measuring.measure_examples = fatal
sys.exit(run_script(sweep.main, sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_that_kills_its_process_costs_that_run_alone(checkpoint, tmp_path, processes):
    (tmp_path / "rows").mkdir()
    numbered(tmp_path / "rows" / "custom_jsonl.jsonl", range(12))
    (tmp_path / "fragile.py").write_text(FRAGILE)
    script = f"""#!/usr/bin/env bash
case $1 in -m) exec {sys.executable} "$@" ;; esac
shift
exec {sys.executable} {tmp_path}/fragile.py "$@"
"""
    (tmp_path / "python").write_text(script)
    (tmp_path / "python").chmod(0o755)
    settings = {
        "PYTHON": str(tmp_path / "python"),
        "PYTHONPATH": str(ROOT),
        "MODEL": str(checkpoint),
        "DATASETS": "custom_jsonl",
        "DATA_DIR": str(tmp_path / "rows"),
        "PRUNE_METHODS": "random base",
        "THRESHOLDS": "0.1",
        "PRUNE_SEEDS": "42",
        "NUM_SAMPLES": "3",
        "EXIT_LAYER": "4",
        "NUM_SPECULATIONS": "2",
        "OUTPUT_DIR": str(tmp_path / "logs"),
        "NPROC": processes,
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", str(ROOT / "run_tests"), "--sample", "false", "--max_steps", "8"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("starting again for the rest") == 2
    assert "3 of 4 runs are complete" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if "given up" in line]
    assert "custom_jsonl, random p=0.1 seed=42, exit layer 4, 2 drafts: given up" in line
    statuses = [read_record(path).status for path in find_runs(tmp_path / "logs")]
    assert sorted(statuses) == ["complete"] * 3 + ["running"]
