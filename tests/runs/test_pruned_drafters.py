"""Runs whose drafter is a plan: flags, log, run id, resumption, and the check of losslessness."""

import json

import pytest

import benchmark
import correctness
import generate
from arguments.drafting import DraftArguments
from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.pruning import PruneArguments
from command_line.errors import UsageError
from command_line.script import run_script
from pruned_model import draft_bytes_ratio, weight_bytes
from pruning.plan import PrunePlan, drafting_plan
from runs import experiment
from runs.preparation import load_pruned
from runs.reader import find_runs, read_record, read_samples
from tests.conftest import ANGULAR, GREEDY, LAYERS, SPECULATIVE, timeless

DRAFTING = [*SPECULATIVE, "--drafter", "pruned"]
LAST = ["--draft_prune_method", "last", "--draft_prune_n", "3"]
MEASURING = ["--draft_prune_method", "angular", "--draft_prune_n", "3"]
NAMED = ["--draft_prune_method", "layers", "--draft_prune_layers"]
PRUNED = ["--prune_method", "layers", "--prune_layers", "2"]


def ids(samples):
    return [sample.output_ids for sample in samples]


@pytest.mark.parametrize("plan", [[], PRUNED, ANGULAR])
@pytest.mark.parametrize("drafter", [LAST, MEASURING, [*NAMED, "0,5"]])
def test_outputs_are_those_of_plain_decoding(run, plan, drafter):
    _, _, plain = run(*GREEDY, *plan)
    code, record, samples = run(*GREEDY, *plan, *DRAFTING, *drafter)
    assert code == 0
    assert ids(samples) == ids(plain)
    drafting = record.drafter_plan()
    assert drafting.method == drafter[1]
    assert record.exit_layer == {"original": None, "kept": None}
    assert 0 < record.model["draft_bytes_ratio"] < 1
    metrics = record.metrics
    assert metrics["counts"]["drafted_tokens"] > 0
    assert metrics["acceptance_rate"]["token_weighted"] is not None
    assert all(metrics["step_seconds"][name] for name in ("draft", "verify", "full"))
    assert metrics["speedup_over_full_steps"]["predicted"] > 0


def test_the_drafter_is_measured_on_the_unpruned_model(run):
    """Its plan counts the original layers, whatever the model has lost."""
    _, whole, _ = run(*GREEDY, *DRAFTING, *MEASURING, "--calibration_samples", "4")
    _, pruned, _ = run(*GREEDY, *PRUNED, *DRAFTING, *MEASURING, "--calibration_samples", "4")
    assert pruned.draft_plan == whole.draft_plan
    assert pruned.drafter_plan().original_layers == LAYERS
    assert pruned.plan["removed_layers"] == [2]
    _, same, _ = run(*GREEDY, *ANGULAR)
    assert same.plan["scores"]["distances"] == whole.draft_plan["scores"]["distances"]


def test_a_drafter_alone_calibrates_on_the_models_calibration_examples(run):
    _, record, _ = run(*GREEDY, *DRAFTING, *MEASURING, "--calibration_samples", "4")
    _, other, _ = run(*GREEDY, *ANGULAR)
    assert record.data["calibration"] == other.data["calibration"]
    assert record.identity["plan"]["calibration_fingerprint"] is None
    drafter = record.identity["draft_plan"]
    assert drafter["calibration_fingerprint"] == other.identity["plan"]["calibration_fingerprint"]


def test_only_pruned_drafters_change_a_runs_identity(run):
    _, plain, _ = run(*GREEDY, *SPECULATIVE, "--exit_layer", "3")
    assert "draft_plan" not in plain.identity
    assert plain.draft_plan is None
    assert "draft_bytes_ratio" not in plain.model
    assert plain.arguments["draft"]["drafter"] == "early_exit"
    records = [
        run(*GREEDY, *DRAFTING, *drafter)[1]
        for drafter in (LAST, [*LAST[:-1], "2"], [*NAMED, "3,4"], [*NAMED, "2"])
    ]
    assert len({record.run_id for record in [plain, *records]}) == 5


