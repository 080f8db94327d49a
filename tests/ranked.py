"""Run several processes of a script, as threads that share a store or under torchrun."""

import multiprocessing
import os
import sys
import threading
from importlib import import_module
from importlib.util import find_spec

import torch.distributed
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from command_line.script import run_script
from models import runtime
from processes import ranks
from processes.ranks import Ranks
from runs import experiment, preparation, sweep_runs


def in_ranks(count, work, store=None):
    """Return what `work(ranks)` returns, or the error that it raises, in each of `count` ranks."""
    store, found = store or torch.distributed.HashStore(), [None] * count

    def run(rank):
        try:
            found[rank] = work(Ranks(rank, count, rank, count, store))
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    return found


def scripts_in_ranks(monkeypatch, count, main, argv):
    """Return the exit codes of a script that `count` ranks run together."""
    mine, loading = threading.local(), threading.Lock()
    modules = [ranks, runtime]
    if find_spec("lm_eval"):
        modules.append(import_module("harness.evaluation"))
    for module in modules:
        monkeypatch.setattr(module, "joined", lambda: getattr(mine, "ranks", ranks.ALONE))
    for module in (experiment, sweep_runs, preparation):
        monkeypatch.setattr(module, "load_model", _one_by_one(module.load_model, loading))

    def work(ranks):
        mine.ranks = ranks
        return run_script(main, argv)

    return in_ranks(count, work)


def _one_by_one(load, lock):
    """Let only one thread load at a time: loading changes the default dtype of the process."""

    def loaded(*arguments):
        with lock:
            return load(*arguments)

    return loaded


class Torchrun:
    """Starts a script under torchrun, in forks of this process, which need not import again."""

    def __init__(self, folder, count, main, argv):
        self._outputs = {name: folder / name for name in ("stdout", "stderr")}
        arguments = (self._outputs, count, main, argv)
        self._process = multiprocessing.get_context("fork").Process(target=_launch, args=arguments)
        self._process.start()

    def wait(self, seconds=60):
        """Return the exit code, and the texts of stdout and stderr."""
        self._process.join(seconds)
        assert self._process.exitcode is not None
        return self._process.exitcode, *(path.read_text() for path in self._outputs.values())


def _launch(outputs, count, main, argv):
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does; accelerate warns without it
    for name, path in outputs.items():
        file = path.open("w", buffering=1)
        os.dup2(file.fileno(), getattr(sys, f"__{name}__").fileno())
        setattr(sys, name, file)
    where = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test"}
    config = LaunchConfig(1, 1, count, **where, max_restarts=0, start_method="fork")
    elastic_launch(config, _run)(main, argv)


def _run(main, argv):
    sys.argv = [f"{main.__module__}.py"]
    sys.exit(run_script(main, argv))
