"""Starts scripts one after another, each in a process of its own that has imported all already.

A process of its own, as what a client of the hub knows outlives a call; and few imports, as they
take longer than everything else. Standard input holds a line of JSON for each start, standard
output one for how it went.
"""

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

IMPORTED = (
    *("benchmark", "generate", "datasets", "runs.experiment", "runs.preparation"),
    *("transformers.models.llama.modeling_llama", "huggingface_hub.file_download"),
)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    for module in IMPORTED:
        importlib.import_module(module)
    import datasets
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    # It is asked at another host, whose name is no business of a test.
    datasets.config.USE_PARQUET_EXPORT = False

    # What a hub does not answer is asked for again, after waits that add up to minutes.
    for module in (file_download, _http):
        module.time = SimpleNamespace(sleep=lambda seconds: None)
    for line in sys.stdin:
        script, words = json.loads(line)
        print(json.dumps(start(script, words)), flush=True)


def start(script: str, words: list[str]) -> dict[str, object]:
    """Runs a script; returns its exit code and what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("out", "err")]
        process = os.fork()
        if not process:
            _run(script, words, streams)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        out, err = (path.read_text() for path in streams)
    return {"code": code, "out": out, "err": err}


def _run(script: str, words: list[str], streams: list[Path]) -> None:
    from command_line.script import run_script

    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [f"{script}.py", *words]
    code = 1  # an error that `run_script` lets through
    try:
        code = run_script(importlib.import_module(script).main, words)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
