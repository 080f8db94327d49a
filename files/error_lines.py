"""One line per error of a library, and the errors that caused it."""

import itertools
import textwrap
from collections.abc import Iterator

_LONGEST_REASON = 400  # characters of a reason that spans several lines


def compiler_error_line(error: BaseException) -> str:
    """Return the line of an error, and the compiler's own where the message quotes its output."""
    line = error_line(error)
    quoted = [one.strip() for one in str(error).splitlines() if "error:" in one]
    return f"{line} ({quoted[0]})" if quoted and quoted[0] not in line else line


def error_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message.

    If the line only announces the reason, as in "Validation error for field 'x':", the rest of the
    paragraph follows.
    """
    lines = [line.strip() for line in str(error).splitlines()]
    said = list(itertools.dropwhile(lambda line: not any(map(str.isalnum, line)), lines))
    paragraph = list(itertools.takewhile(bool, said))
    if not paragraph:
        return f"{type(error).__name__}: no reason given"
    text = paragraph[0]
    if text.endswith(":") and len(paragraph) > 1:
        text = textwrap.shorten(" ".join(paragraph), _LONGEST_REASON, placeholder=" …")
    return f"{type(error).__name__}: {text}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and every error that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
