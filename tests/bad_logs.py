"""Bad logs: what analyze_logs.py cannot read, and what no run can go on from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark
from benchmarks.made_up_runs import MadeUpRun
from command_line.script import run_script
from tests.analysis.test_older_logs import DATA, GENERATION, METRICS, four
from tests.bad_inputs import ROWS, TERABYTE, TINY, BadInput, Content, folder, link, pipe, sparse

_LOG = "logs/benchmark_1_a.json"
_CONSOLE = "logs/human_eval_results_base_0"


def run(change: Callable[[dict], Any] = lambda log: None, text: Callable[[str], str] = str):
    """A run's two files, of which the first went through these functions."""

    def make(path: Path) -> None:
        made = MadeUpRun(examples=3, exit_layer=8, num_speculations=6).write(path.parent)
        log = json.loads(made.read_text())
        change(log)
        path.write_text(text(json.dumps(log)))
        made.unlink()
        made.with_suffix(".samples.jsonl").rename(path.with_suffix(".samples.jsonl"))

    return make


def having(**values: Any):
    return run(lambda log: log.update(values))


def lacking(part: str, name: str):
    return run(lambda log: log[part].pop(name))


# Files that are refused as logs, and what is told of them.
LOGS: dict[str, tuple[str, Content, str]] = {
    "an empty log": (_LOG, "", ""),
    "a truncated log": (_LOG, run(text=lambda text: text[:-200]), "cut off"),
    "a log that ends in the middle of a word": (_LOG, run(text=lambda text: text[:301]), "cut off"),
    "two logs in one file": (_LOG, run(text=lambda text: text + text), "no JSON"),
    "a log in UTF-16": (_LOG, '{"schema_version": 1}'.encode("utf-16"), ""),
    "a log that is no UTF-8": (_LOG, b'{"schema_version": 1, "a": "\xff"}', ""),
    "a picture for a log": (_LOG, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ""),
    "a list for a log": (_LOG, "[]", "no log of this project"),
    "a number for a log": (_LOG, "1", "no log of this project"),
    "an object of something else": (
        _LOG,
        '{"a": 1}',
        "no log of this project nor of the known older format",
    ),
    "a log of a newer release": (_LOG, having(schema_version=2), "schema version 2"),
    "a word for the schema": (_LOG, having(schema_version="one"), "schema version one"),
    "no number in a log": (_LOG, run(lambda log: log["total_time"].update(mean=1e999)), ""),
    "a number out of range": (
        _LOG,
        run(text=lambda t: t.replace('"ranks": 1', '"ranks": 1e999')),
        "",
    ),
    "half a character": (_LOG, having(command="\ud800"), ""),
    "a name twice in a log": (
        _LOG,
        run(text=lambda text: '{"status": "failed", ' + text[1:]),
        "status",
    ),
    "a name twice further in": (
        _LOG,
        run(text=lambda t: t.replace('"ranks": 1', '"ranks": 1, "ranks": 2')),
        "ranks",
    ),
    "lists ten thousand deep": (_LOG, '{"schema_version": 1, "a": ' + "[" * 10_000, ""),
    "a log of a terabyte": (_LOG, sparse(TERABYTE), "256 MiB"),
    "a log of a terabyte that begins well": (
        _LOG,
        sparse(TERABYTE, b'{"schema_version": 1'),
        "256 MiB",
    ),
    "a log of which there is no identity": (_LOG, run(lambda log: log.pop("identity")), "identity"),
    "an empty identity": (_LOG, having(identity={}), "lacks"),
    "a list for an identity": (_LOG, having(identity=[1]), "identity"),
    "null for a plan": (_LOG, having(plan=None), "plan"),
    "a plan without layers": (_LOG, lacking("plan", "kept_layers"), "kept_layers"),
    "a number for layers": (_LOG, run(lambda log: log["plan"].update(kept_layers=5)), ""),
    "words for layers": (_LOG, run(lambda log: log["plan"].update(kept_layers=["a"])), ""),
    "a word for the number of layers": (
        _LOG,
        run(lambda log: log["plan"].update(original_layers="x")),
        "",
    ),
    "a status that is none": (_LOG, having(status="done"), "'done'"),
    "a number for the status": (_LOG, having(status=1), "status"),
    "a log without counts": (_LOG, run(lambda log: log.pop("counts")), "counts"),
    "a word for the counts": (_LOG, having(counts="many"), ""),
    "a word for the scores": (_LOG, having(predicted_text="good"), ""),
    "a word for a score": (
        _LOG,
        run(lambda log: log["predicted_text"].update({"rouge-l": "good"})),
        "",
    ),
    "a list for a speed": (_LOG, having(tokens_per_second=[1]), ""),
    "a word for a speed": (_LOG, run(lambda log: log["tokens_per_second"].update(mean="fast")), ""),
    "a word for seconds": (_LOG, having(total_time={"mean": "1"}), ""),
    "a word for shares by position": (
        _LOG,
        run(lambda log: log["acceptance_rate"].update(by_position="x")),
        "",
    ),
    "a word for memory": (_LOG, having(peak_memory_bytes="much"), ""),
    "a list for a model's name": (_LOG, run(lambda log: log["model"].update(name=["x"])), ""),
    "a word for parameters": (_LOG, run(lambda log: log["model"].update(parameters="7B")), ""),
    "a number for a data set": (_LOG, run(lambda log: log["identity"].update(dataset=5)), ""),
    "a word for an exit layer": (_LOG, having(exit_layer={"original": "x", "kept": None}), ""),
    "no versions": (_LOG, lacking("runtime", "versions"), "versions"),
    "a later start that is none": (_LOG, having(resumed=[5]), ""),
    "an older log cut off": (_LOG, four()[:-40], "cut off"),
    "an older log of three objects": (_LOG, four().replace("}{", "}", 1), ""),
    "an older log with a word for seconds": (
        _LOG,
        four(metrics=METRICS | {"total_time": {"mean": "9"}}),
        "'9'",
    ),
    "an older log with a list for a data set": (_LOG, four(data=DATA | {"dataset": ["x"]}), ""),
    "an older log with a word for a count": (_LOG, four(data=DATA | {"prune_n": "two"}), ""),
    "an older log with a word for drafts": (
        _LOG,
        four(generation=GENERATION | {"num_speculations": "x"}),
        "",
    ),
    "an older log with a number for scores": (
        _LOG,
        four(metrics=METRICS | {"predicted_text": 1}),
        "",
    ),
    "an older log with a name twice": (
        _LOG,
        four().replace('{"model"', '{"model": 1, "model"'),
        "model",
    ),
    "an empty console": (_CONSOLE, "", "printed metrics"),
    "a console that was cut off": (
        _CONSOLE,
        "loading\n{'predicted_text': {'rouge-l'",
        "printed metrics",
    ),
    "a console of code": (_CONSOLE, "{'predicted_text': open('stolen', 'w')}\n", "printed metrics"),
    "a console with a word for a score": (
        _CONSOLE,
        "{'predicted_text': {'rouge-l': 'good'}}\n",
        "'good'",
    ),
    "a console with a list for scores": (_CONSOLE, "{'predicted_text': [1]}\n", ""),
    "a console of a terabyte": (_CONSOLE, sparse(TERABYTE), "256 MiB"),
}