@pytest.mark.parametrize("plan", [[], ANGULAR])
def test_a_resumed_run_keeps_its_drafter(words, stop_at, tmp_path, monkeypatch, plan):
    line = [*GREEDY, *plan, *DRAFTING, *MEASURING, "--calibration_samples", "4"]
    flags, again = words(*line), words(*line, folder="unbroken")
    undo = stop_at(2, KeyboardInterrupt())
    assert run_script(benchmark.main, flags) == 130
    undo()
    monkeypatch.setattr(experiment, "decide_plans", lambda *_: pytest.fail("decided again"))
    assert run_script(benchmark.main, flags) == 0
    monkeypatch.undo()
    assert run_script(benchmark.main, again) == 0
    one, other = (find_runs(tmp_path / folder)[0] for folder in ("logs", "unbroken"))
    assert timeless(json.loads(one.read_text())) == timeless(json.loads(other.read_text()))
    assert ids(read_samples(one)) == ids(read_samples(other))


def test_a_log_with_a_damaged_drafter_is_not_taken_up(words, stop_at, tmp_path, capsys):
    flags = words(*GREEDY, *DRAFTING, *LAST)
    undo = stop_at(2, KeyboardInterrupt())
    assert run_script(benchmark.main, flags) == 130
    undo()
    (path,) = find_runs(tmp_path / "logs")
    values = json.loads(path.read_text())
    values["draft_plan"]["kept_layers"] = [9]
    path.write_text(json.dumps(values))
    assert run_script(benchmark.main, flags) == 2
    assert "cannot be taken up: its plan keeps layers (9,) of 6" in capsys.readouterr().err


BAD = {
    "--drafter pruned": "--drafter pruned: needs --draft_prune_method",
    "--draft_prune_n 2": "--draft_prune_n 2: only with --drafter pruned",
    "--drafter pruned --draft_prune_method last": (
        "--draft_prune_method last: needs --draft_prune_n"
    ),
    "--drafter pruned --draft_prune_method last --draft_prune_n 5": (
        "--draft_prune_n 5: must be 1 to 4; the model has 6 layers"
    ),
    "--drafter pruned --draft_prune_method layers --draft_prune_layers 3,6": (
        "--draft_prune_layers 3,6: names layer 6, and layers are 0 to 5; the model has 6"
    ),
    "--drafter pruned --draft_prune_method layers --draft_prune_layers 0,1,2,3,4,5": (
        "--draft_prune_layers 0,1,2,3,4,5: removes all layers of the model"
    ),
    "--drafter pruned --draft_prune_method random --draft_dropout_threshold 0.99": (
        "--draft_dropout_threshold 0.99: with --prune_seed 42 it keeps no layer of 6"
    ),
    "--drafter pruned --draft_prune_method random --draft_dropout_threshold 0": (
        "--draft_prune_method random: random p=0.0 seed=42 drafts with all layers; nothing would "
        "be gained"
    ),
    "--prune_method layers --prune_layers 2,3 --drafter pruned --draft_prune_method layers "
    "--draft_prune_layers 3": (
        "--draft_prune_method layers: layers [3] drafts with all layers; nothing would be gained"
    ),
    "--prune_method layers --prune_layers 2,3 --drafter pruned --draft_prune_method layers "
    "--draft_prune_layers 0,1,4,5": (
        "--draft_prune_method layers: layers [0-1, 4-5] keeps no layer that layers [2-3] keeps"
    ),
    "--prune_method layers --prune_layers 0 --drafter pruned --draft_prune_method last "
    "--draft_prune_n 2 --draft_prune_patch folded --calibration_samples 8": (
        "--draft_prune_patch folded: last n=2 + folded lacks layer 0, and no MLP before it"
    ),
    "--drafter pruned --draft_prune_method last --draft_prune_n 2 --exit_layer 3": (
        "--exit_layer 3: contradicts --drafter pruned"
    ),
    "--drafter pruned --draft_prune_method last --draft_prune_n 2 --calibration_path x.jsonl": (
        "--calibration_path x.jsonl: only with criteria that measure"
    ),
    "--drafter pruned --draft_prune_method last --draft_prune_n 2 --generation_strategy "
    "autoregressive": "--drafter pruned: needs --generation_strategy self_speculative",
}


