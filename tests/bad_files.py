"""Cases of bad files: rows, checkpoints, logs, and files that train.py reads."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark
from benchmarks.made_up_runs import MadeUpRun
from command_line.script import run_script
from tests.analysis.test_older_logs import four
from tests.bad_inputs import (
    CONFIG,
    CUSTOM,
    ROWS,
    RUN,
    TERABYTE,
    TINY,
    BadInput,
    Content,
    cases_of,
    copied,
    folder,
    link,
    pipe,
    sparse,
)
from tests.conftest import rewritten
from tests.trainings import CONFIG as LLAMA

TRAIN = (
    f"--config {CONFIG} --tokenizer bpe {CUSTOM} --eval_samples 2 --max_length 32 "
    "--mixed_precision no"
)
FURTHER = f"--model {TINY} {CUSTOM} --eval_samples 2 --max_length 32 --mixed_precision no"
_ROW = '{"prompt": "a", "response": "b"}\n'

# Name and content of a file of rows, and a reason in the message.
FILES: dict[str, tuple[str, Content, str]] = {
    "a truncated row": ("a.jsonl", _ROW + _ROW[:20], "line 2"),
    "a terabyte of nothing": ("a.jsonl", sparse(TERABYTE), "line 1"),
    "a pipe without a writer": ("a.jsonl", pipe, "holds no examples"),
    "a device without end": ("a.jsonl", link("/dev/zero"), "line 1"),
    "an Arrow file of a terabyte": ("a.arrow", sparse(TERABYTE), "Arrow"),
}
ROW_FILES = [
    BadInput(
        "benchmark",
        wrong,
        f"--dataset custom_jsonl --data_path {name}",
        f"--data_path {name}: ",
        {name: content},
        tells=tells,
    )
    for wrong, (name, content, tells) in FILES.items()
]

# The folder `bad`, and a reason in the message.
CHECKPOINT_FOLDERS: dict[str, tuple[Content, str]] = {
    "a config.json of a terabyte": (copied(config_DOT_json=sparse(TERABYTE)), "config.json"),
    "a header of exabytes": (
        copied(model_DOT_safetensors=struct.pack("<Q", 1 << 62) + b"{}"),
        "no safetensors file",
    ),
    "a truncated tokenizer": (copied(tokenizer_DOT_json='{"version": "1.0"'), "its tokenizer"),
    "a link in a circle": (link("bad"), ""),
}
CHECKPOINTS = [
    BadInput("benchmark", wrong, f"{RUN} ./bad", "--model ./bad: ", {"bad": content}, tells=tells)
    for wrong, (content, tells) in CHECKPOINT_FOLDERS.items()
]

_LOG = "logs/benchmark_1_a.json"


def _log(change: Callable[[dict], Any]) -> Content:
    """Write a run's two files, and let a function change the first."""

    def make(path: Path) -> None:
        made = MadeUpRun(examples=3, exit_layer=8, num_speculations=6).write(path.parent)
        made.with_suffix(".samples.jsonl").rename(path.with_suffix(".samples.jsonl"))
        with rewritten(made.rename(path)) as log:
            change(log)

    return make


