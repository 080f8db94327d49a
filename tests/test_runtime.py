"""Where a run happens: what settles it, what a log says of it, the memory that it takes."""

import dataclasses
import mmap

import pytest
import torch

import runtime
from arguments import ModelArguments
from command_line import UsageError
from runtime import Runtime, start

CPU = Runtime(torch.device("cpu"), torch.float64)


def test_dtype_follows_the_flag_then_the_device(monkeypatch):
    assert start(ModelArguments()).dtype == torch.float32
    assert start(ModelArguments(dtype="bfloat16")).dtype == torch.bfloat16
    assert start(ModelArguments(model_args="dtype=float16")).dtype == torch.float16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert start(ModelArguments()).dtype == torch.bfloat16
    assert start(ModelArguments(device="cpu")).dtype == torch.float32


def test_cuda_that_is_not_there_is_refused(monkeypatch):
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
    # Mapped, not allocated: an allocator may keep what is freed.
    with mmap.mmap(-1, 400_000_000) as block:
        block.write(b"x" * len(block))
        before = CPU.peak_memory_bytes()
    CPU.reset_peak_memory()
    assert CPU.peak_memory_bytes() < before - 100e6
    assert dataclasses.replace(CPU, holds_more=True).peak_memory_bytes() is None


def test_facts_name_what_a_reader_must_know():
    facts = CPU.facts()
    assert facts["dtype"] == "float64"
    assert facts["device_type"] == "cpu"
    assert facts["device"]
    assert facts["versions"]["torch"] == torch.__version__
    assert CPU.peak_memory_bytes() > 50e6
