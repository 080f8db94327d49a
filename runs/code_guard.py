"""Runs one program within limits; reports that it reached its end by a word it does not know.

    echo WORD | python -I -B code_guard.py PROGRAM LIMITS     (in the program's own folder)

LIMITS is JSON, such as {"CPU": 10}, with the names of `resource.RLIMIT_*`. A byte on stdout says
that the program begins; WORD after it says that its last line has run. WORD is read only then, so
that a program that exits before its tests cannot print it. The program's own output is discarded.

The audit hook (PEP 578) refuses what no judged program needs: writing outside its folder,
processes, sockets, C. It stops a careless program, not a hostile one: against that, use the
system's limits, and a machine that you can afford to lose.
"""

# Unused ones are imported for the programs, because the hook would refuse their import later.
import ctypes  # noqa: F401
import faulthandler
import itertools
import json
import os
import resource
import runpy
import signal  # noqa: F401
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# No program needs folders or links; without them, the program's folder contains only files.
_REFUSED = (
    *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.removexattr", "os.rmdir", "os.setxattr"),
    *("os.symlink", "os.truncate", "os.utime", "os.lockf", "os.chflags"),
    *("os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.posix_spawn", "os.spawn"),
    *("os.system", "pty.spawn", "resource.prlimit", "resource.setrlimit"),
    *("signal.pthread_kill", "subprocess.Popen"),
)
_REFUSED_MODULES = ("ctypes.", "socket.", "sqlite3.")
# Events that are refused otherwise, but that libraries raise when imported, or asyncio to wake up.
_HARMLESS: dict[str, Callable[[tuple[Any, ...]], bool]] = {
    "ctypes.dlsym": lambda arguments: str(arguments[1]).startswith("Py"),
    "socket.__new__": lambda arguments: arguments[1] == socket.AF_UNIX,
}
# Calls that raise no audit event.
_UNAUDITED = {
    "os": ("mkfifo", "mknod", "pidfd_open"),
    "posix": ("mkfifo", "mknod", "pidfd_open"),
    "signal": ("pidfd_send_signal",),
    "_signal": ("pidfd_send_signal",),
}
_MOST_FILES = 64
_PATHS_OF = {"open": 1, "os.remove": 1, "os.rename": 2}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    program, limits = sys.argv[1], json.loads(sys.argv[2])
    word_end, answer_end = os.dup(0), os.dup(1)
    silence()
    lower(limits)
    # Ends this process even if its parent is gone.
    faulthandler.dump_traceback_later(limits["CPU"], exit=True)
    forget()
    sys.argv = [program]
    sys.addaudithook(make_hook(os.path.realpath(".")))
    os.write(answer_end, b".")
    runpy.run_path(program)
    os.write(answer_end, os.read(word_end, 64))
    os._exit(0)


def silence() -> None:
    """Connect the standard streams to nothing."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def lower(limits: dict[str, int]) -> None:
    """Lower the limits of this process for good."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, most = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            value = min(value, most)
        # macOS has RLIMIT_AS, but refuses to set it.
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def forget() -> None:
    """Remove the calls that the audit hook cannot refuse."""
    for module, names in _UNAUDITED.items():
        for name in names:
            with suppress(AttributeError):  # not on every system
                delattr(sys.modules[module], name)


def make_hook(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that allows only reading, and writing a few files in the folder."""
    opened = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _HARMLESS and _HARMLESS[event](arguments):
            return
        if event in _REFUSED or event.startswith(_REFUSED_MODULES):
            raise PermissionError(f"{event} is refused")
        if event not in _PATHS_OF or (event == "open" and not arguments[2] & _WRITING):
            return
        count = _PATHS_OF[event]
        if not all(map(inside, arguments[:count])):
            raise PermissionError(f"{event} is refused outside {folder}")
        # The hook cannot know where a path relative to an open folder leads.
        if event != "open" and max(arguments[count:]) >= 0:
            raise PermissionError(f"{event} is refused beside open folders")
        if event == "open" and next(opened) > _MOST_FILES:
            raise PermissionError(f"{_MOST_FILES} files have been opened for writing")

    def inside(path: Any) -> bool:
        if isinstance(path, int):
            return True  # an open file, which this hook has allowed
        name = os.path.realpath(os.fsdecode(path))
        # A file without a name is opened by its folder.
        return name == os.devnull or folder in (name, name.rpartition("/")[0])

    return hook


if __name__ == "__main__":
    main()
