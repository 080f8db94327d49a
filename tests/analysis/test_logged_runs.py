"""Runs of both tools are found; a file that cannot be read is named and counted."""

import json
from contextlib import contextmanager

import numpy
import pytest

from analysis.logged_runs import find_logged_runs
from benchmarks.made_up_runs import MadeUpRun, angular_plan, random_plan
from runs.reader import read_samples
from tests.analysis.test_older_logs import console, four
from tests.conftest import rewritten
from tests.made_up import SPECULATIVE


@contextmanager
def samples_of(path):
    """The lines of the run's samples, which are written back at the end."""
    samples = path.with_suffix(".samples.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    yield lines
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_and_its_examples_are_read(tmp_path):
    path = MadeUpRun(plan=angular_plan(3), **SPECULATIVE).write(tmp_path / "deep" / "er")
    found = find_logged_runs([tmp_path])
    (run,) = found.runs
    assert found.warnings == []
    assert (run.dataset, run.method, run.param) == ("human_eval", "angular", "n=3")
    assert (run.strategy, run.exit_layer, run.num_speculations) == ("self_speculative", 8, 6)
    assert (run.removed_layers, run.original_layers) == (3, 32)
    samples = read_samples(path)
    examples = run.examples
    assert examples.indices.tolist() == list(range(20))
    assert examples.scores["rouge-l"].tolist() == [s.scores["rouge-l"] for s in samples]
    assert examples.decoded_tokens.tolist() == [31.0] * 20
    assert examples.decode_seconds.tolist() == [s.decode_seconds for s in samples]
    assert len(set(examples.outputs.tolist())) == 20
    assert examples.timed.all()
    half = examples.at(numpy.array([1, 3]))
    assert half.indices.tolist() == [1, 3]
    assert half.scores["rouge-l"].tolist() == [s.scores["rouge-l"] for s in samples[1:4:2]]


def test_scores_come_from_the_first_of_several_passes_and_times_from_all(tmp_path):
    path = MadeUpRun(examples=4, repeats=3, **SPECULATIVE).write(tmp_path)
    with samples_of(path) as lines:
        lines[4]["threads"] = 7  # the second pass of the first prompt
        del lines[-1]
    (run,) = find_logged_runs([tmp_path]).runs
    examples, samples = run.examples, read_samples(path)
    assert examples.scores["rouge-l"].tolist() == [s.scores["rouge-l"] for s in samples[:4]]
    seconds = numpy.full(12, numpy.nan)
    seconds[:11] = [s.decode_seconds for s in samples]
    seconds[4] = numpy.nan
    expected = seconds.reshape(3, 4).T
    numpy.testing.assert_array_equal(examples.seconds_by_pass, expected)
    numpy.testing.assert_array_equal(examples.tokens_by_pass, expected * 0 + 31)
    assert examples.decode_seconds == pytest.approx(numpy.nansum(expected, axis=1))
    assert examples.decoded_tokens.tolist() == [62, 93, 93, 62]
    assert examples.timed.all()
    assert examples.at(numpy.array([1, 3])).seconds_by_pass.shape == (2, 3)


def test_the_examples_of_several_passes_give_the_speed_that_the_run_logged(tmp_path):
    MadeUpRun(examples=4, repeats=3).write(tmp_path)
    (run,) = find_logged_runs([tmp_path]).runs
    speed = run.examples.decoded_tokens.sum() / run.examples.decode_seconds.sum()
    assert speed == pytest.approx(run.speed)
    assert run.num_samples == 4


def test_both_tools_logs_stand_side_by_side(tmp_path):
    MadeUpRun(plan=random_plan(0.1, 7)).write(tmp_path)
    (tmp_path / "benchmark_20250427_222420.json").write_text(four())
    console(tmp_path, "xsum_results_random_t0.1")
    found = find_logged_runs([tmp_path])
    assert found.warnings == []
    assert {(run.is_older, run.dataset, run.param) for run in found.runs} == {
        (False, "human_eval", "p=0.1 seed=7"),
        (True, "cnn_dm_summarization", "n=2"),
        (True, "xsum_summarization", "p=0.1"),
    }


def test_a_console_and_the_json_file_of_its_run_count_once(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "benchmark_20250427_222420.json").write_text(four())
    console(tmp_path, "cnn_dm_summarization_results_angular_n2")
    console(tmp_path, "cnn_dm_summarization_results_angular_n3", total_time={"mean": 1.0})
    found = find_logged_runs([tmp_path])
    assert {(run.path.name, run.param) for run in found.runs} == {
        ("benchmark_20250427_222420.json", "n=2"),
        ("cnn_dm_summarization_results_angular_n3", "n=3"),
    }
    (line,) = found.warnings
    assert "is the console of benchmark_20250427_222420.json, counted once" in line


def test_an_older_log_that_names_no_model_is_no_console(tmp_path):
    (tmp_path / "benchmark_20250427_222420.json").write_text(
        four().replace('"facebook/layerskip-llama2-7B"', "null")
    )
    console(tmp_path, "cnn_dm_summarization_results_angular_n2")
    found = find_logged_runs([tmp_path])
    assert [run.path.name for run in found.runs] == ["benchmark_20250427_222420.json"]
    assert "is the console of" in found.warnings[0]


def test_folders_that_overlap_or_link_in_a_circle_count_each_run_once(tmp_path):
    MadeUpRun().write(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "benchmark_loop.json").symlink_to(tmp_path / "benchmark_loop.json")
    folders = [tmp_path, tmp_path / "a", tmp_path / "link"]
    assert len(find_logged_runs(folders).runs) == 1


@pytest.mark.parametrize(("original", "copy"), [("a", "b"), ("b", "a")])
def test_the_copy_with_samples_counts(tmp_path, original, copy):
    path = MadeUpRun().write(tmp_path / original)
    (tmp_path / copy).mkdir()
    (tmp_path / copy / path.name).write_text(path.read_text())
    found = find_logged_runs([tmp_path])
    assert [run.path for run in found.runs] == [path]
    assert found.runs[0].examples is not None
    assert f"is a copy of {path}, counted once" in found.warnings[-1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"schema_version": 1, "iden', "is cut off, or no JSON"),
        (json.dumps({"schema_version": 2}), "has schema version 2, not 1; a newer release wrote"),
        (
            json.dumps({"predicted_text": {}}),
            "is no log of this project nor of the known older format",
        ),
        (json.dumps({"schema_version": 1}), "holds no RunRecord (missing 7 required"),
        ("", "neither one object nor the four of an older log"),
        ("\udcff", "is not UTF-8 text (byte 0)"),
    ],
)
def test_a_broken_file_is_named_and_the_others_are_read(tmp_path, text, told):
    MadeUpRun().write(tmp_path)
    broken = tmp_path / "benchmark_1_broken.json"
    broken.write_bytes(text.encode(errors="surrogateescape"))
    found = find_logged_runs([tmp_path])
    assert (len(found.runs), found.unreadable) == (1, 1)
    (line,) = found.warnings
    assert line.startswith(f"{broken} cannot be read: ")
    assert told in line
    assert "\n" not in line


