"""Throughput of batches is compared with that of single prompts in the same turn."""

import pytest

from benchmarks import batching
from benchmarks.batching import Sample, Side
from command_line.script import run_script
from self_speculation import programs
from tests.conftest import GREEDY


def sample(turn, side, seconds, tokens=(3, 2)):
    return Sample(turn, side, seconds, [[7] * count for count in tokens])


def test_ratios_pair_sides_of_one_turn():
    """The machine is half as fast in the second turn, and the ratios are the same."""
    single, compiled, many = Side(1, False), Side(1, True), Side(4, False)
    seconds = {single: 4.0, compiled: 2.0, many: 1.0}
    samples = [sample(t, side, s * (1 + t)) for t in range(2) for side, s in seconds.items()]
    samples[-1].outputs[1][-1] = 8
    rows = {Side(row["batch_size"], row["compiled"]): row for row in batching.summarize(samples)}
    assert rows[many]["over_same"] == [4, 4, 4]
    assert rows[many]["over_compiled"] == [2, 2, 2]
    assert rows[single]["over_same"] == [1, 1, 1]
    assert (rows[many]["equal"], rows[many]["prompts"]) == (1, 2)
    assert rows[compiled]["tokens_per_second"] == pytest.approx((5 / 2 + 5 / 4) / 2)


def test_all_sides_decode_the_same_prompts(checkpoint, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "_native", lambda block, *_: programs._Stateless(block))
    flags = ["--model", str(checkpoint), "--dtype", "float64", "--dataset", "custom_jsonl"]
    words = [*flags, "--data_path", str(rows), "--num_samples", "5", *GREEDY]
    more = ["--batch_sizes", "2", "--repeats", "2", "--output", str(tmp_path / "found")]
    assert run_script(batching.main, [*words, *more]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[:2] for line in lines[1:]] == [
        ["| 1", "eager"],
        ["| 2", "eager"],
        ["| 1", "compiled"],
        ["| 2", "compiled"],
    ]
    assert all(line.endswith("| 5/5 |") for line in lines[1:])
    assert {path.name for path in tmp_path.iterdir()} >= {"found.json", "found.md"}
