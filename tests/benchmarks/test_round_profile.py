"""The profile of a round: its parts add up to the round."""

import pytest
from transformers import LlamaForCausalLM

from benchmarks import round_profile
from command_line.errors import EXIT_USAGE
from command_line.script import run_script
from tests.conftest import LAYERS, tiny_config


def run(*flags):
    return run_script(round_profile.main, list(flags))


@pytest.mark.slow
def test_parts_are_shares_of_a_round(tokenizer, tmp_path, compiled_cache, capsys):
    LlamaForCausalLM(tiny_config(max_position_embeddings=2048)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    flags = ["--exit_layer", "2", "--num_speculations", "3", "--rounds", "5"]
    assert run("--model", str(tmp_path), "--dtype", "float32", *flags) == 0
    out = capsys.readouterr().out
    cells = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    *parts, (_, whole, share) = cells[1:]
    assert share == "100.0%"
    assert sum(float(part[1]) for part in parts) == pytest.approx(float(whole), abs=0.05)
    assert "medians of 5 rounds, attention over 544 positions" in out


def test_an_exit_layer_beyond_the_model_is_refused(checkpoint, capsys):
    assert run("--model", str(checkpoint), "--exit_layer", str(LAYERS)) == EXIT_USAGE
    assert f"--exit_layer {LAYERS}: must be 1 to {LAYERS - 1}" in capsys.readouterr().err
