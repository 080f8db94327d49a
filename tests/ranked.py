"""Several processes as threads of one, which talk through a store in memory."""

import threading
from importlib import import_module
from importlib.util import find_spec

import torch.distributed

from command_line.script import run_script
from models import runtime
from processes import ranks
from processes.ranks import Ranks
from runs import experiment, preparation, sweep_runs


def in_ranks(count, work, store=None):
    """What `work(ranks)` returned in each of `count` ranks, or the error that it raised."""
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
    """The exit codes of a script that `count` ranks run together."""
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
    """Loading sets the process's default dtype for a while."""

    def loaded(*arguments):
        with lock:
            return load(*arguments)

    return loaded
