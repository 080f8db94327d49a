"""The parts of `benchmarks.decoding` on a tiny model."""

import pytest
import torch

from benchmarks import decoding
from benchmarks.peer_engines import Decoded, Setting
from command_line.errors import EXIT_USAGE
from command_line.script import run_script
from tests.conftest import random_prompt


@pytest.fixture
def setting(model, tokenizer):
    return Setting(model, tokenizer, capacity=44, prompts=[random_prompt(20), random_prompt(8)])


@pytest.mark.parametrize("flags", ["--exit_layer 6", "--exit_layers 6", "--removed 0 5"])
def test_layers_that_the_model_lacks_are_refused(checkpoint, capsys, flags):
    words = ["--exit_layer", "2", "--exit_layers", "2", "--removed", "0", *flags.split()]
    assert run_script(decoding.main, ["--model", str(checkpoint), *words]) == EXIT_USAGE
    assert f"error: {flags.split()[0]} " in capsys.readouterr().err


def test_outputs_too_short_to_draft_are_refused(capsys):
    assert run_script(decoding.main, ["--max_steps", "2"]) == EXIT_USAGE
    assert "--max_steps 2: must be at least 3" in capsys.readouterr().err


def test_all_parts_of_a_row_are_measured(setting):
    flags = {"max_steps": 12, "exit_layer": 4, "exit_layers": [2], "num_speculations": 3}
    arguments = decoding.DecodingArguments(**flags)
    assert decoding.against_transformers(setting, arguments)["equal_outputs"] == "4 of 4"
    greedy, sampled = decoding.self_speculation(setting, arguments)
    assert (greedy["exit_layer"], greedy["sample"]) == (2, False)
    assert (sampled["exit_layer"], sampled["sample"]) == (4, True)
    assert min(greedy["measured_speedup"], greedy["predicted_speedup"]) > 0


def test_the_whole_model_comes_first_in_whatever_order_sizes_are_named(setting):
    arguments = decoding.DecodingArguments(removed=[2, 0])
    whole, smaller = decoding.removal(setting, arguments)["rows"]
    assert (whole["layers_removed"], smaller["layers_removed"]) == (0, 2)
    assert whole["share_of_ideal_memory_saved"] is None
    assert smaller["share_of_ideal_memory_saved"] == pytest.approx(1)


def test_outputs_that_differ_in_half_precision_are_counted(setting, monkeypatch):
    setting.model.to(torch.bfloat16)
    monkeypatch.setattr(decoding, "EQUALITY_PLANS", {"base": {}})
    monkeypatch.setattr(decoding, "_calibration_prompts", lambda *_: [])
    drafts = lambda side, *_: lambda ids: Decoded([side.drafts or 0])  # noqa: E731
    monkeypatch.setattr(decoding, "_decoder", drafts)
    (row,) = decoding.equality(setting, decoding.DecodingArguments(exit_layer=2))
    assert (row["equal"], row["different"]) == (0, 2)
    assert decoding.lossless([row])
