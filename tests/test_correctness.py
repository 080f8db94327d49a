"""correctness.py: verdicts, log and exit code, on a sound decoder and on broken ones."""

import json

import pytest
import torch

import correctness
from command_line.script import run_script
from runs import lossless
from runs.reader import find_runs
from self_speculation import compiled_blocks, distribution, self_speculation_generator
from self_speculation.llama_model_utils import CachedLlama
from tests.conftest import VOCABULARY

SPECULATIVE = ["--exit_layer", "3", "--num_speculations", "3", "--max_steps", "16"]


@pytest.fixture
def check(checkpoint, rows, tmp_path):
    """Runs correctness.py; returns exit code and log."""

    def start(*flags, samples="3"):
        folder = tmp_path / f"logs{len(list(tmp_path.iterdir()))}"
        code = run_script(
            correctness.main,
            ["--model", str(checkpoint), "--dtype", "float64", "--dataset", "custom_jsonl"]
            + ["--data_path", str(rows), "--output_dir", str(folder), "--num_samples", samples]
            + [*SPECULATIVE, *flags],
        )
        logs = list(folder.glob("correctness_*.json")) if folder.exists() else []
        return code, json.loads(logs[0].read_text()) if logs else None

    return start


@pytest.fixture
def broken(monkeypatch):
    """A verifier that accepts whatever was drafted."""
    monkeypatch.setattr(
        self_speculation_generator, "agreeing", lambda drafted, chosen: len(drafted)
    )
    monkeypatch.setattr(
        self_speculation_generator,
        "accept",
        lambda tokens, probs, target, generator: torch.tensor([len(tokens), target[-1].argmax()]),
    )


@pytest.mark.parametrize("plan", [[], ["--prune_method", "angular", "--prune_n", "2"]])
def test_equal_outputs_are_called_equal(check, plan, capsys):
    code, log = check(*plan)
    assert code == 0
    assert log["status"] == "complete"
    assert [one["verdict"] for one in log["examples"]] == ["equal"] * 3
    assert log["summary"] == {
        "verdicts": {"equal": 3},
        "tested": 3,
        "tokens": 48,
        "match_rate": 1.0,
        "tokens_before_difference": 1.0,
        "median_logit_gap": None,
        "largest_logit_gap": None,
        "lossless": True,
    }
    assert log["plan"]["method"] == (plan[1] if plan else "base")
    assert "complete: 3 prompts: 3 equal" in capsys.readouterr().out


def test_wrong_outputs_are_shown_and_fail(check, broken, capsys):
    code, log = check()
    assert code == 1
    assert log["summary"]["lossless"] is False
    out = capsys.readouterr().out
    wrong = [one for one in log["examples"] if one["verdict"] == "wrong"]
    assert wrong
    for one in wrong:
        parted = one["difference"]
        assert parted["logit_gap"] > 1e-3
        assert parted["autoregressive"] != parted["self_speculative"]
        assert f"wrong: {one['example_id']}, token {parted['position'] + 1}, logit gap" in out
    assert "self-speculation changes what this model says" in out


@pytest.mark.parametrize("rule", [[], ["--sample", "true", "--num_draws", "100"]])
def test_compiled_decoding_is_compared_with_uncompiled(check, monkeypatch, rule):
    def skip_layers(block, inputs, config):
        skips = isinstance(block, compiled_blocks.LayerBlock)
        return lambda _, given: given[0].clone() if skips else block(*given)

    monkeypatch.setattr(compiled_blocks, "program_of", skip_layers)
    code, log = check("--compile", "true", *rule)
    assert code == 1
    assert log["summary"]["verdicts"]["wrong"]


def test_in_half_precision_differences_prove_nothing(check, broken):
    code, log = check("--dtype", "bfloat16")
    assert code == 0
    assert log["summary"]["lossless"] is None
    assert log["summary"]["verdicts"]["different"] >= 1
    assert log["summary"]["match_rate"] < 1
    assert 0 < log["summary"]["tokens_before_difference"] < 1
    assert log["summary"]["largest_logit_gap"] >= log["summary"]["median_logit_gap"] > 0


def test_more_ties_than_rounding_explains_fail(check, broken, monkeypatch):
    monkeypatch.setattr(lossless, "verdict", lambda found, dtype: "tie" if found else "equal")
    code, log = check()
    assert log["summary"]["verdicts"]["tie"] > 1
    assert code == 1


