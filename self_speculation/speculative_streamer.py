"""Shows an output in a terminal while it grows, and drafts before they are judged."""

import itertools
import os
import shutil
import sys
from collections.abc import Callable
from typing import TextIO

from wcwidth import wcwidth

from self_speculation.generator_base import StopRule, Streamer

# Colours, and what moves the cursor (ECMA-48; DEC's for saving and restoring it).
_DRAFTED, _ACCEPTED, _PLAIN = "\x1b[33m", "\x1b[32m", "\x1b[0m"
_SAVE, _RESTORE, _ERASE_BELOW = "\x1b7", "\x1b8", "\x1b[J"
_DOWN, _UP = "\x1bD", "\x1b[{}A"
_TAB = 8
# Control characters of a model's output would be the terminal's commands; they are shown instead.
_SHOWN = {code: chr(0x2400 + code) for code in range(32)}
_SHOWN |= {0x7F: "\u2421"} | dict.fromkeys(range(0x80, 0xA0), "\ufffd")
_SHOWN |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}


class WholeText(Streamer):
    """Shows an output once it is over."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = is_terminal(stream)
        self.begin(None)

    def begin(self, stop_rule: StopRule | None) -> None:
        self._stop_rule = stop_rule
        self._written = ""
        self.tokens = 0

    def show(self, output_ids: list[int]) -> None:
        self.tokens = len(output_ids)

    def end(self, text: str) -> None:
        self.write(text[len(self._written) :])
        if text and not text.endswith("\n"):
            self._put("\n")

    def abort(self) -> None:
        """The output was broken off; what stands remains."""
        self._put("\n")

    def write(self, text: str, colour: str = "") -> None:
        """Appends text to what stands."""
        self._written += text
        self._put(self.rendered(text, colour))

    def rendered(self, text: str, colour: str = "") -> str:
        """The text as the stream takes it."""
        if self._is_terminal:
            text = text.translate(_SHOWN)
        return f"{colour}{text}{_PLAIN}" if colour and text else text

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class StandardStreamer(WholeText):
    """Shows text as soon as it is settled."""

    def show(self, output_ids: list[int]) -> None:
        super().show(output_ids)
        self.write(self.news(output_ids))

    def news(self, output_ids: list[int]) -> str:
        """Settled text that does not stand yet."""
        return self._stop_rule.settled(output_ids)[len(self._written) :]


class SpeculativeStreamer(StandardStreamer):
    """Shows drafts, takes them back, and leaves what was accepted in a colour of its own.

    Where the cursor stood before a draft is saved by the terminal itself, which knows best how
    wide it draws a character; the lines that a draft may need are made sure of beforehand, since
    a terminal that scrolls forgets the place. Without a terminal, drafts are not shown.
    """

    shows_drafts = True

    def begin(self, stop_rule: StopRule | None) -> None:
        super().begin(stop_rule)
        self._colours = (_DRAFTED, _ACCEPTED) if allows_colour(self._stream) else ("", "")
        self._drafted_ids: list[int] = []
        self._is_draft_shown = False
        self._column = 0

    def draft(self, output_ids: list[int]) -> None:
        self._drafted_ids = output_ids
        text = self._removable(self.news(output_ids))
        self._is_draft_shown = bool(text)
        if text:
            self._put(self._room_for(text) + _SAVE + self.rendered(text, self._colours[0]))

    def show(self, output_ids: list[int]) -> None:
        self._take_back()
        pairs = zip(output_ids, self._drafted_ids, strict=False)
        parted = (index for index, (one, other) in enumerate(pairs) if one != other)
        alike = next(parted, min(len(output_ids), len(self._drafted_ids)))
        self._drafted_ids = []
        self.write(self.news(output_ids[:alike]), self._colours[1])
        super().show(output_ids)

    def abort(self) -> None:
        self._take_back()
        super().abort()

    def write(self, text: str, colour: str = "") -> None:
        super().write(text, colour)
        if self._is_terminal:
            text = text.translate(_SHOWN)
            self._column = column_after(text, self._column, shutil.get_terminal_size().columns)

    def _removable(self, text: str) -> str:
        """The part of a draft that can be taken back without a trace.

        An accent would go into the last character that stands. At the end of a full line, not
        every terminal saves whether the next character begins a new one. What scrolls beyond the
        top moves the place that was saved.
        """
        columns, lines = shutil.get_terminal_size()
        if not self._is_terminal or self._column == columns:
            return ""
        joining = itertools.takewhile(lambda character: wcwidth(character) == 0, text)
        text = text[len(list(joining)) :]
        while text and lines_needed(text, columns) > lines - 1:
            text = text[:-1]
        return text

    def _take_back(self) -> None:
        if self._is_draft_shown:
            self._put(_RESTORE + _ERASE_BELOW)
        self._is_draft_shown = False

    def _room_for(self, text: str) -> str:
        """Scrolls, where needed, by the lines that the text could take."""
        count = lines_needed(text, shutil.get_terminal_size().columns)
        return _DOWN * count + _UP.format(count)


def lines_needed(text: str, columns: int) -> int:
    """The most lines below the cursor's that the text could take, whatever column it begins in.

    No character is wider than 2, and a line may end a column early where one does not fit.
    """
    widths = (2 * len(line.replace("\t", "\t" * (_TAB // 2))) for line in text.split("\n"))
    return sum(width // max(columns - 1, 1) + 1 for width in widths)


def column_after(text: str, column: int, columns: int) -> int:
    """Where the cursor is after a text; `columns` where the line is full and not yet left."""
    for character in text:
        if character == "\n":
            column = 0
        elif character == "\t":
            column = min(columns - 1, (column // _TAB + 1) * _TAB)
        else:
            width = max(wcwidth(character), 0)
            column = column + width if column + width <= columns else width
    return column


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream ends in a terminal in which a cursor can be moved."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def allows_colour(stream: TextIO) -> bool:
    """Colours are for terminals whose user has not set NO_COLOR (no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


STREAMERS: dict[str, Callable[[TextIO], WholeText]] = {
    "none": WholeText,
    "standard": StandardStreamer,
    "speculative": SpeculativeStreamer,
}


def make_streamer(name: str) -> WholeText:
    """The streamer of `--streamer`, on standard output."""
    return STREAMERS[name](sys.stdout)
