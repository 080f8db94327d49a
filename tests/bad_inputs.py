"""Cases of bad input: a script, flags, files, and the text that the error line must contain."""

import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Content = str | bytes | Callable[[Path], Any]
TERABYTE = 1 << 40
# Every folder holds a link to the tiny Llama, twelve prompts, and a configuration to train from.
TINY, ROWS, CONFIG = "tiny", "rows.jsonl", "llama.json"
CUSTOM = f"--dataset custom_jsonl --data_path {ROWS}"
RUN = f"{CUSTOM} --dtype float64 --model"


@dataclass(frozen=True)
class BadInput:
    """A mistake, `wrong`, in a call of a script with `flags` (shell words) and `more` (raw words).

    The error line contains `names`, and all of stderr contains `tells`. Warnings before the error
    contain `warns`; without `warns` there are no warnings. `files` lie in the folder of the call.
    """

    script: str
    wrong: str
    flags: str
    names: str
    files: dict[str, Content] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    piped: bytes = b""
    environment: dict[str, str] = field(default_factory=dict)
    tells: str = ""
    warns: str = ""

    @property
    def name(self) -> str:
        """The script's name without its folder."""
        return self.script.rpartition(".")[2]

    @property
    def key(self) -> str:
        return f"{self.script}: {self.wrong}"

    @property
    def argv(self) -> list[str]:
        return [*shlex.split(self.flags), *self.more]

    def lay(self, folder: Path) -> None:
        """Make the files."""
        for name, content in self.files.items():
            put(folder / name, content)


def put(path: Path, content: Content) -> None:
    """Make a file; replace an old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def sparse(size: int, text: bytes = b"") -> Callable[[Path], None]:
    """Make a file of `size` bytes that begins with a text and takes no room on the disk."""

    def make(path: Path) -> None:
        path.write_bytes(text)
        os.truncate(path, size)

    return make


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def copied(**changed: Content) -> Callable[[Path], None]:
    """Copy the tiny Llama with other files, in whose names `_DOT_` stands for a dot."""

    def make(path: Path) -> None:
        shutil.copytree(path.parent / TINY, path)
        for name, content in changed.items():
            put(path / name.replace("_DOT_", "."), content)

    return make


def cases_of(script: str, *cases: tuple) -> list[BadInput]:
    return [BadInput(script, *case) for case in cases]


DRAFTS = "--exit_layer 2 --num_speculations 2"

# Each script's own tests hold what a single flag refuses; here is one case of each kind.
BENCHMARK = [
    *cases_of(
        "benchmark",
        ("an unknown flag", "--tempreature 1", "--tempreature: no such flag; did you mean"),
        ("a flag without its value", "--max_steps", "--max_steps"),
    ),
    *cases_of(
        "benchmark",
        (
            "an answer without a number",
            "--dataset gsm8k --data_path rows.jsonl",
            "--data_path rows.jsonl: line 1 has an answer without a number to match",
            {ROWS: '{"question": "How many?", "answer": "some"}'},
        ),
        (
            "a data set that nobody serves",
            "--dataset spec_bench",
            "--data_path: --dataset spec_bench needs a file or a folder: data/spec_bench/",
        ),
        (
            "an empty text",
            "--dataset text --data_path rows.jsonl",
            "--data_path rows.jsonl: line 1 holds an empty text",
            {ROWS: '{"text": ""}'},
        ),
        (
            "solved examples of conversations",
            "--dataset spec_bench --n_shot 1",
            "--n_shot 1: --dataset spec_bench has no answers to show",
        ),
    ),
    BadInput("benchmark", "a null in a path", "--data_path", r"a\x00b", more=("a\0b.jsonl",)),
    BadInput(
        "benchmark",
        "several processes that nobody launched",
        f"{CUSTOM} --model {TINY}",
        "torchrun",
        environment={"WORLD_SIZE": "2"},
    ),
]

SWEEP = cases_of(
    "sweep",
    ("an unknown flag", "--exit_layers 2", "--exit_layers"),
    ("an unknown criterion", "--prune_methods magic", "'magic'"),
    ("a folder of data that is a file", f"--data_dir {ROWS}", f"--data_dir {ROWS}"),
    ("a data set that the folder lacks", "--datasets custom_jsonl --data_dir .", "--data_dir ."),
)

CORRECTNESS = cases_of(
    "correctness",
    ("an unknown flag", "--draws 100", "--draws"),
    ("rows that are no JSON", f"{CUSTOM} {DRAFTS}", f"--data_path {ROWS}", {ROWS: "{"}),
    ("a folder that cannot be written", f"{DRAFTS} --output_dir {ROWS}", f"--output_dir {ROWS}"),
)

_ASK = f"--prompt a --model {TINY}"
GENERATE = [
    *cases_of(
        "generate",
        ("an unknown flag", "--promt hello", "--promt"),
        ("a file for a checkpoint", f"--prompt a --model {ROWS}", f"--model {ROWS}"),
        ("a chat without template", f"{_ASK} --apply_chat_template true", "--apply_chat_template"),
        (
            "a plan that keeps no layer",
            f"{_ASK} --prune_method random --dropout_threshold 0.999999",
            "--dropout_threshold",
        ),
        (
            "calibration rows that are not there",
            "--prompt a --prune_method angular --prune_n 1 --calibration_path none.csv",
            "--calibration_path none.csv",
        ),
    ),
    BadInput("generate", "UTF-16 piped in", "", "--prompt", piped="wolf".encode("utf-16")),
    BadInput("generate", "no UTF-8", "--prompt", r"a\udcff", more=("a\udcff",)),
    BadInput(
        "generate", "several processes", _ASK, "--nproc_per_node 2", environment={"WORLD_SIZE": "2"}
    ),
]

_TASK = (
    "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: d.json}\ntest_split: train\n"
    'output_type: multiple_choice\ndoc_to_text: "{{a}}"\ndoc_to_target: 0\ndoc_to_choice: [a, b]\n'
)
EVAL = cases_of(
    "eval",
    ("an unknown flag", "--tasks a --num_fewshots 1", "--num_fewshots"),
    ("an empty task", "--tasks ''", "--tasks ''"),
    ("a number out of range", "--tasks a --num_fewshot -1", "--num_fewshot -1"),
    ("more documents than can be counted", f"--tasks a --limit {10**25}", f"--limit {10**25}"),
    ("a share of documents", "--tasks a --limit 0.5", "'0.5'"),
    (
        "a folder of tasks whose name is too long",
        f"--tasks a --include_path {'x' * 300}",
        "--include_path xxx",
    ),
    (
        "data of a task that are cut off",
        f"--model {TINY} --tasks mine --include_path tasks",
        "mine",
        {"tasks/mine.yaml": _TASK, "d.json": '{"a": '},
    ),
)

BENCHMARKS = cases_of(
    "benchmarks.early_exit",
    ("a number out of range", "--exit_layers 0", "--exit_layers"),
    ("rows that are no JSON", CUSTOM, f"--data_path {ROWS}", {ROWS: "{"}),
)

FLAGS = [*BENCHMARK, *SWEEP, *CORRECTNESS, *GENERATE, *EVAL, *BENCHMARKS]
