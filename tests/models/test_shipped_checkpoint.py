"""layerskip-topv2-5m is small, licensed, lossless in float64, and parses."""

import json
import re

import pytest

import benchmark
from arguments.checkpoint_folders import SHIPPED, stored_template
from command_line.flags import unescaped
from command_line.script import run_script
from runs.reader import find_runs, read_record, read_samples
from tests.conftest import ROOT

NAME = "layerskip-topv2-5m"
SAMPLE = ROOT / "samples" / "top_v2.jsonl"


def decode(folder, *flags):
    data = ["--dataset", "top_v2", "--data_path", str(SAMPLE), "--num_samples", "5"]
    greedy = ["--sample", "false", "--max_steps", "96", "--dtype", "float64"]
    where = ["--model", NAME, "--output_dir", str(folder)]
    assert run_script(benchmark.main, [*where, *data, *greedy, *flags]) == 0
    (path,) = find_runs(folder)
    return read_record(path), read_samples(path)


def test_it_parses_alike_with_both_decoders(tmp_path):
    plain, texts = decode(tmp_path / "plain")
    early = ["--generation_strategy", "self_speculative", "--exit_layer", "3"]
    drafted, other = decode(tmp_path / "drafted", *early, "--num_speculations", "8")
    assert [one.output_ids for one in texts] == [one.output_ids for one in other]
    assert plain.metrics["predicted_text"]["exact_match"] >= 0.5
    assert drafted.metrics["acceptance_rate"]["token_weighted"] >= 0.7
    assert unescaped(stored_template(NAME, "top_v2")) == " {message}\n"


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_small_and_says_where_it_comes_from(name):
    folder = SHIPPED[name]
    assert max(path.stat().st_size for path in folder.iterdir()) < 16 * 2**20
    assert "CC-BY-SA-4.0" in (folder / "LICENSE").read_text()
    card = (folder / "README.md").read_text()
    for path in folder.glob("training*.json"):
        command = json.loads(path.read_text())["command"]
        assert re.sub(r"[\s\\]+", " ", command) in re.sub(r"[\s\\]+", " ", card)


def test_every_sample_is_its_utterance_in_brackets():
    rows = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    assert len({row["utterance"] for row in rows}) == len(rows) == 60
    for row in rows:
        parse = row["semantic_parse"]
        words = re.sub(r"\[(IN|SL):[A-Z_]+ | ?\]", "", parse)
        assert words.replace(" ", "") == row["utterance"].replace(" ", "")
        assert parse.count("[") == parse.count("]")
