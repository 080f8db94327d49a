"""Runs a program that a model wrote, and says whether it reached its end.

Each program gets its own process, folder and limits. If the system lets an ordinary user create
them, it also gets its own namespaces, which have no network and end every process that it starts.
`code_guard` runs the program, and documents what else it refuses.
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
from typing import IO, Any

_GUARD = Path(__file__).with_name("code_guard.py")
_UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
# The shell stays as process 1, because process 1 ignores the signals that should end a program.
_NAMESPACES = (*_UNSHARE, "sh", "-c", '"$@"; exit', "sh")
# A Python outside the system's folders may need LD_LIBRARY_PATH to find its libraries.
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")
# Every thread of a numerical library takes address space.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Limits:
    """Limits of one program. `seconds` are wall-clock time after Python has started."""

    seconds: float = 10.0
    memory_bytes: int = 4 << 30
    file_bytes: int = 16 << 20
    open_files: int = 64

    def for_system(self) -> dict[str, int]:
        """Return the limits under the names of `resource.RLIMIT_*`."""
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
    """Return whether the program runs to its last line: no exception, exit or limit stops it.

    Leaves no process and no file behind. Raises `RuntimeError` if the program cannot be started.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "program.py"
        path.write_bytes(program.encode())
        return _runs(path, limits)


def isolation() -> dict[str, Any]:
    """Return the limits that hold on this machine, and what blocks the network."""
    facts = dataclasses.asdict(LIMITS)
    if sys.platform == "darwin":
        facts["memory_bytes"] = None  # macOS refuses RLIMIT_AS
    return facts | {"network": "none, by namespace" if _namespaces() else "refused by Python alone"}


def warning() -> str:
    """Return what the user should know before code that a model wrote runs."""
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
    command = [sys.executable, "-I", "-B", str(_GUARD), str(path), json.dumps(limits.for_system())]
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
    assert process.stdin and process.stdout  # both are pipes
    with process.stdout, process.stdin:
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(word)
                process.stdin.close()
            if not _answer(process.stdout, 1, _SECONDS_TO_START):
                raise RuntimeError(f"{_GUARD.name} does not start: no completion can be judged")
            return _answer(process.stdout, len(word), limits.seconds) == word
        finally:
            # Kill before waiting: until then, no other process can get this number.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answer(pipe: IO[bytes], size: int, seconds: float) -> bytes:
    """Return what comes next through the pipe; nothing if it is closed, or silent too long."""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        return os.read(pipe.fileno(), size) if selector.select(seconds) else b""


@functools.cache
def _namespaces() -> tuple[str, ...]:
    """Return the command that runs another in its own namespaces; empty if not permitted."""
    try:
        done = subprocess.run([*_NAMESPACES, "true"], capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return _NAMESPACES if done.returncode == 0 else ()