def test_an_output_that_ends_early_has_no_gap(check, monkeypatch):
    ordinary = lossless.DecoderPair._generator

    def shorter(self, flags, *rest):
        made = ordinary(self, flags, *rest)
        if flags.generation_strategy == "autoregressive":
            made.strategy.stop_rule.reason = lambda ids: "stop_token" if len(ids) == 5 else None
        return made

    monkeypatch.setattr(lossless.DecoderPair, "_generator", shorter)
    code, log = check(samples="1")
    assert code == 1
    assert log["examples"][0]["difference"]["logit_gap"] is None
    assert log["examples"][0]["difference"]["position"] == 5


SAMPLED = ["--sample", "true", "--top_k", "2", "--temperature", "0.5", "--num_draws", "100"]


def test_correct_draws_are_called_equal(check, capsys):
    code, log = check(*SAMPLED, samples="2")
    assert code == 0
    assert log["summary"]["verdicts"] == {"equal": 2}
    assert log["summary"]["draws"] == 200
    assert log["summary"]["level"] == pytest.approx(0.001 / 2)
    for one in log["examples"]:
        assert one["sequences"] > 3
        assert one["chi_square"]["p_value"] > 0.001 / 2
    assert "sampling  200 draws; smallest p-value" in capsys.readouterr().out


def test_wrong_draws_fail(check, broken, capsys):
    code, log = check(*SAMPLED, samples="1")
    assert code == 1
    assert log["summary"]["verdicts"] == {"wrong": 1}
    assert "chi-square" in capsys.readouterr().out


def test_a_sequence_that_cannot_be_is_reported(check, monkeypatch, capsys):
    """Half of the draws are another sequence than the only one that can be."""
    ordinary, made = distribution._draw, []

    def draw(strategy, prompt_ids, first, limit):
        made.append(ordinary(strategy, prompt_ids, first, limit))
        return (0, 0, 0) if len(made) % 2 else made[-1]

    monkeypatch.setattr(distribution, "_draw", draw)
    code, log = check(*SAMPLED, "--top_k", "1", samples="1")
    assert code == 1
    found = log["examples"][0]["chi_square"]
    assert (found["degrees_of_freedom"], found["rare_draws"]) == (0, 50)
    assert "50 rare draws where 0.0001 are expected, p = " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--top_k", "1"], "which leaves no choice to test"),
        (["--top_k", "0", "--temperature", "9"], "no sequence is likely enough"),
        (["--stop_token_ids", *map(str, range(VOCABULARY))], "whose first token ends the output"),
    ],
)
def test_draws_without_choice_are_untested(check, flags, reason, capsys):
    code, log = check(*SAMPLED, *flags, samples="1")
    assert code == 3
    assert log["summary"]["verdicts"] == {"untested": 1}
    assert log["summary"]["lossless"] is None
    out = capsys.readouterr().out
    assert reason in out
    assert "no prompt put self-speculation to the test" in out


def test_outputs_without_a_draft_prove_nothing(check, capsys):
    code, log = check("--max_steps", "2")
    assert code == 3
    assert [one["drafted"] for one in log["examples"]] == [0, 0, 0]
    assert log["summary"]["verdicts"] == {"equal": 3}
    assert log["summary"]["lossless"] is None
    assert "no prompt put self-speculation to the test" in capsys.readouterr().out


def test_prompts_beyond_the_positions_are_named(check, rows):
    rows.write_text(
        json.dumps({"prompt": "x" * 300, "response": ""})
        + "\n"
        + json.dumps({"prompt": "x", "response": ""})
    )
    for flags in ([], SAMPLED):
        code, log = check(*flags, "--random_shuffle", "false", samples="2")
        assert code == 0
        assert [one["verdict"] for one in log["examples"]] == ["prompt_too_long", "equal"]
    rows.write_text(json.dumps({"prompt": "x" * 254, "response": ""}))
    code, log = check(*SAMPLED, samples="1")
    assert code == 3
    assert log["summary"]["verdicts"] == {"prompt_too_long": 1}


@pytest.fixture
def ending(monkeypatch):
    """Has the 40th verification of a run raise an error."""

    def arrange(error):
        calls = 0
        ordinary = CachedLlama.verify

        def stop(self, *arguments, **options):
            nonlocal calls
            calls += 1
            if calls == 40:
                raise error
            return ordinary(self, *arguments, **options)

        monkeypatch.setattr(CachedLlama, "verify", stop)

    return arrange