LOGS: dict[str, tuple[Content, str]] = {
    "no number in a log": (_log(lambda log: log["total_time"].update(mean=1e999)), ""),
    "lists ten thousand deep": ('{"schema_version": 1, "a": ' + "[" * 10_000, ""),
    "a log of a terabyte": (sparse(TERABYTE), "256 MiB"),
    "an unknown status": (_log(lambda log: log.update(status="done")), "'done'"),
    "a word for a speed": (
        _log(lambda log: log["tokens_per_second"].update(mean="fast")),
        "'fast'",
    ),
    "an older log with a name twice": (four().replace('{"model"', '{"model": 1, "model"'), "model"),
}
ANALYZE = [
    *(
        BadInput(
            "analyze_logs",
            wrong,
            "logs",
            "log_dirs logs",
            {_LOG: content},
            tells=tells,
            warns=f"{_LOG} cannot be read: ",
        )
        for wrong, (content, tells) in LOGS.items()
    ),
    *cases_of(
        "analyze_logs",
        ("an empty folder", "logs", "log_dirs logs", {"logs": folder}),
        ("a pipe under the name of a log", "logs", "log_dirs logs", {_LOG: pipe}),
        ("a folder that links to itself", "logs", "log_dirs logs", {"logs/in/self": link("..")}),
        ("a folder that is not there", "none", "none"),
        ("an unknown format", "--format html", "'html'"),
        ("an unknown flag", "--no_plot", "--no_plot"),
        ("an output folder below a file", f". --output_dir {ROWS}/x", f"--output_dir {ROWS}/x"),
    ),
]

_FLAGS = f"{RUN} {TINY} --num_samples 3 --max_steps 2 --sample false --output_dir old"


def _broken_off(damage: Callable[[Path, Path], Any]) -> Content:
    """Make the folder of a run that was killed at its end, and damage its two files."""

    def make(path: Path) -> None:
        assert run_script(benchmark.main, _FLAGS.split()) == 0
        (log,) = path.glob("*.json")
        log.write_text(log.read_text().replace('"status": "complete"', '"status": "running"'))
        damage(log, log.with_suffix(".samples.jsonl"))

    return make


def _name_missing_layers(log: Path, _: Path) -> None:
    with rewritten(log) as values:
        values["plan"]["kept_layers"] = [0, 99]


BROKEN_OFF = {
    "a sample of another release": _broken_off(
        lambda _, samples: samples.write_text('{"taste": 1}\n' + samples.read_text())
    ),
    "samples of a terabyte of nothing": _broken_off(lambda _, samples: sparse(TERABYTE)(samples)),
    "a plan of layers that are none": _broken_off(_name_missing_layers),
}


def _llama(**changes: Any) -> str:
    return json.dumps(LLAMA | changes)


TEXTS = f"--model {TINY} --data_path t.jsonl"
TRAININGS = cases_of(
    "train",
    ("neither model nor configuration", f"{CUSTOM} --eval_samples 2", "--model"),
    ("a flag without the other that it needs", f"{FURTHER} --tokenizer bpe", "--tokenizer"),
    ("a number out of range", f"{TRAIN} --learning_rate nan", "--learning_rate nan"),
    ("more epochs than can be planned", f"{TRAIN} --epochs {10**25}", f"--epochs {10**25}"),
    ("adapters wider than the model", f"{FURTHER} --lora_rank 100", "--lora_rank 100"),
    ("an output folder that is a file", f"{TRAIN} --output_dir {ROWS}", "--output_dir"),
    ("a text that is cut off", TEXTS, "t.jsonl: line 1", {"t.jsonl": '{"text": "a'}),
    ("a truncated configuration", TRAIN, f"--config {CONFIG}: ", {CONFIG: _llama()[:-9]}),
    ("a configuration of a terabyte", TRAIN, "16 MiB", {CONFIG: sparse(TERABYTE)}),
    ("another kind of model", TRAIN, "gpt2", {CONFIG: _llama(model_type="gpt2")}),
    ("half a layer", TRAIN, "1.5", {CONFIG: _llama(num_hidden_layers=1.5)}),
    ("a width that no memory holds", TRAIN, CONFIG, {CONFIG: _llama(hidden_size=1 << 40)}),
    (
        "a state that is cut off",
        f"{TRAIN} --output_dir out",
        "out",
        {"out/state-00000001/progress.json": "{"},
    ),
)

CASES = [
    *(*ROW_FILES, *CHECKPOINTS, *ANALYZE, *TRAININGS),
    *(
        BadInput("benchmark", wrong, _FLAGS, "--output_dir old", {"old": content})
        for wrong, content in BROKEN_OFF.items()
    ),
]
