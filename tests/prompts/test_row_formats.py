"""Rows of every file format; a bad file gets one line."""

import csv
import gzip
import json
import os

import pandas
import pyarrow
import pytest
from pyarrow import parquet

from prompts import row_formats
from prompts.row_formats import RowsError
from prompts.sources import PathSource
from tests.conftest import write

ROWS = [
    {"prompt": 'a "quoted", word', "response": "zwölf"},
    {"prompt": "two\nlines\r\n and more", "response": ""},
    {"prompt": "x" * 200_000, "response": " spaces "},
]


def values(source, split="test"):
    return [row.values for row in source.rows(split)]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.JSONL", "a.jsonl.gz", "a.csv", "a.parquet", "ä b.csv"]
)
def test_every_format_yields_the_same_rows(tmp_path, name):
    assert values(PathSource(write(tmp_path / name, ROWS))) == ROWS


def test_a_compressed_csv_is_read_and_the_modules_limit_restored(tmp_path):
    before = csv.field_size_limit()
    plain = write(tmp_path / "a.csv", ROWS)
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert values(PathSource(packed)) == ROWS
    assert csv.field_size_limit() == before < 200_000


def test_rows_know_their_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"a": 1}\n\n  \n{"a": 2}\r\n', "utf-8")
    assert [row.place for row in PathSource(path).rows("test")] == ["line 1", "line 4"]
    path = tmp_path / "a.csv"
    path.write_text('\na,b\n1,"x\ny"\n\n2,z\n', "utf-8")
    assert [row.place for row in PathSource(path).rows("test")] == ["line 4", "line 6"]
    path = write(tmp_path / "a.parquet", ROWS)
    assert [row.place for row in PathSource(path).rows("test")] == ["row 1", "row 2", "row 3"]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_that_is_one_array_holds_a_row_each(tmp_path, name, indent):
    content = ("\ufeff \n" + json.dumps(ROWS, indent=indent)).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found = PathSource(tmp_path / name).rows("test")
    assert [row.values for row in found] == ROWS
    assert [row.place for row in found] == ["row 1", "row 2", "row 3"]


def test_an_array_without_end_is_read_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(row_formats, "ARRAY_BYTES", 1 << 20)
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": 1},\n')
    os.truncate(path, 1 << 40)
    with pytest.raises(RowsError, match="is one array of more than 1 MiB; write a row a line"):
        PathSource(path).rows("test")


def test_commas_at_the_ends_of_lines_are_no_fields(tmp_path):
    """Excel writes them for a sheet that once had more columns."""
    path = tmp_path / "a.csv"
    path.write_text("\ufeffprompt,response,,\r\na,b,,\r\n,,,\r\nc,,,\r\nd,e\r\n", "utf-8")
    found = PathSource(path).rows("test")
    assert [(row.place, *row.values.values()) for row in found] == [
        ("line 2", "a", "b"),
        ("line 4", "c", ""),
        ("line 5", "d", "e"),
    ]
    assert set(found[0].values) == {"prompt", "response"}
    path.write_text("prompt,response\na,b,,\n")
    assert values(PathSource(path)) == [{"prompt": "a", "response": "b"}]


def test_the_numbers_that_pandas_writes_before_rows_are_no_field(tmp_path):
    path = tmp_path / "a.csv"
    pandas.DataFrame(ROWS).to_csv(path)
    assert values(PathSource(path)) == ROWS