def test_an_interruption_keeps_what_was_found(check, ending):
    ending(KeyboardInterrupt)
    code, log = check(samples="12")
    assert code == 130
    assert log["status"] == "interrupted"
    assert 1 <= len(log["examples"]) < 12


def test_an_interruption_does_not_hide_what_is_wrong(check, broken, ending):
    ending(KeyboardInterrupt)
    code, log = check(samples="12")
    assert code == 1
    assert log["status"] == "interrupted"
    assert log["summary"]["verdicts"]["wrong"] >= 1


def test_a_failure_keeps_what_was_found(check, ending, tmp_path):
    ending(RuntimeError("the device is gone"))
    with pytest.raises(RuntimeError, match="the device is gone"):
        check(samples="12")
    (path,) = tmp_path.glob("*/correctness_*.json")
    log = json.loads(path.read_text())
    assert log["status"] == "failed"
    assert log["ended"]
    assert log["summary"]["verdicts"]["equal"] == len(log["examples"]) >= 1


def verdicts(folder):
    """The verdicts in the lines of a folder's only log."""
    (path,) = folder.glob("*.samples.jsonl")
    return [json.loads(line)["result"]["verdict"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", [[], SAMPLED])
def test_a_check_goes_on_where_it_stopped(check, kind, tmp_path, monkeypatch, capsys):
    compared, ordinary = [], lossless.DecoderPair._compared

    def watched(pair, item):
        compared.append(item.example.example_id)
        if len(compared) == 2:
            assert len(verdicts(tmp_path / "same")) == 1  # on disk as soon as they are known
            raise KeyboardInterrupt
        return ordinary(pair, item)

    monkeypatch.setattr(lossless.DecoderPair, "_compared", watched)
    flags = [*kind, "--output_dir", str(tmp_path / "same")]
    said = []
    for count in (2, 3, 3):
        check(*flags, samples="2")
        assert len(compared) == count
        said.append(capsys.readouterr().out)
    assert "goes on: 1 of 2 prompts are done" in said[1]
    assert "is complete; another --output_dir runs it again" in said[2]
    (path,) = (tmp_path / "same").glob("correctness_*.json")
    log = json.loads(path.read_text())
    assert (log["status"], len(log["resumed"])) == ("complete", 1)
    _, unbroken = check(*kind, samples="2")
    assert (log["summary"], log["examples"]) == (unbroken["summary"], unbroken["examples"])
    assert log["run_id"] == unbroken["run_id"] in path.name
    assert find_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "status"), [(SAMPLED, "complete"), ([], "interrupted")], ids=["draws", "left"]
)
def test_a_check_of_an_earlier_release_is_not_taken_for_this_one(
    check, tmp_path, capsys, kind, status
):
    flags = [*kind, "--output_dir", str(tmp_path / "same")]
    check(*flags, samples="1")
    (path,) = (tmp_path / "same").glob("correctness_*.json")
    log = json.loads(path.read_text())
    del log["arguments"]["correctness"]
    path.write_text(json.dumps(log | {"status": status}))
    before = path.read_bytes()
    code, _ = check(*flags, samples="1")
    assert (code, path.read_bytes()) == (2, before)
    assert "of an earlier release" in capsys.readouterr().err


def test_a_check_does_not_go_on_with_other_draws(check, tmp_path, capsys):
    flags = [*SAMPLED, "--top_k", "1", "--output_dir", str(tmp_path / "same")]
    check(*flags, samples="1")
    assert check(*flags, "--num_draws", "200", samples="1")[0] == 2
    assert "--num_draws 200: check " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--generation_strategy", "autoregressive"], "only self_speculative can be checked"),
        (["--execute_code", "true", "--dataset", "human_eval"], "here tokens are compared"),
        (["--num_draws", "5"], "--num_draws 5: must be at least 100"),
        (["--exit_layer", "-1"], "--exit_layer -1: "),
        (["--exit_layer", "6"], "--exit_layer 6: must be 1 to 5"),
    ],
)
def test_bad_flags_are_one_line(check, flags, message, capsys):
    assert check(*flags) == (2, None)
    assert message in capsys.readouterr().err
