"""The command of a report repeats the run that it stands beside."""

import shlex

from analysis.logged_runs import find_logged_runs
from analysis.run_commands import command_of
from benchmark import main
from benchmarks.made_up_runs import MadeUpRun
from command_line.script import run_script
from tests.conftest import rewritten
from tests.made_up import read


def test_the_command_of_a_point_of_a_sweep_finds_its_run(run_sweep, capsys):
    code, folder = run_sweep("--prune_methods", "angular", "--prune_ns", "2")
    assert code == 0
    runs = find_logged_runs([folder]).runs
    for run in (runs[0], runs[-1]):
        with rewritten(run.path) as log:  # pytest, and no script, called the sweep
            log["command"] = log["command"].replace(log["command"].split()[0], "sweep.py", 1)
        (again,) = (one for one in find_logged_runs([folder]).runs if one.path == run.path)
        python, script, *flags = shlex.split(command_of(again))
        assert (python, script) == ("python", "benchmark.py")
        capsys.readouterr()
        assert run_script(main, flags) == 0
        assert run.path.name in capsys.readouterr().out
    assert len(find_logged_runs([folder]).runs) == len(runs)


def test_a_logged_command_is_shown_as_it_is(tmp_path):
    path = MadeUpRun().write(tmp_path)
    for logged, shown in (
        ("benchmark.py --model 'a b'", "python benchmark.py --model 'a b'"),
        ("/opt/run-benchmark --model m", "/opt/run-benchmark --model m"),
        ("sweep.py --model m", "python sweep.py --model m"),  # a log without flags
    ):
        with rewritten(path) as log:
            log["command"] = logged
        assert command_of(read(tmp_path)[0]) == shown


def test_flags_that_begin_with_a_dash_keep_their_value(tmp_path):
    path = MadeUpRun().write(tmp_path)
    with rewritten(path) as log:
        log["command"] = "sweep.py"
        log["arguments"] = {
            "generation": {"exit_layer": -1, "stop_words": ["\n", "a b"], "sample": False},
            "data": {"data_path": "-rows.jsonl"},
        }
    assert shlex.split(command_of(read(tmp_path)[0])) == [
        *["python", "benchmark.py", "--data_path=-rows.jsonl"],
        *["--sample", "false", "--stop_words", "\n", "a b"],
    ]
