"""The line that stands for an error of a library."""

import pytest
from huggingface_hub.utils import httpx

from files.error_lines import error_line
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


@pytest.mark.parametrize("kind", [httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError])
def test_a_hub_that_cannot_be_reached_is_no_download_that_broke_off(kind):
    said = hub_reason(kind("no route"), Wanted("model"))
    assert said == "the hub cannot be reached, and the local cache lacks it"
