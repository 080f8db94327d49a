"""Streamers that show an output, and its drafts, in a terminal while it grows."""

import itertools
import os
import shutil
import sys
from collections.abc import Callable
from typing import TextIO

from wcwidth import wcwidth

from self_speculation.generator_base import StopRule, Streamer

# Colours and cursor commands (ECMA-48; DEC's to save and restore the cursor).
_DRAFTED, _ACCEPTED, _PLAIN = "\x1b[33m", "\x1b[32m", "\x1b[0m"
_SAVE, _RESTORE, _ERASE_BELOW = "\x1b7", "\x1b8", "\x1b[J"
_DOWN, _UP = "\x1bD", "\x1b[{}A"
_TAB = 8
# Control characters in an output would command the terminal; show symbols for them instead.
_SHOWN = {code: chr(0x2400 + code) for code in range(32)}
_SHOWN |= {0x7F: "\u2421"} | dict.fromkeys(range(0x80, 0xA0), "\ufffd")
_SHOWN |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}


class WholeText(Streamer):
    """Shows an output when it is complete."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        # A terminal with a cursor that can be moved.
        self._is_terminal = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._reset()

    def begin(self, stop_rule: StopRule) -> None:
        self._stop_rule = stop_rule
        self._reset()

    def _reset(self) -> None:
        self._written = ""
        self.tokens = 0

    def show(self, output_ids: list[int]) -> None:
        self.tokens = len(output_ids)

    def end(self, text: str) -> None:
        self.write(text[len(self._written) :])
        if text and not text.endswith("\n"):
            self._put("\n")

    def abort(self) -> None:
        """End an output that was interrupted; the text so far remains."""
        self._put("\n")

    def write(self, text: str, colour: str = "") -> None:
        """Append text to the output."""
        self._written += text
        self._put(self.rendered(text, colour))

    def rendered(self, text: str, colour: str = "") -> str:
        """Return the text in colour, safe for the stream."""
        if self._is_terminal:
            text = text.translate(_SHOWN)
        return f"{colour}{text}{_PLAIN}" if colour and text else text

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class StandardStreamer(WholeText):
    """Shows text as soon as later tokens cannot change it."""

    def show(self, output_ids: list[int]) -> None:
        super().show(output_ids)
        self.write(self.news(output_ids))

    def news(self, output_ids: list[int]) -> str:
        """Return settled text that is not shown yet."""
        return self._stop_rule.settled(output_ids)[len(self._written) :]


class SpeculativeStreamer(StandardStreamer):
    """Shows each draft, removes it, and shows the accepted tokens in another colour.

    The terminal itself saves the cursor before a draft, because only the terminal knows how wide it
    draws a character. Scrolling would move that place, so the streamer scrolls first by the lines
    that the draft may need. Without a terminal, drafts are not shown.
    """

    shows_drafts = True

    def _reset(self) -> None:
        super()._reset()
        coloured = self._is_terminal and not os.environ.get("NO_COLOR")  # no-color.org
        self._colours = (_DRAFTED, _ACCEPTED) if coloured else ("", "")
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
        """Return the part of a draft that can be removed without a trace.

        A leading accent would change the last character of the output. At the end of a full line,
        some terminals do not save whether the next character begins a new line. A draft that
        scrolls the screen moves the saved place.
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
        """Return the commands that scroll, if needed, by the lines that the text may take."""
        count = lines_needed(text, shutil.get_terminal_size().columns)
        return _DOWN * count + _UP.format(count)


def lines_needed(text: str, columns: int) -> int:
    """Return the most lines below the cursor that the text may take, from any column.

    No character is wider than 2 columns, and a line ends a column early if the next does not fit.
    """
    widths = (2 * len(line.replace("\t", "\t" * (_TAB // 2))) for line in text.split("\n"))
    return sum(width // max(columns - 1, 1) + 1 for width in widths)


def column_after(text: str, column: int, columns: int) -> int:
    """Return the cursor's column after a text; `columns` at the end of a full line."""
    for character in text:
        if character == "\n":
            column = 0
        elif character == "\t":
            column = min(columns - 1, (column // _TAB + 1) * _TAB)
        else:
            width = max(wcwidth(character), 0)
            column = column + width if column + width <= columns else width
    return column


STREAMERS: dict[str, Callable[[TextIO], WholeText]] = {
    "none": WholeText,
    "standard": StandardStreamer,
    "speculative": SpeculativeStreamer,
}


def make_streamer(name: str) -> WholeText:
    """Return the streamer of `--streamer`, on standard output."""
    return STREAMERS[name](sys.stdout)
