"""Device and dtype of a run, what a log says of them, and the peak of memory."""

import dataclasses
import mmap
import os

import pytest
import torch

from arguments.model import ModelArguments
from command_line.errors import UsageError
from models import runtime
from models.runtime import start
from processes.ranks import Ranks
from tests.loading import CPU


def test_device_and_dtype_follow_the_flags_then_the_machine(monkeypatch):
    assert start(ModelArguments()).dtype == torch.float32
    assert start(ModelArguments(dtype="bfloat16")).dtype == torch.bfloat16
    assert start(ModelArguments(model_args="dtype=float16")).dtype == torch.float16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert start(ModelArguments()).dtype == torch.bfloat16
    assert start(ModelArguments(device="cpu")).dtype == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda: torch sees no CUDA device"):
        start(ModelArguments(device="cuda"))


def test_a_script_of_one_process_refuses_more(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--nproc_per_node 2: of torchrun: this script runs in"):
        start(ModelArguments())
    monkeypatch.setenv("WORLD_SIZE", "1")
    start(ModelArguments())


@pytest.mark.skipif(not runtime._CLEAR_REFS.exists(), reason="the system cannot reset a peak")
def test_the_peak_of_memory_can_begin_anew():
    # Mapped, because an allocator may keep freed memory.
    with mmap.mmap(-1, 200_000_000) as block:
        block.write(b"x" * len(block))
        before = CPU.peak_memory_bytes()
    CPU.reset_peak_memory()
    assert CPU.peak_memory_bytes() < before - 100e6
    assert dataclasses.replace(CPU, holds_more=True).peak_memory_bytes() is None


def test_facts_describe_the_machine():
    facts = CPU.facts()
    assert facts["dtype"] == "float64"
    assert facts["device_type"] == "cpu"
    assert facts["device"]
    assert facts["versions"]["torch"] == torch.__version__
    assert CPU.peak_memory_bytes() > 50e6


@pytest.fixture
def of_two(monkeypatch):
    """Make this process the second of two on one machine."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(runtime, "joined", lambda: Ranks(1, 2, 1, 2))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("chosen", "cores", "threads"), [(None, 8, 4), ("1", 8, 4), ("1", 1, 1)])
def test_processes_of_one_machine_divide_its_cores(of_two, monkeypatch, chosen, cores, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    facts = start(ModelArguments(device="cpu"), parallel=True).facts()
    assert (facts["threads"], facts["ranks"]) == (threads, 2)


def test_threads_that_a_user_chose_stay(of_two, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)  # as torch does at its start
    assert start(ModelArguments(device="cpu"), parallel=True).facts()["threads"] == 3


def test_every_process_has_a_cuda_device_of_its_own(of_two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert start(ModelArguments(), parallel=True).device == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="--nproc_per_node 2: of torchrun: torch sees 1 CUDA dev"):
        start(ModelArguments(), parallel=True)


def test_a_model_spread_over_devices_wants_one_process(of_two):
    spread = ModelArguments(device="cpu", model_args="device_map=auto")
    with pytest.raises(UsageError, match="device_map=auto: spreads one model over all devices"):
        start(spread, parallel=True)
