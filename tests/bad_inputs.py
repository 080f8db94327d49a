"""One bad input: a script, its flags, the files that lie there, and what its line must name."""

import json
import os
import shlex
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from files.reading import LINE_BYTES

Content = str | bytes | Callable[[Path], Any]
TERABYTE = 1 << 40
TINY = "tiny"  # a link to the tiny Llama, which lies in every folder, as do:
ROWS = "rows.jsonl"
CONFIG = "llama.json"
# Flags that lead far into a script.
RUN = f"--dataset custom_jsonl --data_path {ROWS} --dtype float64 --model"
TRAIN = (
    f"--config {CONFIG} --tokenizer bpe --dataset custom_jsonl --data_path {ROWS} "
    "--eval_samples 2 --max_length 32 --mixed_precision no"
)


@dataclass(frozen=True)
class BadInput:
    """What is `wrong`; `flags` as a shell reads them, `more` as they are. The line `names` the
    culprit, and `tells` what is wrong with it.

    `files` lie in the folder that the script is called in. `warns` is told in the warnings before
    the line, without which there are none. `leaves` files: those of a run that broke down.
    """

    script: str
    wrong: str
    flags: str
    names: str
    files: dict[str, Content] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    piped: bytes = b""
    environment: dict[str, str] = field(default_factory=dict)
    tells: str = ""
    code: int = 2
    warns: str = ""
    leaves: bool = False

    @property
    def name(self) -> str:
        """The script's, without the folder that it is in."""
        return self.script.rpartition(".")[2]

    @property
    def key(self) -> str:
        return f"{self.script}: {self.wrong}"

    @property
    def argv(self) -> list[str]:
        return [*shlex.split(self.flags), *self.more]

    def lay(self, folder: Path) -> None:
        """Makes the files."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)


def sparse(size: int, text: bytes = b"") -> Callable[[Path], None]:
    """A file that begins with a text and has so many bytes, which take no room on the disk."""

    def make(path: Path) -> None:
        path.write_bytes(text)
        os.truncate(path, size)

    return make


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    """One that nobody writes to: who waits for it waits for ever."""
    os.mkfifo(path)


def listening(path: Path) -> None:
    """A socket. Its path is relative, as it may have but some hundred characters."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def long_line(rest: str) -> Callable[[Path], None]:
    """A second line that is longer than any that is read."""
    return sparse(LINE_BYTES + 100, rest.encode())


def copied(**changed: Content) -> Callable[[Path], None]:
    """The tiny Llama with other files: names with _ for the dot, None for one that is not there."""

    def make(path: Path) -> None:
        shutil.copytree(path.parent / TINY, path)
        for name, content in changed.items():
            file = path / name.replace("_DOT_", ".")
            file.unlink(missing_ok=True)
            if callable(content):
                content(file)
            elif content is not None:
                file.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def configured(**changes: Any) -> Callable[[Path], None]:
    """The tiny Llama with other values in its config.json."""

    def make(path: Path) -> None:
        shutil.copytree(path.parent / TINY, path)
        config = json.loads((path / "config.json").read_text()) | changes
        (path / "config.json").write_text(json.dumps(config))

    return make