BAD_FILES = {
    "no json.jsonl": (b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
    "truncated.jsonl": (
        b'{"a": "x", "resp',
        "line 1 is not JSON (Unterminated string starting at, column 12)",
    ),
    "binary.jsonl": (b"\x00\xff\xfe\x80", "is not UTF-8 text (byte 1)"),
    "latin.csv": ("a\nzwölf\n".encode("latin-1"), "is not UTF-8 text (byte 4)"),
    "utf-16.jsonl": ('{"a": 1}'.encode("utf-16"), "is not UTF-8 text (byte 0)"),
    "huge number.jsonl": (b'{"a": ' + b"1" * 5000 + b"}\n", "line 1 is not JSON"),
    "deep.jsonl": (b"[" * 100_000, "is not JSON (is nested too deeply)"),
    "no gzip.jsonl.gz": (b'{"a": 1}\n', "is no whole gzip file"),
    "cut off.json": (b'[\n{"a": 1},\n{"a": ', "is not JSON (Expecting value, line 3, column 7)"),
    "two arrays.json": (b'[{"a": 1}]\n[{"a": 2}]', "is not JSON (Extra data, line 2, column 1)"),
    "other rows.json": (b'[{"a": 1}, null]', "row 2 is not a JSON object"),
    "twice.json": (b'[{"a": 1, "a": 2}]', "names a field twice: a"),
    "not a number.json": (b'[{"a": NaN}]', "is not JSON (holds NaN, which is no number)"),
    "latin.json": ('[{"a": "zwölf"}]'.encode("latin-1"), "is not UTF-8 text (byte 10)"),
    "empty.json": (b" []\n", "holds no examples"),
    "half.json.gz": (gzip.compress(b'[{"a": 1}]\n')[:-9], "is no whole gzip file"),
    "row over lines.json": (
        b'{\n "a": 1\n}\n',
        "line 1 is not JSON (Expecting property name enclosed in double quotes, column 2); "
        "a row is one line, or all rows are in one array",
    ),
    "empty.csv": (b"", "holds no examples"),
    "commas.csv": (b",,\n,,\n", "holds no examples"),
    "no names.csv": (b"a,b,,\n1,2,,\n1,2,,x\n", "line 3 has 'x' in column 4, for which the header"),
    "beyond.csv": (b"a,b\n1,2,,x\n", "line 2 has 4 values, the header 2 names"),
    "twice beside commas.csv": (b"a,a,,\n1,2,,\n", "line 1 names a field twice: a"),
    "short.csv": (b"a,b\n1,2\n3\n", "line 3 has 1 values, the header 2 names"),
    "long.csv": (b"a,b\n1,2,3\n", "line 2 has 3 values, the header 2 names"),
    "open quote.csv": (b'a,b\n1,"2\n3,4\n', "is not CSV (unexpected end of data)"),
    "twice.jsonl": (b'{"a": 1}\n{"a": 1, "a": 2}\n', "line 2 names a field twice: a"),
    "magic.parquet": (b"PAR1" + bytes(40) + b"PAR1", "is no readable Parquet file"),
    "empty.parquet": (b"", "is no readable Parquet file"),
    "magic.arrow": (b"ARROW1" + bytes(40) + b"ARROW1", "is no readable Arrow file"),
    "long.arrow": (b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(9), "is no readable Arrow file"),
    "rows.txt": (
        b'{"a": 1}\n',
        "must end in .jsonl, .json, .csv, .parquet, .arrow, or one",
    ),
    "rows": (b'{"a": 1}\n', "must end in"),
}


def test_parquet_columns_that_python_cannot_hold_are_one_line(tmp_path):
    days = pyarrow.array([2**30], pyarrow.int32()).cast(pyarrow.date32())
    bad_text = pyarrow.StringArray.from_buffers(
        1, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")
    )
    tables = [
        (pyarrow.table({"a": days}), "is no readable Parquet file"),
        (pyarrow.table({"a": bad_text}), "is no readable Parquet file"),
        (pyarrow.table([[1], [2]], names=["a", "a"]), "names a field twice: a"),
    ]
    for table, message in tables:
        parquet.write_table(table, tmp_path / "bad.parquet")
        with pytest.raises(RowsError, match=message):
            PathSource(tmp_path / "bad.parquet").rows("test")


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_say_what_is_wrong(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RowsError) as caught:
        PathSource(tmp_path / name).rows("test")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
