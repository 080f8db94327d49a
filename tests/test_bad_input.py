"""Every script answers every kind of bad input in one line that names it, and leaves nothing."""

import importlib
import io
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from command_line.script import run_script
from tests.bad_files import CASES
from tests.bad_inputs import CONFIG, FLAGS, ROWS, TINY, BadInput
from tests.conftest import ROOT, numbered
from tests.trainings import CONFIG as LLAMA


@pytest.fixture
def called(tmp_path, checkpoint, monkeypatch, capfd):
    """Call a script; return its exit code, lines on stderr, and whether files changed."""

    def call(case: BadInput):
        folder = tmp_path / "here"
        folder.mkdir()
        (folder / TINY).symlink_to(checkpoint)
        numbered(folder / ROWS, range(12))
        (folder / CONFIG).write_text(json.dumps(LLAMA))
        monkeypatch.chdir(folder)
        case.lay(Path())
        monkeypatch.setattr(sys, "argv", [f"{case.name}.py"])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(case.piped)))
        for name, value in case.environment.items():
            monkeypatch.setenv(name, value)
        before = entries(folder), entries(checkpoint)
        AcceleratorState._reset_state(reset_partial_state=True)
        main = importlib.import_module(case.script).main
        capfd.readouterr()
        code = run_script(main, case.argv)
        errors = capfd.readouterr().err
        return code, said(errors), before != (entries(folder), entries(checkpoint))

    return call


def said(errors: str) -> list[str]:
    """Return the lines on stderr without progress bars."""
    return [line for line in re.split(r"[\r\n]", errors) if line.strip() and "step/s]" not in line]


def entries(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return all entries below a folder, with facts that show a change; follow no links."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            facts = path.lstat()
            is_folder = stat.S_ISDIR(facts.st_mode)  # a lock in it may have come and gone
            changing = () if is_folder else (facts.st_size, facts.st_mtime_ns)
            found[str(path)] = facts.st_ino, facts.st_mode, *changing
    return found


@pytest.mark.parametrize("case", [*FLAGS, *CASES], ids=lambda case: case.key)
def test_bad_input_gets_one_line_that_names_it(case, called):
    code, lines, changed = called(case)
    assert code == 2
    assert lines[-1].startswith(f"{case.name}.py: error: ")
    assert case.names in lines[-1]
    assert case.tells in "\n".join(lines)
    assert all(case.warns and line.startswith("warning: ") for line in lines[:-1])
    assert case.warns in "\n".join(lines[:-1])
    assert not changed


@pytest.mark.parametrize(
    "command",
    [
        "benchmark.py --dataset custom_jsonl --data_path pipe.jsonl",
        "analyze_logs.py .",
        "generate.py",
        "train.py --config c.json",
    ],
)
def test_real_commands_answer_alike(command, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    script, *flags = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-B", ROOT / script, *flags],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script}: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe.jsonl"]
