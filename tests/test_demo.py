"""The runs of `make demo` keep their run ids and their tokens."""

import pytest

import benchmark
from arguments.run import RUN_GROUPS, RunArguments
from command_line.flags import parse
from command_line.script import run_script
from data import get_local_prompts
from files.hashes import tokens_hash
from models import runtime
from runs.definition import define_run
from runs.reader import find_runs, read_record, read_samples
from tests.conftest import ROOT

ROWS = ROOT / "samples" / "top_v2.jsonl"
# The flags of `make demo`.
PARSES = ["--sample", "false", "--model", "layerskip-topv2-5m", "--dataset", "top_v2"]
PARSES += ["--data_path", str(ROWS), "--num_samples", "44", "--max_steps", "96"]
EARLY = ["--generation_strategy", "self_speculative", "--exit_layer", "2"]
EARLY += ["--num_speculations", "20"]
ANGULAR = ["--prune_method", "angular", "--prune_n", "2", "--calibration_samples", "16"]
REMOVED = [9, 10]

RUNS = [
    ([], "a936a64cbbc9", []),
    (EARLY, "c344354254bf", []),
    (ANGULAR, "eb189252add9", REMOVED),
    ([*ANGULAR, *EARLY], "919ea459718b", REMOVED),
]


@pytest.mark.parametrize(("flags", "run_id", "removed"), RUNS)
def test_the_demos_runs_keep_their_ids_plans_and_tokens(
    monkeypatch, tmp_path, flags, run_id, removed
):
    """Both decoders yield the same tokens, and so does the pruned model on the first prompts."""
    monkeypatch.setattr(runtime, "_cpu_name", lambda: "any CPU")  # part of a run id
    words = [*PARSES, *flags, "--output_dir", str(tmp_path)]
    arguments = RunArguments(*parse(words, "", *RUN_GROUPS))
    prompts = get_local_prompts(arguments.data, arguments.prune, arguments.generation.seed)
    assert define_run(arguments, prompts).run_id == run_id
    assert run_script(benchmark.main, [*words, "--num_samples", "4"]) == 0
    (path,) = find_runs(tmp_path)
    assert read_record(path).plan["removed_layers"] == removed
    outputs = [sample.output_ids for sample in read_samples(path)]
    assert tokens_hash(outputs) == "6630fa50d2804963"
