"""Throughput of several processes is compared with that of one process in the same turn."""

import os

import pytest

from benchmarks import scaling
from command_line.script import run_script
from runs.record import RunRecord


def sample(turn, ranks, speed):
    tokens = {"prompts": 4, "generated_tokens": 60, "seconds": 60 / speed}
    return {"turn": turn, "ranks": ranks, "tokens_per_second": speed, "outputs": "same"} | tokens


def test_ratios_pair_runs_of_one_turn_and_other_outputs_show():
    # The machine is half as fast in the second turn, and the ratio is the same.
    samples = [sample(0, 1, 100), sample(0, 2, 180), sample(1, 2, 90), sample(1, 1, 50)]
    one, two = scaling.summarize(samples)
    assert (one["ratio"], one["lowest_ratio"], one["highest_ratio"]) == (1, 1, 1)
    assert (two["ratio"], two["lowest_ratio"], two["highest_ratio"]) == (1.8, 1.8, 1.8)
    assert (two["tokens_per_second"], two["equal"]) == (135, True)
    samples[1]["outputs"] = "others"
    assert [row["equal"] for row in scaling.summarize(samples)] == [True, False]


def test_runs_take_turns_on_as_many_cores_as_they_have_threads(tmp_path, monkeypatch, capsys):
    order = []

    def measured(count, threads, flags):
        order.append((count, threads, flags))
        record = RunRecord({}, "", {}, {"name": "tiny"}, {}, {}, {})
        record.runtime = {"threads": threads, "dtype": "float64", "device": "none"}
        record.runtime["versions"] = {"torch": "2"}
        record.metrics["throughput"] = sample(0, count, 100.0 * count)
        del record.metrics["throughput"]["turn"], record.metrics["throughput"]["outputs"]
        return record, "same"

    monkeypatch.setattr(scaling, "measure", measured)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    words = ["--processes", "1", "4", "--threads", "2", "--repeats", "2"]
    words += ["--output", str(tmp_path / "found"), "--", "--model", "tiny"]
    assert run_script(scaling.main, words) == 0
    flags = ["--model", "tiny"]
    assert order == [(count, 2, flags) for count in (1, 4, 4, 1)]
    assert "| 4 | 400 | 4.00 [4.00, 4.00] | equal |" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"found.json", "found.md"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes", "1", "9999"], "--processes 9999: needs 9999 cores"),
        (["--model", "tiny"], "--model: no such flag"),
    ],
)
def test_bad_flags_are_one_line(flags, message, capsys):
    assert run_script(scaling.main, flags) == 2
    assert message in capsys.readouterr().err
