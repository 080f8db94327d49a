"""A process that runs for days needs no more memory and files than in its first minutes."""

import gc
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.pruning import PruneArguments
from runs.preparation import load_pruned
from runs.reader import find_runs
from runs.writer import LogWriter, claimed
from tests.runs.test_record import record, sample

OPEN_FILES = Path("/proc/self/fd")
MEMORY = Path("/proc/self/statm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MEMORY.exists(), reason="needs /proc"),
]

GENERATIONS, WARM_UP, INTERVAL, WINDOW = 700, 120, 20, 100
LONGEST_PROMPT = 60
# Noise of allocators; a cache that is never freed would grow by more than 100 KB per generation.
ALLOWED_GROWTH = 1_000_000

PLAIN = {"max_steps": 6, "exit_layer": -1}
DRAFTED = {
    "generation_strategy": "self_speculative",
    "max_steps": 6,
    "exit_layer": 3,
    "num_speculations": 3,
}
FLAGS = [
    GenerationArguments(**decoder, sample=sampled, temperature=1.0)
    for decoder in (PLAIN, DRAFTED)
    for sampled in (False, True)
]


@dataclass(frozen=True)
class Held:
    """Memory, files and tensors that this process holds at a moment."""

    resident_bytes: int
    open_files: int
    tensors: int


def held():
    gc.collect()
    pages = int(MEMORY.read_text().split()[1])
    # `isinstance` would wake lazy modules and mocks.
    tensors = sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())
    return Held(pages * os.sysconf("SC_PAGE_SIZE"), len(list(OPEN_FILES.iterdir())), tensors)


def growing_prompt(number):
    """Return one of a few prompts: new ones would fill the cache of 10,000 words in tokenizers."""
    return "x" * (1 + number % LONGEST_PROMPT)


def test_hundreds_of_generations_hold_no_more_than_the_first(checkpoint):
    pruned = load_pruned(
        ModelArguments(str(checkpoint), dtype="float64", device="cpu"),
        PruneArguments(prune_method="random", dropout_threshold=0.2, prune_seed=1),
    )

    def say(prompt):
        return [pruned.generate(prompt, flags, "endurance").output_ids for flags in FLAGS]

    first = say("number 1:")
    moments = []
    for number in range(GENERATIONS):
        pruned.generate(growing_prompt(number), FLAGS[number % len(FLAGS)], f"{number}")
        if number >= WARM_UP and number % INTERVAL == 0:
            moments.append(held())
    assert say("number 1:") == first

    early, late = moments[: WINDOW // INTERVAL], moments[-WINDOW // INTERVAL :]
    for what, allowed in (("resident_bytes", ALLOWED_GROWTH), ("open_files", 0), ("tensors", 0)):
        before, after = (
            statistics.median(getattr(moment, what) for moment in window)
            for window in (early, late)
        )
        assert after <= before + allowed, what


def test_written_runs_leave_no_file_open(tmp_path):
    def write(number):
        run = record(identity={"number": number})
        with claimed(str(tmp_path), run.run_id):
            writer = LogWriter(str(tmp_path), run)
            for index in range(3):
                writer.add(sample(index))
            writer.finish("complete", {})
        return writer

    writers = [write(0)]
    before = held().open_files
    writers += [write(number) for number in range(1, 50)]  # kept, so that no file closes by chance
    assert held().open_files == before
    assert len(find_runs(tmp_path)) == len(writers)
