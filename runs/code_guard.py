"""Runs one program within limits; says that it ran to its end, in a way that it does not know.

    echo WORD | python -I -B code_guard.py PROGRAM LIMITS     (in the program's own folder)

LIMITS is JSON, as in {"CPU": 10}: the names of `resource.RLIMIT_*`. A byte on stdout says that the
program begins, and WORD after it that its last line has run. WORD is read no earlier, so that a
program that ends the process before its tests has nothing to give back. What it prints goes
nowhere.

The audit hook (PEP 578) refuses what a program has no need of to be judged: writing outside its
own folder, processes, sockets, C. It holds a careless program, not one that is bent on getting
out: for that one there are the limits of the system, and a machine that nothing is lost with.
"""

# Some are imported for the programs: what they do at their import would be refused later.
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

# No program needs a folder or a link; without them, all that is in the program's folder is files.
_REFUSED = (
    *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.removexattr", "os.rmdir", "os.setxattr"),
    *("os.symlink", "os.truncate", "os.utime", "os.lockf", "os.chflags"),
    *("os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.posix_spawn", "os.spawn"),
    *("os.system", "pty.spawn", "resource.prlimit", "resource.setrlimit"),
    *("signal.pthread_kill", "subprocess.Popen"),
)
_REFUSED_MODULES = ("ctypes.", "socket.", "sqlite3.")
# Of what would be refused, what libraries do when they are imported, and asyncio to wake itself.
_HARMLESS: dict[str, Callable[[tuple[Any, ...]], bool]] = {
    "ctypes.dlsym": lambda arguments: str(arguments[1]).startswith("Py"),
    "socket.__new__": lambda arguments: arguments[1] == socket.AF_UNIX,
}
# What Python tells no hook of.
_UNTOLD = {
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
    # Ends the process even where the one that started it is gone and cannot.
    faulthandler.dump_traceback_later(limits["CPU"], exit=True)
    forget()
    sys.argv = [program]
    sys.addaudithook(make_hook(os.path.realpath(".")))
    os.write(answer_end, b".")
    runpy.run_path(program)
    os.write(answer_end, os.read(word_end, 64))
    os._exit(0)


def silence() -> None:
    """Connects the standard streams to nothing."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def lower(limits: dict[str, int]) -> None:
    """Lowers the limits of this process, for good."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, most = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            value = min(value, most)
        # macOS knows RLIMIT_AS and refuses to set it.
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def forget() -> None:
    """Takes away what the audit hook could not refuse."""
    for module, names in _UNTOLD.items():
        for name in names:
            with suppress(AttributeError):  # not on every system
                delattr(sys.modules[module], name)


def make_hook(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that refuses all but reading, and writing a few files in the folder."""
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
        # A path relative to an open folder, of which the hook does not learn where it is.
        if event != "open" and max(arguments[count:]) >= 0:
            raise PermissionError(f"{event} is refused beside open folders")
        if event == "open" and next(opened) > _MOST_FILES:
            raise PermissionError(f"{_MOST_FILES} files have been opened for writing")

    def inside(path: Any) -> bool:
        if isinstance(path, int):
            return True  # has been opened under this hook
        name = os.path.realpath(os.fsdecode(path))
        # The folder itself is what a file without a name is opened by.
        return name == os.devnull or folder in (name, name.rpartition("/")[0])

    return hook


if __name__ == "__main__":
    main()
