"""Runs a program that a model wrote, and says whether it got to its end.

Each program has a process, a folder and limits of its own. Where the system lets an ordinary user
have them, it has namespaces of its own too, in which there is no network and which no process that
it leaves survives. What else it is kept from is told in `code_guard`, which runs it.
"""

import dataclasses
import functools
import json
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_GUARD = Path(__file__).with_name("code_guard.py")
_UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
# The shell stays, as process 1: that one is spared the signals that should end a program.
_NAMESPACES = (*_UNSHARE, "sh", "-c", '"$@"; exit', "sh")
# Without the latter, a Python that lies in a folder of its own may not find its libraries.
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")
# Every thread of a numerical library takes address space.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Limits:
    """What a program may use. `seconds` are by the clock, once Python has started."""

    seconds: float = 10.0
    memory_bytes: int = 4 << 30
    file_bytes: int = 16 << 20
    open_files: int = 64

    def for_system(self) -> dict[str, int]:
        """The limits under the names of `resource.RLIMIT_*`."""
        return {
            "CPU": math.ceil(self.seconds),
            "AS": self.memory_bytes,
            "FSIZE": self.file_bytes,
            "NOFILE": self.open_files,
            "CORE": 0,
        }


LIMITS = Limits()
_SECONDS_TO_START = 60.0


def passes(program: str, limits: Limits = LIMITS) -> bool:
    """Whether the program runs to its last line: without an exception, an exit, or a limit met.

    Neither a process nor a file of it is left behind. Raises `RuntimeError` where it cannot even be
    started, which says nothing of the program.
    """
    try:
        source = program.encode()
    except UnicodeEncodeError:  # half a character, of which no file can be made
        return False
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "program.py"
        path.write_bytes(source)
        return _runs(path, limits)


def isolation() -> dict[str, Any]:
    """The limits that hold on this machine, and what cuts programs off from the network."""
    facts = dataclasses.asdict(LIMITS)
    if sys.platform == "darwin":
        facts["memory_bytes"] = None  # it refuses RLIMIT_AS
    return facts | {"network": "none, by namespace" if _namespaces() else "refused by Python alone"}


def warning() -> str:
    """What the user should know before code that a model wrote is run."""
    facts = isolation()
    memory = facts["memory_bytes"]
    limits = [f"{facts['seconds']:g} s"] + ([f"{memory / 2**30:g} GiB"] if memory else [])
    network = "no network" if _namespaces() else "no network as far as Python can refuse it"
    return (
        "--execute_code true: code that the model writes is run on this machine, each completion "
        f"in a process of its own with at most {', '.join(limits)}, and {network}; it can read "
        "your files"
    )


def _runs(path: Path, limits: Limits) -> bool:
    word = secrets.token_hex(16).encode()
    command = [sys.executable, "-I", "-B", _GUARD, path, json.dumps(limits.for_system())]
    process = subprocess.Popen(
        [*_namespaces(), *command],
        cwd=path.parent,
        env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        | _ONE_THREAD,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with process.stdout, process.stdin:
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(word)
                process.stdin.close()
            if not _answer(process.stdout, 1, _SECONDS_TO_START):
                raise RuntimeError(f"{_GUARD.name} does not start: no completion can be judged")
            return _answer(process.stdout, len(word), limits.seconds) == word
        finally:
            # Before the process is waited for: until then, no other can have its number.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answer(pipe: BinaryIO, size: int, seconds: float) -> bytes:
    """What comes through the pipe next; nothing where it is closed, or silent for too long."""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        return os.read(pipe.fileno(), size) if selector.select(seconds) else b""


@functools.cache
def _namespaces() -> tuple[str, ...]:
    """The command that runs another in namespaces of its own; empty where it is not granted."""
    try:
        done = subprocess.run([*_NAMESPACES, "true"], capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return _NAMESPACES if done.returncode == 0 else ()
