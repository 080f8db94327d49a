"""Timed passes over the same prompts add speed to a run, and change nothing else."""

import dataclasses

import pytest

import benchmark
from command_line.errors import EXIT_INTERRUPTED
from command_line.script import run_script
from runs import measuring, scoring
from runs.metrics import differing_outputs, summarize
from runs.reader import find_runs, read_record, read_samples
from runs.record import Key, samples_path
from tests.conftest import GREEDY, SPECULATIVE, timeless
from tests.ranked import scripts_in_ranks
from tests.runs.test_metrics import sample

FLAGS = [*GREEDY, *SPECULATIVE, "--exit_layer", "4"]
OF_THE_TEXT = {"reference": "", "prediction": None, "scores": {}}


@pytest.fixture
def start(words, tmp_path):
    """Run benchmark.py on three prompts; return exit code, record and samples."""

    def run(*flags, folder="logs"):
        code = run_script(benchmark.main, words(*FLAGS, *flags, folder=folder, prompts=3))
        (path,) = find_runs(tmp_path / folder)
        return code, read_record(path), read_samples(path)

    return run


def told(record, samples):
    """Return what a log says, apart from clocks and the number of processes."""
    values = timeless(record.to_dict())
    del values["runtime"]["ranks"], values["timed"]["ranks"]
    return values, [timeless(vars(one)) | {"ranks": None, "threads": None} for one in samples]


def test_later_passes_add_seconds_alone(start):
    _, once, first = start(folder="once")
    code, record, samples = start("--repeats", "3")
    assert (code, record.run_id) == (0, once.run_id)
    assert [one.key for one in samples] == [(r, i) for r in range(3) for i in range(3)]
    assert [timeless(vars(one)) for one in samples[:3]] == [timeless(vars(one)) for one in first]
    for place, later in enumerate(samples[3:]):
        expected = dataclasses.replace(first[place % 3], repeat=later.repeat, **OF_THE_TEXT)
        assert timeless(vars(later)) == timeless(vars(expected))
        assert later.decode_seconds > 0
    assert record.metrics["predicted_text"] == once.metrics["predicted_text"]
    assert record.metrics["acceptance_length"] == once.metrics["acceptance_length"]
    assert record.metrics["counts"] == once.metrics["counts"] | {"passes": 3}
    assert record.metrics["timed"] == once.metrics["timed"] | {"passes": 3}
    together = record.metrics["throughput"]
    assert together["generated_tokens"] == 3 * record.metrics["counts"]["generated_tokens"]


def test_speed_comes_from_all_passes():
    passes = [sample(index=i, repeat=r, decode=1.0 + r) for r in range(2) for i in range(2)]
    found = summarize(passes)
    assert found["decode_seconds"]["mean"] == pytest.approx(1.5)
    assert found["tokens_per_second"]["token_weighted"] == pytest.approx(4 * 4 / 6)
    assert found["timed"] == {"ranks": 1, "threads": 1, "prompts": 2, "passes": 2}
    assert (found["counts"]["prompts"], found["counts"]["generated_tokens"]) == (2, 10)


def test_a_pass_that_lacks_prompts_is_not_counted_as_done():
    passes = [sample(index=0), sample(index=1), sample(index=0, repeat=1)]
    assert summarize(passes)["counts"]["passes"] == 1
    assert summarize([])["counts"]["passes"] == 0


@pytest.mark.parametrize("place", [Key(0, 1), Key(1, 0), Key(1, 2)])
def test_a_run_that_stopped_in_a_pass_ends_as_an_unbroken_one(start, stop_at, capsys, place):
    unbroken = told(*start("--repeats", "2", folder="unbroken")[1:])
    undo = stop_at(place.example, KeyboardInterrupt, place.repeat)
    code, record, samples = start("--repeats", "2")
    assert (code, record.status) == (EXIT_INTERRUPTED, "interrupted")
    done = 3 * place.repeat + place.example
    assert (len(samples), record.metrics["counts"]["prompts"]) == (done, min(done, 3))
    undo()
    capsys.readouterr()
    code, record, samples = start("--repeats", "2")
    assert f"goes on: {done} of 6 prompts in 2 passes are done" in capsys.readouterr().out
    assert (code, told(record, samples)) == (0, unbroken)
    assert [one.key for one in samples] == sorted(one.key for one in samples)