@pytest.mark.parametrize("line", BAD)
def test_drafters_that_cannot_be_are_refused_in_one_line(run, capsys, line):
    assert run(*GREEDY, *SPECULATIVE, *line.split())[0] == 2
    (remark,) = capsys.readouterr().err.splitlines()
    assert BAD[line] in remark


def test_drafters_need_no_num_speculations_of_other_strategies(run, capsys):
    flags = ["--generation_strategy", "self_speculative", "--drafter", "pruned", *LAST]
    assert run(*GREEDY, *flags)[0] == 2
    assert "--num_speculations -1: self_speculative needs at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("sampling", [["--sample", "false"], ["--num_draws", "150"]])
@pytest.mark.parametrize("plan", [[], PRUNED])
def test_the_check_finds_pruned_drafters_lossless(words, tmp_path, sampling, plan):
    flags = ["--temperature", "0.4", "--top_k", "4", "--max_steps", "16", *sampling]
    line = words(*flags, *plan, *SPECULATIVE[2:], "--drafter", "pruned", *LAST, prompts=2)
    assert run_script(correctness.main, line) == 0
    (path,) = (tmp_path / "logs").glob("correctness_*.json")
    log = json.loads(path.read_text())
    assert log["summary"]["verdicts"] == {"equal": 2}
    assert log["draft_plan"]["kept_layers"] == [0, 1, 5]


def test_answers_in_a_terminal_come_from_any_drafter(checkpoint, capsys):
    model = ["--model", str(checkpoint), "--dtype", "float64", "--prompt", "hello", *GREEDY]
    answers = []
    for flags in ([], [*DRAFTING, *LAST], [*PRUNED, *DRAFTING, *LAST]):
        assert run_script(generate.main, [*model, *flags]) == 0
        answers.append(capsys.readouterr())
    assert answers[0].out == answers[1].out
    assert "drafter last n=3: 3 of 6 layers draft [0-1, 5]" in answers[1].err
    assert "drafter last n=3: 3 of 5 layers draft [0-1, 5]" in answers[2].err


def test_a_prepared_model_answers_with_and_without_its_drafter(checkpoint):
    drafter = DraftArguments(drafter="pruned", draft_prune_method="last", draft_prune_n=2)
    flags = GenerationArguments("self_speculative", 16, num_speculations=3, sample=False)
    model = ModelArguments(str(checkpoint), dtype="float64")
    prepared = load_pruned(model, PruneArguments(), generation=flags, draft=drafter)
    drafted = prepared.generate("number 1:", flags)
    alone = prepared.generate("number 1:", GenerationArguments(max_steps=16, sample=False))
    assert drafted.output_ids == alone.output_ids
    assert drafted.drafted_tokens > 0
    early = GenerationArguments("self_speculative", 16, 3, 3, sample=False)
    with pytest.raises(UsageError, match="--exit_layer 3: contradicts --drafter pruned"):
        prepared.generate("number 1:", early)


def test_the_bytes_of_a_draft_step_are_those_of_its_layers_norm_and_head(model):
    layers = [model.model.layers[index] for index in (0, 4)]
    embeddings = weight_bytes(model.model.embed_tokens)
    removed = sum(weight_bytes(model.model.layers[index]) for index in (1, 2, 3, 5))
    full = weight_bytes(model) - embeddings
    assert draft_bytes_ratio(model, layers) == (full - removed) / full
    assert draft_bytes_ratio(model, model.model.layers) == 1
    model.lm_head.weight = model.model.embed_tokens.weight
    assert draft_bytes_ratio(model, layers) == (full - removed) / full


@pytest.mark.parametrize("kept", [(0, 1, 4), (0, 2, 3, 5), (5,)])
def test_the_layers_that_both_plans_keep_draft(kept):
    plan = PrunePlan("test", LAYERS, (0, 2, 4, 5))
    drafting = drafting_plan(plan, PrunePlan("test", LAYERS, kept))
    assert drafting.kept_layers == tuple(sorted({0, 2, 4, 5} & set(kept)))


def test_older_logs_have_no_drafter(run, tmp_path):
    run(*GREEDY)
    (path,) = tmp_path.rglob("benchmark_*.json")
    values = json.loads(path.read_text())
    del values["draft_plan"], values["arguments"]["draft"]
    path.write_text(json.dumps(values))
    assert read_record(path).drafter_plan() is None
