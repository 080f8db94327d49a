"""Bad files: rows, checkpoints, logs, and what train.py reads."""

import gzip
import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet
from safetensors.torch import load_file, save_file

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
    configured,
    copied,
    folder,
    link,
    pipe,
    sparse,
)
from tests.trainings import CONFIG as LLAMA

TRAIN = (
    f"--config {CONFIG} --tokenizer bpe {CUSTOM} --eval_samples 2 --max_length 32 "
    "--mixed_precision no"
)
FURTHER = f"--model {TINY} {CUSTOM} --eval_samples 2 --max_length 32 --mixed_precision no"
# Rows
_ROW = '{"prompt": "a", "response": "b"}\n'
_HEADER = "prompt,response\n"


def _table() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"prompt": ["a"] * 50, "response": ["b"] * 50}), file)
    return file.getvalue()


# Name and content of a file of rows, and a reason in the message.
FILES: dict[str, tuple[str, Content, str]] = {
    "a truncated row": ("a.jsonl", _ROW + _ROW[:20], "line 2"),
    "a row without the field": ("a.jsonl", '{"prompt": "a", "answer": "b"}\n', "'response'"),
    "a field twice": ("a.jsonl", '{"x": {"y": 1, "y": 2}}\n', "y"),
    "not a number": ("a.jsonl", '{"x": NaN}\n', "NaN"),
    "lists a hundred thousand deep": ("a.jsonl", "[" * 100_000, "too deeply"),
    "UTF-16": ("a.jsonl", _ROW.encode("utf-16"), "byte 0"),
    "a terabyte of nothing": ("a.jsonl", sparse(TERABYTE), "line 1"),
    "a pipe without a writer": ("a.jsonl", pipe, "holds no examples"),
    "a device without end": ("a.jsonl", link("/dev/zero"), "line 1"),
    "a truncated gzip": ("a.jsonl.gz", gzip.compress(_ROW.encode() * 50)[:-9], "gzip"),
    "a value too many": ("a.csv", _HEADER + "a,b,c\n", "line 2"),
    "a truncated Parquet file": ("a.parquet", _table()[:-20], "Parquet"),
    "an Arrow file of a terabyte": ("a.arrow", sparse(TERABYTE), "Arrow"),
}
ROW_FILES = [
    *(
        BadInput(
            "benchmark",
            wrong,
            f"--dataset custom_jsonl --data_path {name}",
            f"--data_path {name}: ",
            {name: content},
            tells=tells,
        )
        for wrong, (name, content, tells) in FILES.items()
    ),
    *cases_of(
        "benchmark",
        ("a file that is not there", "--data_path none.jsonl", "--data_path none.jsonl"),
        (
            "a folder of both kinds of test files",
            "--dataset custom_jsonl --data_path d",
            "test.csv, test.jsonl",
            {"d/test.csv": _HEADER + "a,b\n", "d/test.jsonl": _ROW},
        ),
        (
            "calibration rows that are evaluated",
            f"--prune_method angular --prune_n 1 {CUSTOM} --calibration_path {ROWS}",
            "--prune_method angular",
        ),
        (
            "prompts beyond the positions",
            f"--dataset custom_jsonl --data_path a.jsonl --model {TINY}",
            "--dataset custom_jsonl",
            {"a.jsonl": json.dumps({"prompt": "a" * 300, "response": ""})},
        ),
    ),
]

# Checkpoints
_WEIGHTS = "model_DOT_safetensors"


def _config(content: Content) -> Content:
    return copied(config_DOT_json=content)


def _changed_weights(change: Callable[[dict], Any]) -> Content:
    def make(path: Path) -> None:
        copied()(path)
        weights = load_file(path / "model.safetensors")
        change(weights)
        save_file(weights, path / "model.safetensors", {"format": "pt"})

    return make


def _truncated(path: Path) -> None:
    copied()(path)
    os.truncate(path / "model.safetensors", 100_000)


