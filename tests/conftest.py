"""A tiny Llama with a byte-level tokenizer, rows, and scripts that run on them offline."""

import copy
import csv
import gzip
import json
import os
from contextlib import contextmanager
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # tests run on the CPU

import pyarrow
import pytest
import torch
from pyarrow import parquet
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import benchmark
import sweep
from arguments.prompts import DataArguments
from arguments.pruning import PruneArguments
from command_line.script import run_script
from data import get_calibration_data, get_data
from runs import measuring
from runs.reader import find_runs, read_record, read_samples
from self_speculation import compiled_llama, programs
from tests import trainings

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
VOCABULARY = 258
END = 256
LAYERS = 6

# Flags of benchmark.py.
GREEDY = ["--sample", "false", "--max_steps", "16"]
SPECULATIVE = ["--generation_strategy", "self_speculative", "--num_speculations", "3"]
MEASURED = {"prune_method": "angular", "prune_n": 2}
ANGULAR = ["--prune_method", "angular", "--prune_n", "2", "--calibration_samples", "4"]

# Flags of sweep.py, and their points: exit layer and draft length.
SWEEP_GRID = [
    *["--exit_layer_first", "2", "--exit_layer_last", "4", "--exit_layer_step", "2"],
    *["--num_speculations_first", "1", "--num_speculations_last", "3"],
    *["--num_speculations_step", "2", "--sample", "false", "--max_steps", "8"],
]
SWEEP_PLANS = [
    *["--prune_methods", "base", "angular", "--prune_ns", "2", "--calibration_samples", "4"],
]
SWEEP_POINTS = [(0, 0), (2, 1), (2, 3), (4, 1), (4, 3)]


def write(path, rows):
    """Write rows in the format of the path's suffix; return the path."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            lines = csv.DictWriter(file, rows[0])
            lines.writeheader()
            lines.writerows(rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix.lower() == ".gz" else text)
    return path


def tiny_config(**changes) -> LlamaConfig:
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        # The default would yield near-uniform logits, on which layers and positions have no effect.
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": END,
        "pad_token_id": END,
    }
    return LlamaConfig(**values | changes)


def row(ids):
    """Return token ids in the shape that an engine takes."""
    return torch.tensor([ids])


def same(one, other):
    """Allow for float32, in which transformers' norms compute: compiled sums differ in order."""
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.fixture(scope="session")
def _pristine() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config()).double().eval().requires_grad_(False)


@pytest.fixture
def model(_pristine) -> LlamaForCausalLM:
    """Return a fresh copy of the tiny Llama in float64, in which equality is exact."""
    return copy.deepcopy(_pristine)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<end>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


@pytest.fixture(scope="session")
def checkpoint(_pristine, tokenizer, tmp_path_factory):
    """Save the tiny Llama in a folder that `--model` takes."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    _pristine.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def compiled_cache(tmp_path_factory, monkeypatch):
    """Share the folder of compiled steps between all tests of one start, in every process."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    monkeypatch.setattr(programs, "cache_folder", lambda: folder / "cache")


@pytest.fixture
def small_buckets(compiled_cache, monkeypatch):
    """Compile steps for 64 positions, then 128, so that short outputs need both."""
    monkeypatch.setattr(compiled_llama, "_SMALLEST_BUCKET", 64)
    monkeypatch.setattr(compiled_llama, "_BEYOND", 0)


@pytest.fixture
def rows(tmp_path):
    """Write a JSONL file of twelve prompts with references."""
    return numbered(tmp_path / "rows.jsonl", range(12))


def common_flags(checkpoint, rows, folder):
    """Return flags of scripts: the tiny Llama, rows, and the folder of the logs."""
    model = ["--model", str(checkpoint), "--dtype", "float64"]
    data = ["--dataset", "custom_jsonl", "--data_path", str(rows)]
    return [*model, *data, "--output_dir", str(folder)]


@pytest.fixture
def run(checkpoint, rows, tmp_path):
    """Run benchmark.py with more flags; return exit code, run and samples, None without a log."""

    def start(*flags, samples="3", path=rows):
        folder = tmp_path / f"logs{len(list(tmp_path.iterdir()))}"
        count = ["--num_samples", samples] if samples else []
        common = [*common_flags(checkpoint, path, folder), *count, "--random_shuffle", "false"]
        code = run_script(benchmark.main, [*common, *flags])
        found = find_runs(folder)
        if not found:
            return code, None, None
        return code, read_record(found[0]), read_samples(found[0])

    return start