@pytest.mark.parametrize("part", ["identity", "plan", "model", "runtime", "data"])
def test_a_run_that_lacks_a_part_is_named(tmp_path, part):
    with rewritten(MadeUpRun().write(tmp_path)) as log:
        log[part] = {}
    found = find_logged_runs([tmp_path])
    assert (found.runs, found.unreadable) == ([], 1)
    assert "cannot be read: it lacks '" in found.warnings[0]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("running", "is in progress or was killed, 20 of 20 prompts done"),
        ("interrupted", "was interrupted, 20 of 20 prompts done"),
        ("failed", "failed, 20 of 20 prompts done"),
    ],
)
def test_an_unfinished_run_is_left_out_and_named(tmp_path, status, told):
    MadeUpRun().write(tmp_path, status)
    found = find_logged_runs([tmp_path])
    assert (found.runs, found.unfinished, found.unreadable) == ([], 1, 0)
    assert f" {told}, and is left out" in found.warnings[0]


@pytest.mark.parametrize(
    ("cut", "told"),
    [
        (lambda text: text[:-100], "holds 19 of 20 prompts"),
        (
            lambda text: text.replace('"index": 3', '"index": "3"'),
            "its samples are damaged (line 4 of",
        ),
        (lambda text: "".join(text.splitlines(True)[:7]), "holds 7 of 20 prompts"),
        (lambda text: "", "holds 0 of 20 prompts"),
    ],
)
def test_a_run_without_all_its_samples_is_compared_without_intervals(tmp_path, cut, told):
    path = MadeUpRun().write(tmp_path).with_suffix(".samples.jsonl")
    path.write_text(cut(path.read_text()))
    found = find_logged_runs([tmp_path])
    assert found.runs[0].examples is None
    assert told in found.warnings[0]
    assert "is compared without intervals" in found.warnings[0]


