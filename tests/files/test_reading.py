"""Readers that are bounded in what they read, wait for nobody, and take JSON strictly."""

import io
import os
import socket

import pytest

from files import reading
from files.reading import (
    DuplicateKeyError,
    TooLargeError,
    bounded_lines,
    parse_json,
    parse_log,
    read_bounded,
    read_settings,
)


def test_a_file_of_the_limit_is_read_and_one_beyond_is_not(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * (1 << 20))
    assert read_bounded(path, 1 << 20) == path.read_bytes()
    path.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(TooLargeError, match="is larger than 1 MiB"):
        read_bounded(path, 1 << 20)


def test_terabytes_of_nothing_are_refused_unread(tmp_path):
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, 1 << 42)
    with pytest.raises(TooLargeError, match="is larger than 16 MiB"):
        read_settings(path)


def test_a_device_without_end_is_read_up_to_the_limit():
    with pytest.raises(TooLargeError):
        read_bounded(reading.Path("/dev/zero"), 1 << 20)


def test_a_pipe_is_read_to_its_end_and_nobody_is_waited_for(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert read_bounded(path, 99) == b""
    # As the shell's <(command), which is open for writing before its name is known.
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(path, os.O_WRONLY)
    os.write(writing, b"{}")
    os.close(writing)
    assert read_settings(path) == {}
    os.close(reading)


def test_a_socket_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path may have but some hundred characters
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(OSError, match="No such device or address"):
            read_settings(reading.Path("socket"))


def test_lines_keep_their_ends_and_none_is_too_long(monkeypatch):
    monkeypatch.setattr(reading, "LINE_BYTES", 4)
    assert list(bounded_lines(io.BytesIO(b"ab\n\r\nabcd"))) == [b"ab\n", b"\r\n", b"abcd"]
    lines = bounded_lines(io.BytesIO(b"abc\nabcde\n"))
    assert next(lines) == b"abc\n"
    with pytest.raises(TooLargeError):
        next(lines)


TWICE = {
    b'{"a": 1, "b": {"c": 1, "c": 1}}': "names a field twice: c",
    b'[[1], {"a": 1, "a" : 2}]': "names a field twice: a",
}
UNCLEAR = [
    *TWICE,
    b'{"a": NaN}',
    b'{"a": -Infinity}',
    b'{"a": 1e999}',
    b"[" * 5000,
    b'{"a"',
    b"\xff",
    b"",
    '{"a": 1}'.encode("utf-16"),
]


@pytest.mark.parametrize("text", UNCLEAR, ids=range(len(UNCLEAR)))
@pytest.mark.parametrize("parse", [parse_json, parse_log])
def test_what_is_unclear_is_a_value_error(parse, text):
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert isinstance(caught.value, DuplicateKeyError) == (text in TWICE)
    assert str(caught.value) == TWICE.get(text, str(caught.value))


CLEAR = [
    b'{"a": "\\": \\" :", "b": [1, {"a": 2}], "c": [[{}], {"a" \n: null}]}',
    b'[1, {"a": 1}, {"a": 2}]',
    b'"\xc3\xa4"',
    b"1.5",
]


@pytest.mark.parametrize("text", CLEAR)
def test_both_parsers_say_the_same(text):
    assert parse_log(text) == parse_json(text)
