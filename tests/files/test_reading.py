"""Readers have limits, wait for no writer, and take foreign JSON strictly."""

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


def test_a_pipe_is_read_to_its_end_without_waiting_for_a_writer(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert read_bounded(path, 99) == b""
    # The shell opens <(command) for writing before it passes its name.
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(path, os.O_WRONLY)
    os.write(writing, b"{}")
    os.close(writing)
    assert read_settings(path) == {}
    os.close(reading)


def test_a_socket_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path may have only about 100 characters
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
BROKEN = [b'{"a": NaN}', b'{"a": 1e999}', b"[" * 5000, b'{"a"', b"\xff", b"", b'{\0"\0a\0']


@pytest.mark.parametrize("text", [*TWICE, *BROKEN], ids=range(len(TWICE) + len(BROKEN)))
def test_unclear_json_of_others_is_a_value_error(text):
    with pytest.raises(ValueError) as caught:
        parse_json(text)
    assert isinstance(caught.value, DuplicateKeyError) == (text in TWICE)
    assert str(caught.value) == TWICE.get(text, str(caught.value))


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_log_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_log(text)


@pytest.mark.parametrize(
    "text", [b'{"a": "\\": \\" :", "b": [1, {"a": null}]}', b'"\xc3\xa4"', b"1.5"]
)
def test_both_parsers_agree(text):
    assert parse_log(text) == parse_json(text)