# The folder `bad`, and a reason in the message.
CHECKPOINT_FOLDERS: dict[str, tuple[Content, str]] = {
    "a truncated config.json": (_config('{"model_type": "lla'), "config.json"),
    "a name twice in config.json": (_config('{"a": 1, "a": 2}'), "config.json"),
    "a config.json of a terabyte": (_config(sparse(TERABYTE)), "config.json"),
    "another kind of model": (configured(model_type="gpt2"), "gpt2"),
    "the checkpoint's own code": (
        configured(model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "",
    ),
    "a word for the layers": (configured(num_hidden_layers="six"), "expected int, got str"),
    "fewer layers than there are": (configured(num_hidden_layers=3), "6 layers"),
    "attention that is left out of layers": (configured(drop_attn_list=[3]), "drop_attn_list [3]"),
    "pickled weights alone": (
        copied(**{_WEIGHTS: None, "pytorch_model_DOT_bin": b"\x80\x04."}),
        "*.safetensors",
    ),
    "truncated weights": (_truncated, ""),
    "a header of exabytes": (copied(**{_WEIGHTS: struct.pack("<Q", 1 << 62) + b"{}"}), ""),
    "a weight that is missing": (
        _changed_weights(lambda weights: weights.pop("model.norm.weight")),
        "model.norm.weight",
    ),
    "an adapter without its model": (
        copied(
            config_DOT_json=None,
            adapter_config_DOT_json='{"base_model_name_or_path": "someone/base"}',
        ),
        "someone/base",
    ),
    "a truncated tokenizer": (copied(tokenizer_DOT_json='{"version": "1.0"'), "its tokenizer"),
    "a damaged prune plan": (copied(prune_plan_DOT_json="{"), "prune_plan.json"),
    "a stored template without its place": (
        copied(prompt_template_DOT_json='{"dataset": "custom_jsonl", "template": "Q:"}'),
        "{message}",
    ),
}
CHECKPOINTS = [
    *(
        BadInput("benchmark", wrong, f"{RUN} bad", "--model bad: ", {"bad": content}, tells=tells)
        for wrong, (content, tells) in CHECKPOINT_FOLDERS.items()
    ),
    *cases_of(
        "benchmark",
        ("a model that is not there", f"{RUN} ./none", "--model ./none: "),
        ("a link in a circle", f"{RUN} ./bad", "--model ./bad: ", {"bad": link("bad")}),
        ("a shape that nobody knows", f"{RUN} synthetic:gpt", "--model synthetic:gpt: "),
    ),
]

# Logs
_LOG, _CONSOLE = "logs/benchmark_1_a.json", "logs/human_eval_results_base_0"


def _log(
    change: Callable[[dict], Any] = lambda log: None, text: Callable[[str], str] = str
) -> Content:
    """A run's two files; the functions change the first."""

    def make(path: Path) -> None:
        made = MadeUpRun(examples=3, exit_layer=8, num_speculations=6).write(path.parent)
        log = json.loads(made.read_text())
        change(log)
        path.write_text(text(json.dumps(log)))
        made.unlink()
        made.with_suffix(".samples.jsonl").rename(path.with_suffix(".samples.jsonl"))

    return make


LOGS: dict[str, tuple[str, Content, str]] = {
    "a truncated log": (_LOG, _log(text=lambda text: text[:-200]), "cut off"),
    "a log in UTF-16": (_LOG, '{"schema_version": 1}'.encode("utf-16"), ""),
    "a list for a log": (_LOG, "[]", "no log of this project"),
    "a log of a newer release": (_LOG, _log(lambda log: log.update(schema_version=2)), "version 2"),
    "no number in a log": (_LOG, _log(lambda log: log["total_time"].update(mean=1e999)), ""),
    "lists ten thousand deep": (_LOG, '{"schema_version": 1, "a": ' + "[" * 10_000, ""),
    "a log of a terabyte": (_LOG, sparse(TERABYTE), "256 MiB"),
    "a log without its identity": (_LOG, _log(lambda log: log.pop("identity")), "identity"),
    "a log without a part of its plan": (
        _LOG,
        _log(lambda log: log["plan"].pop("kept_layers")),
        "kept_layers",
    ),
    "an unknown status": (_LOG, _log(lambda log: log.update(status="done")), "'done'"),
    "a word for a speed": (
        _LOG,
        _log(lambda log: log["tokens_per_second"].update(mean="fast")),
        "'fast'",
    ),
    "an older log cut off": (_LOG, four()[:-40], "cut off"),
    "an older log with a name twice": (
        _LOG,
        four().replace('{"model"', '{"model": 1, "model"'),
        "model",
    ),
    "a console that was cut off": (_CONSOLE, "a\n{'predicted_text': {'rouge-l'", "printed metrics"),
    "a console of code": (_CONSOLE, "{'predicted_text': open('stolen', 'w')}\n", "printed metrics"),
}
ANALYZE = [
    *(
        BadInput(
            "analyze_logs",
            wrong,
            "logs",
            "log_dirs logs",
            {name: content},
            tells=tells,
            warns=f"{name} cannot be read: ",
        )
        for wrong, (name, content, tells) in LOGS.items()
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
    """The folder of a run that was killed at its end; then its two files were damaged."""

    def make(path: Path) -> None:
        assert run_script(benchmark.main, _FLAGS.split()) == 0
        (log,) = path.glob("*.json")
        log.write_text(log.read_text().replace('"status": "complete"', '"status": "running"'))
        damage(log, log.with_suffix(".samples.jsonl"))

    return make


def _rewritten(change: Callable[[dict], Any]) -> Content:
    def damage(log: Path, _: Path) -> None:
        values = json.loads(log.read_text())
        change(values)
        log.write_text(json.dumps(values))

    return _broken_off(damage)


BROKEN_OFF = {
    "a damaged line before the last": _broken_off(
        lambda _, samples: samples.write_text("{\n" + samples.read_text())
    ),
    "a sample of another release": _broken_off(
        lambda _, samples: samples.write_text('{"taste": 1}\n' + samples.read_text())
    ),
    "samples of a terabyte of nothing": _broken_off(lambda _, samples: sparse(TERABYTE)(samples)),
    "an empty log to go on with": _broken_off(lambda log, _: log.write_text("")),
    "a log of another schema": _rewritten(lambda log: log.update(schema_version=0)),
    "a plan of layers that are none": _rewritten(
        lambda log: log["plan"].update(kept_layers=[0, 99])
    ),
}


def _llama(**changes: Any) -> str:
    return json.dumps(LLAMA | changes)


_OUT = f"{TRAIN} --output_dir out"
TEXTS = f"--model {TINY} --data_path t.jsonl"
TRAININGS = [
    *cases_of(
        "train",
        ("neither model nor configuration", f"{CUSTOM} --eval_samples 2", "--model"),
        ("a flag without the other that it needs", f"{FURTHER} --tokenizer bpe", "--tokenizer"),
        ("a number out of range", f"{TRAIN} --learning_rate nan", "--learning_rate nan"),
        ("more epochs than can be planned", f"{TRAIN} --epochs {10**25}", f"--epochs {10**25}"),
        ("no regular expression", f"{TRAIN} --tokenizer_pattern '('", "--tokenizer_pattern ("),
        ("an unknown optimizer", f"{TRAIN} --optimizer sgd", "'sgd'"),
        ("a length beyond the positions", f"{TRAIN} --max_length 65", "--max_length 65"),
        ("all rows held out", f"{TRAIN} --eval_samples 99", "--eval_samples 99"),
        ("adapters wider than the model", f"{FURTHER} --lora_rank 100", "--lora_rank 100"),
        ("a teacher of other tokens", f"{TRAIN} --distill true --teacher {TINY}", "--teacher"),
        ("a tokenizer that is not there", f"{TRAIN} --tokenizer ./none", "--tokenizer ./none"),
        ("an output folder that is a file", f"{TRAIN} --output_dir {ROWS}", "--output_dir"),
        ("a text that is cut off", TEXTS, "t.jsonl: line 1", {"t.jsonl": '{"text": "a'}),
        ("a text that is a number", TEXTS, "t.jsonl: line 1", {"t.jsonl": '{"text": 5}\n'}),
        ("messages that are no list", TEXTS, "t.jsonl: line 1", {"t.jsonl": '{"messages": "a"}'}),
        ("a truncated configuration", TRAIN, f"--config {CONFIG}: ", {CONFIG: _llama()[:-9]}),
        ("a configuration of a terabyte", TRAIN, "16 MiB", {CONFIG: sparse(TERABYTE)}),
        ("another kind of model", TRAIN, "gpt2", {CONFIG: _llama(model_type="gpt2")}),
        ("half a layer", TRAIN, "1.5", {CONFIG: _llama(num_hidden_layers=1.5)}),
        ("a width that no memory holds", TRAIN, CONFIG, {CONFIG: _llama(hidden_size=1 << 40)}),
        ("a state that is cut off", _OUT, "out", {"out/state-00000001/progress.json": "{"}),
        ("another file's name for the log", _OUT, "out", {"out/training.jsonl": "dear diary\n"}),
        (
            "the end of another training",
            _OUT,
            "out",
            {"out/checkpoint/training.json": '{"configuration": {}}'},
        ),
    ),
    BadInput(
        "train",
        "a loss that is no number",
        f"{_OUT} --learning_rate 1e38 --max_steps 8",
        "loss",
        code=1,
        leaves=True,
    ),
]

CASES = [
    *(*ROW_FILES, *CHECKPOINTS, *ANALYZE, *TRAININGS),
    *(
        BadInput("benchmark", wrong, _FLAGS, "--output_dir old", {"old": content})
        for wrong, content in BROKEN_OFF.items()
    ),
]
