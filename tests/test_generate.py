"""generate.py reads a prompt from a flag, a pipe or a terminal, and reports what an answer took."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

import generate
from command_line.errors import EXIT_CLOSED_PIPE
from command_line.script import run_script
from runs import preparation
from self_speculation import generator_base
from self_speculation.key_value_cache import KeyValueCache
from self_speculation.llama_model_utils import CachedLlama
from self_speculation.speculative_streamer import WholeText
from self_speculation.text_generator import TextGenerator
from tests.conftest import LAYERS, ROOT

SPECULATIVE = [
    *["--generation_strategy", "self_speculative", "--exit_layer", "3"],
    *["--num_speculations", "3"],
]


@pytest.fixture
def ask(checkpoint, monkeypatch, capsys):
    """Run generate.py with bytes piped in; return exit code, answer and remarks."""

    def start(*flags, piped=None):
        pipe = io.TextIOWrapper(io.BytesIO(piped or b""), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", pipe)
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            code = run_script(
                generate.main,
                ["--model", str(checkpoint), "--dtype", "float64", "--max_steps", "24", *flags],
            )
        out.flush()
        return code, out.buffer.getvalue().decode(), capsys.readouterr().err

    return start


GREEDY = ["--sample", "false"]


def test_both_strategies_and_all_streamers_give_the_same_answer(ask):
    answers = set()
    for decoder in ([], SPECULATIVE):
        for streamer in ("none", "standard", "speculative"):
            code, out, err = ask("--prompt", "hello", *GREEDY, *decoder, "--streamer", streamer)
            assert code == 0
            assert "base: all 6 layers kept" in err
            answers.add(out)
            took = (
                r"\[24 tokens in [\d.]+ s, of which the prompt's 5 took [\d.]+ s; [\d.]+ tokens/s"
            )
            drafts = r"; [\d.]+% of \d+ drafts accepted\]" if decoder else r"\]"
            assert re.search(took + drafts, err)
    assert len(answers) == 1
    assert answers.pop().strip()


def test_a_pruned_model_answers_otherwise(ask):
    _, whole, _ = ask("--prompt", "hello", *GREEDY)
    angular = ["--prune_method", "angular", "--prune_n", "2", "--calibration_samples", "4"]
    code, out, err = ask("--prompt", "hello", *GREEDY, *angular)
    assert code == 0
    assert "angular n=2: removed 2 of 6 layers" in err
    assert out != whole


def test_calibration_rows_may_be_named(ask, rows):
    flags = ["--prune_method", "angular", "--prune_n", "2"]
    custom = ["--calibration_dataset", "custom_jsonl", "--calibration_path", str(rows)]
    assert ask("--prompt", "hello", *flags, *custom)[0] == 0
    code, out, err = ask("--prompt", "hello", *flags, *custom, "--prompt_field", "q")
    assert (code, out) == (2, "")
    assert "line 1 has no field 'q'" in err


def test_a_pipe_is_a_prompt(ask):
    _, given, _ = ask("--prompt", "two\nlines", *GREEDY)
    code, piped, _ = ask(*GREEDY, piped=b"two\nlines\n")
    assert (code, piped) == (0, given)


def test_answers_depend_on_the_seed_alone(ask):
    _, one, _ = ask("--prompt", "hello")
    assert ask("--prompt", "hello")[1] == one
    assert ask("--prompt", "hello", "--seed", "7")[1] != one


@pytest.mark.parametrize(
    ("flags", "piped", "message"),
    [
        (["--prompt", ""], None, "--prompt '': must not be empty"),
        ([], b"", "--prompt: standard input is empty"),
        ([], b"ab\xff", "--prompt: standard input is not UTF-8 text (byte 2)"),
        (["--prompt", "x" * 300], None, "--prompt of 300 tokens: the model has 256 positions; "),
        (["--prompt", "x", "--streamer", "all"], None, "--streamer: invalid choice: 'all'"),
        (["--prompt", "x", "--exit_layer", "6"], None, "--exit_layer 6: must be 1 to 5"),
        (["--prompt", "x", "--stop_token_ids", "999"], None, "--stop_token_ids 999: must be below"),
    ],
)
def test_bad_input_is_one_line(ask, flags, piped, message):
    code, out, err = ask(*flags, piped=piped)
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert message in line


def test_a_long_prompt_keeps_its_tail_if_asked_to(ask):
    code, out, err = ask("--prompt", "x" * 300, "--truncate_prompt", "true")
    assert code == 0
    assert "24 tokens in" in err
    assert "the prompt's 233 took" in err


class Typist:
    """A stand-in for `input` that returns lines, and raises errors that are listed as classes."""

    def __init__(self, *lines):
        self.lines = list(lines)
        self.seen = []

    def __call__(self, sign=None):
        self.seen.append(sign)
        line = self.lines.pop(0)
        if isinstance(line, type):
            raise line
        return line


@pytest.mark.parametrize(
    ("lines", "prompts"),
    [
        (["one", "", EOFError], ["one"]),
        (["one", "two", "", "three", EOFError, EOFError], ["one\ntwo", "three"]),
        (["", "", "one", EOFError, EOFError], ["one"]),
        (["dropped", KeyboardInterrupt, "one", "", EOFError], ["one"]),
        ([KeyboardInterrupt, EOFError], []),
    ],
)
def test_an_empty_line_or_the_end_of_input_sends_a_prompt(lines, prompts, monkeypatch):
    typist = Typist(*lines)
    monkeypatch.setattr("builtins.input", typist)
    found = []
    while (prompt := generate.read_prompt()) is not None:
        found.append(prompt)
    assert found == prompts
    assert typist.lines == []


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_is_asked_on_standard_output(terminal, monkeypatch, capsys):
    """A file with the answer holds only the answer's text."""
    typist = Typist("one", KeyboardInterrupt, EOFError)
    monkeypatch.setattr("builtins.input", typist)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert generate.read_prompt() is None
    assert typist.seen == ([">>> ", "... ", ">>> "] if terminal else [None] * 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("\n\n" if terminal else ">>> ... \n>>> \n")


@pytest.mark.parametrize(
    ("stream", "message"),
    [("stdin", "--prompt: standard input is closed"), ("stdout", "standard output is closed")],
)
def test_closed_streams_are_one_line(stream, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, stream, None)
    assert run_script(generate.main, []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_bad_prompt_ends_nothing(ask, monkeypatch, capsys):
    asked = []

    def respond(prompt):
        asked.append(prompt)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr("builtins.input", Typist("\udcff", "", "good", "", EOFError))
    assert generate.converse(respond) == 0
    assert asked == ["good"]
    assert "what was typed is not UTF-8 text" in capsys.readouterr().err


def test_an_interruption_stops_the_answer_and_not_the_program(ask, monkeypatch):
    ordinary = WholeText.show

    def stop(self, output_ids):
        ordinary(self, output_ids)
        if len(output_ids) > 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(WholeText, "show", stop)
    code, out, err = ask("--prompt", "hello", "--streamer", "standard")
    assert code == 130
    assert re.search(r"\[stopped after 5 tokens and [\d.]+ s\]", err)
    assert out.endswith("\n")


def test_time_taken_by_the_terminal_is_no_part_of_the_speed(ask, monkeypatch):
    """The clock of this test moves only while the terminal shows text."""
    made, clock = [], [0.0]
    ordinary, generate_text = WholeText.show, TextGenerator.generate

    def slow(self, output_ids):
        ordinary(self, output_ids)
        clock[0] += 1

    def watched(self, *arguments, **options):
        made.append(generate_text(self, *arguments, **options))
        return made[-1]

    monkeypatch.setattr(WholeText, "show", slow)
    monkeypatch.setattr(TextGenerator, "generate", watched)
    monkeypatch.setattr(generate, "cost", str)  # has no speed to tell of
    monkeypatch.setattr(generator_base, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(generator_base, "now", lambda device: clock[0])
    assert ask("--prompt", "hello", *GREEDY, *SPECULATIVE)[0] == 0
    assert clock[0] > len(made[-1].rounds) > 0
    assert made[-1].decode_seconds == 0


BUFFERS = 2 * LAYERS  # keys and values


@pytest.fixture
def clock(monkeypatch):
    """Stop the clock, except at the first use of a model or a cache."""
    seconds = [0.0]
    run, allocate = CachedLlama._run, KeyValueCache._allocate

    def first_run_takes_long(self, *inputs):
        seconds[0] += 0 if seconds[0] else 100
        return run(self, *inputs)

    def allocations_take_long(self, like):
        seconds[0] += 1
        return allocate(self, like)

    monkeypatch.setattr(CachedLlama, "_run", first_run_takes_long)
    monkeypatch.setattr(KeyValueCache, "_allocate", allocations_take_long)
    monkeypatch.setattr(generator_base, "perf_counter", lambda: seconds[0])
    monkeypatch.setattr(generator_base, "now", lambda device: seconds[0])
    return seconds


@pytest.mark.parametrize("decoder", [[], SPECULATIVE])
def test_the_first_answers_time_does_not_hold_the_models_start(ask, clock, monkeypatch, decoder):
    made = []
    monkeypatch.setattr(generate, "cost", lambda one: made.append(one) or "")
    assert ask("--prompt", "hello", *decoder)[0] == 0
    assert clock[0] == 100 + BUFFERS
    assert [(one.prefill_seconds, one.decode_seconds) for one in made] == [(0, 0)]


def test_a_conversation_that_outgrows_its_cache_is_timed_warm(ask, clock, monkeypatch):
    made = []
    monkeypatch.setattr(preparation, "_LEAST_ROOM", 4)
    monkeypatch.setattr(generate, "cost", lambda one: made.append(one) or "")
    monkeypatch.setattr(generate, "piped_prompt", lambda: None)
    monkeypatch.setattr("builtins.input", Typist("hi", "", "a longer one", "", EOFError))
    assert ask(*GREEDY)[0] == 0
    assert clock[0] == 100 + 2 * BUFFERS
    assert [one.prompt_tokens for one in made] == [2, 12]
    assert {(one.prefill_seconds, one.decode_seconds) for one in made} == {(0, 0)}


def test_a_session_in_a_terminal(checkpoint):
    master, slave = pty.openpty()
    command = [sys.executable, "-B", str(ROOT / "generate.py"), "--model", str(checkpoint)]
    flags = [*GREEDY, *SPECULATIVE, "--max_steps", "60", "--streamer", "speculative"]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "40"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [*command, *flags], stdin=slave, stdout=slave, stderr=slave, env=environment, close_fds=True
    )
    os.close(slave)
    wait_for(master, b">>> ")
    os.write(master, "日本\nзима\n\n".encode())
    seen = wait_for(master, b"accepted]", b">>> ")
    os.write(master, b"\x04")
    assert process.wait(timeout=60) == 0
    os.close(master)
    assert seen.count(b"\x1b7") == seen.count(b"\x1b8") > 0
    # Three bytes a character of the first line, two of the second, and the line break.
    assert b"[60 tokens in" in seen
    assert b"the prompt's 15 took" in seen


def test_a_reader_that_has_seen_enough_ends_the_answer_quietly(checkpoint):
    command = [sys.executable, "-B", str(ROOT / "generate.py"), "--model", str(checkpoint)]
    with subprocess.Popen(
        [*command, "--prompt", "hello", "--max_steps", "200"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        remarks = process.stderr.read().decode()
        assert process.wait(timeout=60) == EXIT_CLOSED_PIPE
    assert remarks.splitlines() == ["base: all 6 layers kept"]


def wait_for(master, *marks):
    """Read until the marks have come in this order, in one piece or several."""
    pattern = re.compile(b".*?".join(map(re.escape, marks)), re.DOTALL)
    seen, deadline = b"", time.monotonic() + 90
    while not pattern.search(seen):
        ready, _, _ = select.select([master], [], [], max(0, deadline - time.monotonic()))
        assert ready, seen
        seen += os.read(master, 65536)
    return seen
