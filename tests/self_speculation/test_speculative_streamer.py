"""A terminal finally shows the text, whatever drafts were shown before."""

import random
import re

import pyte
import pytest
from wcwidth import wcwidth

from self_speculation.generator_base import StopRule
from self_speculation.speculative_streamer import STREAMERS, column_after, lines_needed
from tests.conftest import END

COLUMNS, LINES = 12, 5
PIECES = [
    "a",
    "word ",
    "\n",
    "日本",
    "é",
    "👍",
    "e\u0301",
    "x" * COLUMNS,
    "語" * 6,
    "\r\n",
    "\n\n\n",
]


class Screen(pyte.HistoryScreen):
    """Wraps a wide character at the last column, as terminals do but pyte does not."""

    def draw(self, data):
        for character in data:
            if wcwidth(character) == 2 and self.cursor.x == self.columns - 1:
                self.cursor.x = self.columns
            super().draw(character)


class Terminal:
    """A stream to an emulated terminal of a few short lines."""

    def __init__(self):
        self.screen = Screen(COLUMNS, LINES, history=10_000, ratio=0.01)
        self.screen.set_mode(pyte.modes.LNM)  # a line feed returns the carriage, as a tty's does
        self.feed = pyte.Stream(self.screen).feed
        self.sent = ""

    def write(self, text):
        self.sent += text
        self.feed(text)

    def flush(self):
        pass

    def isatty(self):
        return True

    def text(self):
        """Return all lines, including those that have scrolled away."""
        gone = ["".join(line[x].data for x in range(COLUMNS)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*gone, *self.screen.display]).rstrip()

    def colours(self):
        """Return the colour of every character on the screen, by line."""
        return [
            "".join(line[x].fg[0] for x in range(COLUMNS) if line[x].data.strip())
            for _, line in sorted(self.screen.buffer.items())
        ]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("LINES", str(LINES))
    return Terminal()


@pytest.fixture
def rule(tokenizer):
    return StopRule(tokenizer, {END}, ("STOP",))


@pytest.fixture
def ids(tokenizer):
    return lambda text: tokenizer(text)["input_ids"]


def speak(streamer, rule, output_ids, draws):
    """Stream an output whose drafts begin right and end wrong."""
    streamer.begin(rule)
    shown = 1
    streamer.show(output_ids[:shown])
    while shown < len(output_ids):
        true = output_ids[shown : shown + draws.randrange(0, 7)]
        astray = [draws.randrange(256) for _ in range(draws.randrange(0, 5))]
        streamer.draft(output_ids[:shown] + true + astray)
        shown = min(shown + len(true) + 1, len(output_ids))
        streamer.show(output_ids[:shown])
    streamer.end(rule.text(output_ids, None))


@pytest.mark.parametrize("seed", range(30))
def test_the_text_remains_without_a_trace_of_drafts(seed, terminal, rule, ids):
    draws = random.Random(seed)
    text = "".join(draws.choices(PIECES, k=40))
    speak(STREAMERS["speculative"](terminal), rule, ids(text), draws)
    plain = Terminal()
    plain.write(text.replace("\r", ""))
    assert terminal.text() == plain.text()


@pytest.mark.parametrize("drafted", ["\n\nc\n\nd\n\ne", "x" * 80, "語" * 40])
def test_a_draft_taller_than_the_terminal_leaves_no_trace(drafted, terminal, rule, ids):
    streamer = STREAMERS["speculative"](terminal)
    streamer.begin(rule)
    streamer.show(ids("one\nab"))
    streamer.draft(ids("one\nab" + drafted))
    assert terminal.text() != "one\nab"
    streamer.show(ids("one\nabX"))
    assert terminal.text() == "one\nabX"


def test_tabs_keep_their_stops(terminal, rule, ids):
    speak(STREAMERS["speculative"](terminal), rule, ids("ab\tcd\n\te"), random.Random(0))
    assert terminal.text() == "ab      cd\n        e"


