"""Results begin alike, end with one line of conditions, and their pages follow from the JSON."""

import json
import subprocess
import sys

import pytest

from benchmarks import decoding_report, early_exit, peers_report, scaling
from benchmarks.results import conditions, head
from command_line.errors import EXIT_USAGE
from tests.conftest import ROOT

TABLES = {
    "decoding": decoding_report.table,
    "early_exit": early_exit.table,
    "peers": peers_report.table,
    "scaling": scaling.table,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_published_page_is_the_table_of_its_json(name):
    results = json.loads((ROOT / "results" / f"{name}.json").read_text())
    assert (ROOT / "results" / f"{name}.md").read_text() == TABLES[name](results)


def test_a_line_of_conditions_names_machine_versions_and_command():
    results = head("python x.py", ["--template", "a b"], "tiny") | {"commit": None, "date": "today"}
    versions = {"torch": "2", "transformers": "5", "python": "3"}
    runtime = {"dtype": "float32", "device": "CPU", "threads": 1, "versions": versions}
    assert conditions(results, runtime, "3 prompts", {"peer": "7", "absent": None}) == (
        "tiny, 3 prompts, float32, CPU (1 thread), torch 2, transformers 5, peer 7, "
        "commit unknown, today: `python x.py --template 'a b'`"
    )


def test_benchmarks_start_as_files_too():
    guard = "if not __package__:  # started as a file, whose folder Python puts first\n    sys.path"
    for name in ("early_exit", "peers", "scaling"):
        assert guard in (ROOT / "benchmarks" / f"{name}.py").read_text()
    # The others import torch, which takes seconds.
    line = [sys.executable, "benchmarks/scaling.py", "--no_such_flag"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (EXIT_USAGE, "")
    assert done.stderr == "scaling.py: error: --no_such_flag: no such flag\n"
