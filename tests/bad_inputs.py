"""A bad input: a script, its flags, files in the folder, and the text that its error must name."""

import json
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
    """A case with what is `wrong`, for a script with `flags` (shell words) and `more` (raw words).

    The error line contains `names`, and the whole output contains `tells`. Warnings before the
    error contain `warns`; without `warns` there are no warnings. `files` lie in the folder of the
    call. `leaves` is True if the script leaves files, as a run that broke down does.
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
    code: int = 2
    warns: str = ""
    leaves: bool = False

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
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)


def sparse(size: int, text: bytes = b"") -> Callable[[Path], None]:
    """A file of `size` bytes that begins with a text and takes no room on the disk."""

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
    """The tiny Llama with other files: `_DOT_` stands for a dot, None for a missing file."""

    def make(path: Path) -> None:
        shutil.copytree(path.parent / TINY, path)
        for name, content in changed.items():
            file = path / name.replace("_DOT_", ".")
            file.unlink(missing_ok=True)
            if callable(content):
                content(file)
            elif content is not None:
                file.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def configured(**changes: Any) -> Callable[[Path], None]:
    """The tiny Llama with other values in its config.json."""

    def make(path: Path) -> None:
        shutil.copytree(path.parent / TINY, path)
        config = json.loads((path / "config.json").read_text()) | changes
        (path / "config.json").write_text(json.dumps(config))

    return make


def cases_of(script: str, *cases: tuple) -> list[BadInput]:
    return [BadInput(script, *case) for case in cases]


DRAFTS = "--exit_layer 2 --num_speculations 2"
LONG = "x" * 300


BENCHMARK = [
    *cases_of(
        "benchmark",
        ("an unknown flag", "--tempreature 1", "--tempreature: no such flag; did you mean"),
        ("a stray word", "stray", "stray: no such flag"),
        ("a flag without its value", "--max_steps", "--max_steps"),
        ("a word for a count", "--max_steps many", "'many'"),
        ("an unknown choice", "--dataset nothing", "'nothing'"),
        ("a number out of range", "--temperature nan", "--temperature nan"),
        ("an empty text", "--data_path ''", "--data_path ''"),
        ("a flag that another needs", "--prune_method angular", "needs --prune_n"),
        ("a flag without the other that it is for", "--prune_n 2", "--prune_n 2: only with"),
        ("remote code", "--model_args trust_remote_code=true", "trust_remote_code=true"),
        ("a kernel that is not known", f"{RUN} {TINY} --model_args attn_implementation=x", "=x"),
        ("a memory without a device map", f"{RUN} {TINY} --model_args max_memory=cpu:1GB", "max_m"),
        ("a folder's name too long", f"--output_dir {LONG}", "--output_dir xxx"),
        ("logs below a file", f"--output_dir {ROWS}/logs", f"--output_dir {ROWS}/logs"),
        ("a checkpoint over a folder", "--save_pruned .", "--save_pruned ."),
        ("an exit layer beyond the model", f"{RUN} {TINY} --exit_layer 6", "--exit_layer 6"),
    ),
    BadInput("benchmark", "no UTF-8", "--stop_words", r"\udcff", more=("\udcff",)),
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
    ("a flag that the grid sets", "--exit_layer 2", "--exit_layer 2"),
    ("a number out of range", "--exit_layer_step 0", "--exit_layer_step 0"),
    ("an empty range", "--exit_layer_first 4 --exit_layer_last 2", "--exit_layer_last 2"),
    ("a criterion without its counts", "--prune_methods angular", "--prune_ns"),
    ("counts without their criterion", "--prune_ns 1", "--prune_ns 1"),
    ("an unknown criterion", "--prune_methods magic", "'magic'"),
    ("a folder of data that is a file", f"--data_dir {ROWS}", f"--data_dir {ROWS}"),
    ("rows and a folder of rows", f"{CUSTOM} --data_dir .", "--data_dir ."),
    ("a data set that the folder lacks", "--datasets custom_jsonl --data_dir .", "--data_dir ."),
    ("too few layers", f"{RUN} {TINY} --exit_layer_first 6", "--exit_layer_first 6"),
    (
        "more layers to remove than there are",
        f"{RUN} {TINY} --prune_methods angular --prune_ns 5 --num_samples 6 "
        "--calibration_samples 6",
        "--prune_ns 5",
    ),
)

CORRECTNESS = cases_of(
    "correctness",
    ("an unknown flag", "--draws 100", "--draws"),
    ("plain decoding", "--generation_strategy autoregressive", "--generation_strategy"),
    ("no exit layer", CUSTOM, "--exit_layer -1"),
    ("too few draws", f"{DRAFTS} --num_draws 10", "--num_draws 10"),
    ("code to execute", f"{DRAFTS} --execute_code true", "--execute_code true"),
    ("rows that are no JSON", f"{CUSTOM} {DRAFTS}", f"--data_path {ROWS}", {ROWS: "{"}),
    ("too few layers", f"{RUN} {TINY} --exit_layer 6 --num_speculations 2", "--exit_layer 6"),
    ("a folder that cannot be written", f"{DRAFTS} --output_dir {ROWS}", f"--output_dir {ROWS}"),
)

_ASK = f"--prompt a --model {TINY}"
GENERATE = [
    *cases_of(
        "generate",
        ("an unknown flag", "--promt hello", "--promt"),
        ("an empty prompt", "--prompt ''", "--prompt ''"),
        ("an unknown streamer", "--prompt a --streamer fancy", "'fancy'"),
        ("a file for a checkpoint", f"--prompt a --model {ROWS}", f"--model {ROWS}"),
        ("a token that the model lacks", f"{_ASK} --stop_token_ids 258", "--stop_token_ids 258"),
        ("a chat without template", f"{_ASK} --apply_chat_template true", "--apply_chat_template"),
        ("a prompt beyond the positions", f"--prompt {'a' * 257} --model {TINY}", "--prompt"),
        ("all layers but one to remove", f"{_ASK} --prune_method angular --prune_n 5", "_n 5"),
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
    BadInput("generate", "nothing piped in", "", "--prompt"),
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
_MINE = f"--model {TINY} --tasks mine --include_path tasks"
EVAL = cases_of(
    "eval",
    ("an unknown flag", "--tasks a --num_fewshots 1", "--num_fewshots"),
    ("no task", "", "--tasks"),
    ("an empty task", "--tasks ''", "--tasks ''"),
    ("a folder of tasks whose name is too long", f"--tasks a --include_path {LONG}", "_path xxx"),
    ("a folder of tasks that is not there", "--tasks a --include_path none", "--include_path none"),
    ("a number out of range", "--tasks a --num_fewshot -1", "--num_fewshot -1"),
    ("more documents than can be counted", f"--tasks a --limit {10**25}", f"--limit {10**25}"),
    ("a share of documents", "--tasks a --limit 0.5", "'0.5'"),
    ("a template", "--tasks a --template 'Q: {message}'", "--template"),
    ("data of a task that are not there", _MINE, "mine", {"tasks/mine.yaml": _TASK}),
    (
        "a task of an unknown kind",
        _MINE,
        "mine",
        {"tasks/mine.yaml": _TASK.replace("multiple_choice", "dance"), "d.json": '{"a": "b"}\n'},
    ),
    (
        "data of a task that are cut off",
        _MINE,
        "mine",
        {"tasks/mine.yaml": _TASK, "d.json": '{"a": '},
    ),
)


BENCHMARKS = cases_of(
    "benchmarks.early_exit",
    ("a number out of range", "--exit_layers 0", "--exit_layers"),
    ("an exit layer beyond the model", f"--model {TINY} {CUSTOM} --exit_layers 6", "--exit_layers"),
    ("rows that are no JSON", CUSTOM, f"--data_path {ROWS}", {ROWS: "{"}),
)

FLAGS = [*BENCHMARK, *SWEEP, *CORRECTNESS, *GENERATE, *EVAL, *BENCHMARKS]
