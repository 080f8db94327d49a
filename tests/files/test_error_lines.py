"""The line that stands for an error of a library."""

import pytest
from huggingface_hub.utils import httpx

from files.error_lines import compiler_error_line, error_line
from files.hub_reasons import Wanted, hub_reason

ERRORS = {
    "a\nb": "a",
    "\n *** \n a \n": "a",
    "field 'x':\n    TypeError: no int\n\nmore": "field 'x': TypeError: no int",
    "loading:\n" + "\n".join(["reason"] * 99): "loading: " + "reason " * 55 + "…",
    "only this:": "only this:",
    "": "no reason given",
}


@pytest.mark.parametrize("text", ERRORS)
def test_a_line_gives_the_reason_that_the_first_line_announces(text):
    assert error_line(ValueError(text)) == f"ValueError: {ERRORS[text]}"


COMPILER = """CppCompileError: C++ compile error

Command:
g++ /tmp/a.cpp

Output:
/tmp/a.cpp: In function kernel:
/tmp/a.cpp:5:10: fatal error: omp.h: No such file or directory
compilation terminated.
"""


def test_a_compiler_speaks_for_itself():
    """torch puts its output under the command, far from the first line."""
    assert compiler_error_line(RuntimeError(COMPILER)) == (
        "RuntimeError: CppCompileError: C++ compile error "
        "(/tmp/a.cpp:5:10: fatal error: omp.h: No such file or directory)"
    )
    for text in ("no room", "error: no room"):
        assert compiler_error_line(OSError(text)) == f"OSError: {text}"


@pytest.mark.parametrize("kind", [httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError])
def test_a_hub_that_cannot_be_reached_is_no_download_that_broke_off(kind):
    said = hub_reason(kind("no route"), Wanted("model"))
    assert said == "the hub cannot be reached, and the local cache lacks it"