def test_drafts_accepted_and_own_tokens_differ_in_colour(terminal, rule, ids):
    streamer = STREAMERS["speculative"](terminal)
    streamer.begin(rule)
    streamer.show(ids("a"))
    streamer.draft(ids("abcd"))
    assert (terminal.text(), terminal.colours()[0]) == ("abcd", "dbbb")  # default, brown
    streamer.show(ids("abcX"))
    assert (terminal.text(), terminal.colours()[0]) == ("abcX", "dggd")  # green
    streamer.draft(ids("abcXyz"))
    streamer.show(ids("abcXyz!"))
    assert (terminal.text(), terminal.colours()[0]) == ("abcXyz!", "dggdggd")


def test_a_character_is_shown_once_all_its_bytes_are_there(terminal, rule, ids):
    streamer = STREAMERS["speculative"](terminal)
    streamer.begin(rule)
    output = ids("a日")
    for count, seen in ((1, "a"), (2, "a"), (3, "a"), (4, "a日")):
        streamer.show(output[:count])
        assert terminal.text() == seen
    streamer.draft(output + ids("本")[:2])
    assert terminal.text() == "a日"
    streamer.show([*output, *ids("本")])
    assert terminal.text() == "a日本"


def test_an_output_that_ends_inside_a_character_says_so(terminal, rule, ids):
    output = ids("a日")[:3]
    for name in STREAMERS:
        terminal.screen.reset()
        speak(STREAMERS[name](terminal), rule, output, random.Random(1))
        assert terminal.text() == "a\ufffd"


def test_the_beginning_of_a_stop_word_is_held_back(terminal, rule, ids):
    streamer = STREAMERS["standard"](terminal)
    streamer.begin(rule)
    shown = []
    for end in range(1, len("a ST STOP") + 1):
        streamer.show(ids("a ST STOP")[:end])
        shown.append(terminal.text())
    assert shown == ["a", "a", "a", "a", "a ST", "a ST", "a ST", "a ST", "a ST"]
    streamer.end("a ST ")
    assert terminal.text() == "a ST"


def test_an_end_token_and_commands_to_the_terminal_leave_no_trace(terminal, rule, ids):
    output = [*ids("a\x1b[2Jb\x9b1A\x07"), END]
    speak(STREAMERS["speculative"](terminal), rule, output, random.Random(3))
    assert terminal.text() == "a␛[2Jb\ufffd1A␇"


def test_an_interrupted_output_removes_its_draft(terminal, rule, ids):
    streamer = STREAMERS["speculative"](terminal)
    streamer.begin(rule)
    streamer.show(ids("kept"))
    streamer.draft(ids("kept away"))
    streamer.abort()
    assert terminal.text() == "kept"
    assert terminal.screen.cursor.x == 0


def test_no_colours_where_the_user_wants_none(terminal, rule, ids, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    speak(STREAMERS["speculative"](terminal), rule, ids("some text"), random.Random(2))
    assert terminal.text() == "some text"
    assert "\x1b7" in terminal.sent  # Drafts are shown and removed all the same.
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.sent)


@pytest.mark.parametrize("how", ["pipe", "dumb"])
@pytest.mark.parametrize("name", STREAMERS)
def test_without_a_terminal_there_is_nothing_but_the_text(
    name, how, terminal, rule, ids, monkeypatch
):
    if how == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    else:
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    speak(STREAMERS[name](terminal), rule, ids("日本\tab\x1b[0m"), random.Random(5))
    assert terminal.sent == "日本\tab\x1b[0m\n"


@pytest.mark.parametrize("columns", [2, 3, 7, 80])
@pytest.mark.parametrize("text", ["", "語" * 30, "\n\n語\n", "a語" * 9, "\ta" * 5])
def test_no_text_takes_more_lines_than_needed(text, columns):
    for start in range(columns + 1):
        column, rows = start, 0
        for character in text:
            after = column_after(character, column, columns)
            # Only a line break or a full line moves the cursor back.
            rows += character == "\n" or (after <= column and character != "\t")
            column = after
        assert rows <= lines_needed(text, columns)


def test_columns_are_counted_as_a_terminal_does():
    assert column_after("abc", 0, 4) == 3
    assert column_after("abcd", 0, 4) == 4
    assert column_after("abcde", 0, 4) == 1
    assert column_after("abc語", 0, 4) == 2  # no room for half of it
    assert column_after("語語", 0, 4) == 4
    assert column_after("abcd\ne\u0301", 0, 4) == 1
    assert column_after("a\t", 0, 20) == 8
    assert column_after("a\t", 0, 6) == 5