def test_an_unfinished_run_goes_on_with_the_passes_that_are_asked_for(start, stop_at):
    undo = stop_at(1, KeyboardInterrupt, 1)
    start("--repeats", "3")
    undo()
    code, record, samples = start()
    assert (code, record.status, record.passes, len(samples)) == (0, "complete", 1, 4)
    assert record.metrics["counts"]["prompts"] == 3


def test_repeats_on_a_run_that_was_finished_without_are_refused(start, tmp_path, capsys):
    start()
    before = {path: path.read_bytes() for path in (tmp_path / "logs").iterdir()}
    capsys.readouterr()
    code, record, _ = start("--repeats", "2")
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.endswith(
        f"--repeats 2: run {record.run_id} was finished with 1 pass; use another --output_dir"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "logs").iterdir()} == before


def test_a_run_with_more_passes_than_asked_for_is_complete(start, capsys):
    start("--repeats", "2")
    assert start()[0] == start("--repeats", "2")[0] == 0
    assert capsys.readouterr().out.count("is complete; another --output_dir runs it again") == 2
    assert start("--repeats", "3")[0] == 2
    assert "was finished with 2 passes" in capsys.readouterr().err


@pytest.mark.parametrize("counts", [(2,), (3, 2)])
def test_any_number_of_processes_makes_the_same_passes(
    start, words, tmp_path, monkeypatch, stop_at, counts
):
    *first, last = counts
    flags = words(*FLAGS, "--repeats", "2", prompts=3)
    for count in first:
        undo = stop_at(1, KeyboardInterrupt, 1)
        with monkeypatch.context() as patch:
            codes = scripts_in_ranks(patch, count, benchmark.main, flags)
        undo()
        assert codes == [EXIT_INTERRUPTED] * count
    assert scripts_in_ranks(monkeypatch, last, benchmark.main, flags) == [0] * last
    (path,) = find_runs(tmp_path / "logs")
    names = {path.name, samples_path(path).name}
    assert {found.name for found in (tmp_path / "logs").iterdir()} == names
    _, samples = told(read_record(path), read_samples(path))
    assert samples == told(*start("--repeats", "2", folder="one")[1:])[1]


def test_only_the_first_pass_scores_texts_and_executes_code(start, monkeypatch):
    scored, ordinary = [], scoring.text_scores
    monkeypatch.setattr(scoring, "text_scores", lambda *all: scored.append(all) or ordinary(*all))
    assert start("--repeats", "3")[0] == 0
    assert len(scored) == 3


def test_outputs_that_differ_from_the_first_passs_are_counted_in_a_warning(
    start, monkeypatch, capsys
):
    ordinary = measuring.measure_examples

    def nondeterministic(definition, decoder, keys, encoded):
        made = ordinary(definition, decoder, keys, encoded)
        if (1, 2) in keys:
            made[0].output_ids[-1] += 1
        return made

    monkeypatch.setattr(measuring, "measure_examples", nondeterministic)
    assert start("--repeats", "2")[0] == 0
    warning = "--repeats: 1 output of a later pass differs from the first pass's"
    assert warning in capsys.readouterr().err


def test_outputs_are_compared_with_the_first_pass_of_the_same_prompt():
    samples = [sample(index=i, repeat=r, tokens=3 + i) for r in range(3) for i in range(2)]
    assert differing_outputs(samples) == 0
    samples[3].output_ids = [9]
    samples[0].status = "out_of_memory"  # nothing to compare with
    samples[2].output_ids = [9]
    assert differing_outputs(samples) == 1