# Files that are no logs: nothing is found.
NO_LOGS: dict[str, dict[str, Content]] = {
    "an empty folder": {"logs": folder},
    "a link to nothing": {_LOG: link("none")},
    "a link in a circle": {_LOG: link("benchmark_1_a.json")},
    "a folder under the name of a log": {_LOG: folder},
    "a pipe under the name of a log": {_LOG: pipe},
    "samples alone": {"logs/benchmark_1_a.samples.jsonl": "{}\n"},
    "logs of another name": {"logs/run.json": "{}"},
    "a folder that links to itself": {"logs/in/self": link("..")},
}

_FLAGS = (
    f"--model {TINY} --dtype float64 --dataset custom_jsonl --data_path {ROWS} --num_samples 3 "
    "--max_steps 2 --sample false"
)


def broken_off(damage: Callable[[Path, Path], Any]):
    """The folder of a run that was killed at its end, whose two files were then damaged."""

    def make(path: Path) -> None:
        assert run_script(benchmark.main, [*_FLAGS.split(), "--output_dir", str(path)]) == 0
        (log,) = path.glob("*.json")
        log.write_text(log.read_text().replace('"status": "complete"', '"status": "running"'))
        damage(log, log.with_suffix(".samples.jsonl"))

    return make


def _lines(change: Callable[[list[str]], Any]):
    def damage(_: Path, samples: Path) -> None:
        lines = samples.read_text().splitlines(keepends=True)
        change(lines)
        samples.write_text("".join(lines))

    return broken_off(damage)


def _log(change: Callable[[dict], Any]):
    def damage(log: Path, _: Path) -> None:
        values = json.loads(log.read_text())
        change(values)
        log.write_text(json.dumps(values))

    return broken_off(damage)


def _replaced(content: Callable[[Path], Any], samples: bool = False):
    def damage(*paths: Path) -> None:
        paths[samples].unlink()
        content(paths[samples])

    return broken_off(damage)


BROKEN_OFF = {
    "a damaged line in the middle": _lines(lambda lines: lines.insert(1, "{\n")),
    "a line in the middle without its end": _lines(lambda lines: lines.insert(1, lines[0][:-9])),
    "a sample with a name twice": _lines(
        lambda lines: lines.insert(0, lines[0].replace('"ranks": 1', '"ranks": 1, "ranks": 1'))
    ),
    "a sample that is a list": _lines(lambda lines: lines.insert(0, "[]\n")),
    "a sample with words for tokens": _lines(
        lambda lines: lines.insert(
            0, '{"index": 0, "example_id": "1", "prompt_tokens": "x", "reference": ""}\n'
        )
    ),
    "a sample of another release": _lines(lambda lines: lines.insert(0, '{"taste": 1}\n')),
    "samples that are no UTF-8": broken_off(
        lambda _, samples: samples.write_bytes(b"\xff\n" + samples.read_bytes())
    ),
    "samples of a terabyte of nothing": _replaced(sparse(TERABYTE), samples=True),
    "an empty log to go on with": _replaced(lambda path: path.write_text("")),
    "a log to go on with of a terabyte": _replaced(sparse(TERABYTE)),
    "a log to go on with of another schema": _log(lambda log: log.update(schema_version=0)),
    "a log to go on with without its plan": _log(lambda log: log.pop("plan")),
    "a log to go on with and an empty plan": _log(lambda log: log.update(plan={})),
    "a log to go on with and a word for layers": _log(
        lambda log: log["plan"].update(kept_layers="all")
    ),
    "a log to go on with and layers that are none": _log(
        lambda log: log["plan"].update(kept_layers=[0, 99])
    ),
    "a log to go on with and a list of starts": _log(lambda log: log.update(resumed={"a": 1})),
}

LOGGED = [
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
    *(
        BadInput("analyze_logs", wrong, "logs", "log_dirs logs", files)
        for wrong, files in NO_LOGS.items()
    ),
    *(
        BadInput(
            "benchmark", wrong, f"{_FLAGS} --output_dir old", "--output_dir old", {"old": content}
        )
        for wrong, content in BROKEN_OFF.items()
    ),
]
