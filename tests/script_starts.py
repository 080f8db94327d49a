"""Start scripts, each in a process of its own, forked from one process with all imports done.

Imports take longer than most scripts. A fork per start keeps what a client of the hub remembers
from one start out of the next. `Starter` runs this file and talks to it in lines of JSON.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

IMPORTED = (
    *("benchmark", "generate", "sweep", "datasets", "runs.preparation", "runs.sweep_runs"),
    *("transformers.models.llama.modeling_llama", "huggingface_hub.file_download"),
)


class Starter:
    """A process that starts scripts one after another."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-B", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | {"OMP_NUM_THREADS": "1"},  # as in the tests themselves
            text=True,
        )

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # the interpreter alone would take seconds to end
        self._process.communicate()

    def begin(self, script: str, *words: object) -> int:
        """Start a script; return its process id."""
        line = json.dumps([script, list(map(str, words))])
        print(line, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def end(self) -> tuple[int, str, str]:
        """Wait for the script; return its exit code, output and messages."""
        return tuple(json.loads(self._process.stdout.readline()))

    def run(self, script: str, *words: object) -> tuple[int, str, str]:
        self.begin(script, *words)
        return self.end()


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    for module in IMPORTED:
        importlib.import_module(module)
    import datasets
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    # It would ask another host.
    datasets.config.USE_PARQUET_EXPORT = False
    # The client repeats unanswered requests after waits that add up to minutes.
    for module in (file_download, _http):
        module.time = SimpleNamespace(sleep=lambda seconds: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        script, words = json.loads(line)
        _start(script, words)


def _start(script: str, words: list[str]) -> None:
    """Run a script; print its process id, and at its end the exit code and what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("out", "err")]
        process = os.fork()
        if not process:
            _run(script, words, streams)
        print(process, flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        texts = [path.read_text() if path.exists() else "" for path in streams]
    print(json.dumps([code, *texts]), flush=True)


def _run(script: str, words: list[str], streams: list[Path]) -> None:
    from command_line.script import run_script

    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [f"{script}.py", *words]
    code = 1  # for an error that `run_script` lets through
    try:
        code = run_script(importlib.import_module(script).main, words)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
