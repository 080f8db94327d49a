"""The comparison of early exits on a tiny model, its arithmetic, and sides that fail."""

import json

import pytest

import benchmarks.turns
from benchmarks import early_exit
from benchmarks.peer_engines import GENERATE, OURS, Decoded, Engine, Setting, Side
from benchmarks.turns import Turns
from command_line.script import run_script
from tests.conftest import write


def test_sides_make_the_same_tokens_and_are_tabulated(checkpoint, tmp_path, capsys):
    rows = [{"prompt": f"number {n}", "response": ""} for n in range(3)]
    data = ["--dataset", "custom_jsonl", "--data_path", str(write(tmp_path / "rows.jsonl", rows))]
    grid = ["--exit_layers", "2", "--num_speculations", "3", "--max_steps", "10"]
    output = tmp_path / "results" / "early_exit"
    model = ["--model", str(checkpoint), "--dtype", "float64"]
    assert run_script(early_exit.main, [*model, *data, *grid, "--output", str(output)]) == 0
    results = json.loads(output.with_suffix(".json").read_text())
    sides = {row["side"]: row for row in results["sides"]}
    ours = sides["this project self-speculative, E=2, k=3"]
    assert {row["equal_outputs"] for row in sides.values()} == {3}
    assert sides["this project autoregressive"]["over_own_autoregressive"] == [1, 1, 1]
    assert 0 <= ours["acceptance"] <= 1
    assert sides["transformers self-speculative, E=2, k=3"]["acceptance"] is not None
    table = output.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out
    assert f"| {ours['side']} | {ours['tokens_per_second']:.0f} | " in table


def test_speedups_are_of_whole_calls():
    decoded = [Decoded([1, 2]), Decoded([3])]
    drafted = [Decoded([1, 2], drafted=4, accepted=3), Decoded([4], drafted=2)]
    fast = Side(OURS, "self-speculative", exit_layer=1, drafts=2)
    samples = {
        Side(OURS): list(zip([2.0, 1.0], decoded, strict=True)),
        GENERATE: list(zip([4.0, 2.0], decoded, strict=True)),
        fast: list(zip([1.0, 0.5], drafted, strict=True)),
    }
    plain, generate, row = early_exit.summarize(samples, [2, 1])
    assert plain["tokens_per_second"] == 1
    assert generate["over_own_autoregressive"][0] == 1
    assert row["over_own_autoregressive"][0] == 2
    assert row["over_transformers"][0] == 4
    assert (row["acceptance"], row["equal_outputs"]) == (0.5, 1)


def turns_of(model, engines):
    """Turns over three prompts, by engines that decode one token too few for some of them."""
    setting = Setting(model, None, 0, prompts=[[1], [2], [3]])
    turns = Turns(setting, needed=OURS)
    for side, short in engines.items():
        turns.engines[side] = Engine(
            lambda ids, steps, short=short: Decoded([1] * (steps - (ids in short)))
        )
    return turns


def test_a_side_that_fails_at_a_prompt_is_left_out(model, capsys):
    ours, economize = Side(OURS), Side("economize")
    steps = [2, 2, 2]
    samples = early_exit.measure(turns_of(model, {ours: [], economize: [[2]]}), steps)
    assert list(samples) == [ours]
    assert "economize autoregressive is left out: RuntimeError: made 1 tokens, not 2" in (
        capsys.readouterr().err
    )
    (row,) = early_exit.summarize(samples, steps)
    assert row["over_transformers"] is None
    with pytest.raises(RuntimeError, match="made 1 tokens, not 2"):
        early_exit.measure(turns_of(model, {ours: [[1]]}), steps)


def test_a_peer_that_cannot_begin_is_left_out_but_not_this_project(model, monkeypatch, capsys):
    def none(side, setting):
        raise ModuleNotFoundError(f"no {side.system}")

    monkeypatch.setattr(benchmarks.turns, "build", none)
    turns = turns_of(model, {})
    turns.prepare(Side("economize"), [1], 2)
    assert turns.engines == {}
    assert "economize autoregressive is left out" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        turns.prepare(Side(OURS), [1], 2)


def test_an_exit_layer_beyond_the_model_is_refused(checkpoint, tmp_path, capsys):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "response": ""}])
    data = ["--dataset", "custom_jsonl", "--data_path", str(path)]
    flags = ["--model", str(checkpoint), *data, "--exit_layers", "9"]
    assert run_script(early_exit.main, flags) == 2
    assert "--exit_layers [9]: must be below the model's 6 layers" in capsys.readouterr().err
