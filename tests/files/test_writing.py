"""Files and folders appear whole or not at all."""

import pytest

from files.writing import replace_text, whole_file, whole_folder


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.b.json"
    replace_text(path, "old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as partial:
        partial.write_text("ne")
        assert path.read_text() == "old"
        raise ZeroDivisionError
    assert path.read_text() == "old"
    replace_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("named", [False, True])
def test_a_folder_appears_as_a_whole(tmp_path, named):
    target = tmp_path / "made"
    scratch = tmp_path / "made.partial" if named else None
    if scratch:
        (scratch / "made").mkdir(parents=True)
        (scratch / "made" / "of a killed process").touch()
    with pytest.raises(ZeroDivisionError), whole_folder(target, scratch) as partial:
        partial.mkdir()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with whole_folder(target, scratch) as partial:
        partial.mkdir()
        (partial / "a").touch()
        assert not target.exists()
    assert list(tmp_path.rglob("*")) == [target, target / "a"]


def test_a_folder_that_is_there_already_stays(tmp_path):
    target = tmp_path / "made"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(OSError), whole_folder(target) as partial:
        partial.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "old"]