def test_prompts_timed_with_other_threads_are_marked_and_skipped_ones_left_out(tmp_path):
    path = MadeUpRun().write(tmp_path)
    with samples_of(path) as lines:
        lines[0]["threads"] = 2
        lines[3] |= {"status": "prompt_too_long", "scores": {}, "decode_seconds": None}
    (run,) = find_logged_runs([tmp_path]).runs
    assert run.examples.indices.tolist() == [0, 1, 2, *range(4, 20)]
    assert run.examples.timed.tolist() == [False] + [True] * 18


def test_a_run_that_lacked_memory_for_prompts_is_named(tmp_path):
    with rewritten(MadeUpRun().write(tmp_path)) as log:
        log["counts"]["failed_prompts"] = 3
    found = find_logged_runs([tmp_path])
    assert len(found.runs) == 1
    (line,) = found.warnings
    assert "lacks 3 of 20 prompts, for which memory ran out; its means leave them out" in line


def test_logs_of_the_first_release_are_read(tmp_path):
    """They have neither model_args nor the prompts that were timed."""
    with rewritten(MadeUpRun().write(tmp_path)) as log:
        del log["identity"]["model_args"], log["timed"], log["resumed"]
    (run,) = find_logged_runs([tmp_path]).runs
    assert (run.conditions["model_args"], run.conditions["threads"]) == ({}, 1)


def test_a_run_resumed_with_another_torch_has_both_versions(tmp_path):
    with rewritten(MadeUpRun().write(tmp_path)) as log:
        log["resumed"] = [{"runtime": {"versions": {"torch": "9.0", "transformers": "5.23.0"}}}]
    (run,) = find_logged_runs([tmp_path]).runs
    assert run.conditions["torch"] == "2.13.0, then 9.0"
    assert run.conditions["transformers"] == "5.23.0"


def test_scores_of_other_tokenizers_are_not_compared_unless_they_are_equal(tmp_path):
    """Earlier releases, which named none, scored ASCII texts as later ones do."""
    names = {"rouge_tokenizer": "unicode-words", "bleu_tokenizer": "zh"}
    runs = []
    for number, scoring in enumerate((None, {"ascii_words": True}, {"ascii_words": False})):
        with rewritten(MadeUpRun().write(tmp_path / str(number))) as log:
            log["data"] |= {"scoring": names | scoring} if scoring else {}
        runs += find_logged_runs([tmp_path / str(number)]).runs
    older, english, chinese = runs
    assert older.condition_key == english.condition_key != chinese.condition_key
    assert chinese.conditions["text scores"] == "unicode-words, zh"


def test_a_torn_line_is_no_finished_prompt(tmp_path):
    samples = MadeUpRun(examples=5).write(tmp_path, "running").with_suffix(".samples.jsonl")
    samples.write_text("".join(samples.read_text().splitlines(True)[:2]) + '{"index": 2, "ex')
    assert "2 of 5 prompts done" in find_logged_runs([tmp_path]).warnings[0]


def test_many_logs_of_another_fork_are_one_line(tmp_path):
    for number in range(29):
        (tmp_path / f"benchmark_{number:02}.json").write_text('{"predicted_text": {}}')
    MadeUpRun().write(tmp_path / "own")
    found = find_logged_runs([tmp_path])
    assert (len(found.runs), found.unreadable) == (1, 29)
    (line,) = found.warnings
    assert line.startswith("29 files are no logs of this project nor of the known older format: ")
    assert "benchmark_00.json (it has no schema_version), benchmark_01.json" in line
    assert line.endswith("and 26 more")