@pytest.fixture
def words(checkpoint, rows, tmp_path):
    """Return the flags of a script on a few prompts, with its own folder."""

    def make(*flags, folder="logs", prompts=5):
        common = common_flags(checkpoint, rows, tmp_path / folder)
        return [*common, "--num_samples", str(prompts), *flags]

    return make


@pytest.fixture
def run_sweep(words, tmp_path):
    """Run sweep.py; return exit code and the folder of its logs."""

    def run(*flags, folder="logs"):
        line = words(*SWEEP_GRID, *flags, folder=folder, prompts=2)
        return run_script(sweep.main, line), tmp_path / folder

    return run


@contextmanager
def rewritten(path):
    """Yield a log's values; write them back at the end."""
    log = json.loads(path.read_text())
    yield log
    path.write_text(json.dumps(log))


def outputs(folder):
    """Return the samples of each run in a folder, without times."""
    return {
        read_record(path).run_id: [timeless(vars(one)) for one in read_samples(path)]
        for path in find_runs(folder)
    }


# Values in which two starts of one run may differ.
OF_THE_START = {
    *("started", "ended", "command", "arguments", "resumed", "peak_memory_bytes", "throughput"),
    *("prefill_seconds", "decode_seconds", "step_seconds", "seconds", "total_time"),
    *("time_to_first_token", "time_per_token", "tokens_per_second"),
    *("speedup_over_full_steps", "round_overhead"),
}


def timeless(value):
    """Return a log's value without what differs between two starts of one run."""
    if isinstance(value, dict):
        return {key: timeless(held) for key, held in value.items() if key not in OF_THE_START}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def random_prompt(length: int, seed: int = 0) -> list[int]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (length,), generator=draws).tolist()


def custom(path, **changes):
    values = {"dataset": "custom_jsonl", "data_path": str(path), "random_shuffle": False}
    return DataArguments(**values | changes)


def numbered(path, numbers, word="number"):
    return write(path, [{"prompt": f"{word} {n}:", "response": f"item {n}"} for n in numbers])


def calibration(arguments, count=32, seed=42, **flags):
    pruning = PruneArguments(**MEASURED, calibration_samples=count, prune_seed=seed, **flags)
    return get_calibration_data(arguments, pruning, get_data(arguments, seed=1))


@pytest.fixture
def folder(tmp_path):
    """Make a folder of 40 training rows and 30 test rows, of which 10 are in both."""
    path = tmp_path / "folder"
    path.mkdir()
    numbered(path / "train.jsonl", range(40))
    numbered(path / "test.jsonl", range(30, 60))
    return path


def chats(path, conversations):
    turns = [
        [
            {"role": role, "message": f"{role} {name} {turn}"}
            for turn in range(3)
            for role in ("USER", "PARSER")
        ]
        for name in conversations
    ]
    return write(path, [{"data": conversation} for conversation in turns])


def before_example(monkeypatch, number, act, repeat=0):
    """Make runs call `act` before they measure the example at this index in this pass."""
    ordinary = measuring.measure_examples

    def measured(definition, decoder, keys, encoded):
        if (repeat, number) in keys:
            act()
        return ordinary(definition, decoder, keys, encoded)

    monkeypatch.setattr(measuring, "measure_examples", measured)


@pytest.fixture
def stop_at(monkeypatch):
    """Make runs stop with an error after so many examples; return a function that undoes it."""
    ordinary = measuring.measure_examples

    def stop(count, error, repeat=0):
        def fail():
            raise error

        before_example(monkeypatch, count, fail, repeat)
        return lambda: monkeypatch.setattr(measuring, "measure_examples", ordinary)

    return stop


@pytest.fixture
def training_rows(tmp_path):
    return trainings.write_rows(tmp_path)


@pytest.fixture
def llama_config(tmp_path):
    return trainings.write_config(tmp_path)


@pytest.fixture
def train_anew(tmp_path, training_rows, llama_config):
    """Run train.py from scratch in a folder; return the exit code and that folder."""

    def run(*flags, folder="out"):
        return trainings.train_anew(tmp_path, *flags, folder=folder)

    return run


@pytest.fixture
def train_further(tmp_path, training_rows, checkpoint):
    """Run train.py on the tiny Llama; return the exit code and the folder."""

    def run(*flags, folder="out", model=checkpoint):
        return trainings.train_further(tmp_path, model, *flags, folder=folder)

    return run
