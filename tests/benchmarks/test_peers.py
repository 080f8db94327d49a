"""The comparison with peers: its arithmetic, its turns, its adapters, and sides that fail."""

import json
import sys

import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks import peers
from benchmarks.bandwidth import READS, Bandwidth, step_bytes
from benchmarks.order import in_turn
from benchmarks.peer_engines import GENERATE, OURS, Decoded, Engine, Setting, Side, build
from benchmarks.peers import Comparison, PeersArguments, sides_of
from benchmarks.peers_report import _sides, table
from benchmarks.peers_summary import floors_of_turns, paired_ratio, summarize
from benchmarks.turns import Turns
from command_line.errors import EXIT_USAGE
from command_line.script import run_script
from pruned_model import weight_bytes
from runs.speed_metrics import predicted_speedup
from tests.conftest import END, random_prompt, tiny_config

STEPS = 12
PLAIN, DRAFTED = Side(OURS), Side(OURS, "self-speculative", False, 4, 3)
THEIR_DRAFTED = Side("transformers", "self-speculative", False, 4, 3)
THEIR_LOOKUP = Side("transformers", "prompt lookup", drafts=4)


@pytest.fixture
def setting(model, tokenizer):
    prompts = [random_prompt(20), random_prompt(8, seed=1) * 4]
    return Setting.endless(model, tokenizer, capacity=32 + STEPS, prompts=prompts)


def sample(side, turn, prompt, seconds, **changes):
    values = {"side": side.name, "removed": side.removed, "turn": turn, "prompt": prompt}
    values |= {"seconds": seconds, "decode_seconds": seconds, "tokens": 11, "steps": {}}
    values |= {"later_seconds": 0.8 * seconds}
    values |= {"rounds": None, "drafted": None, "accepted": None, "verdict": "equal"}
    return values | {"bytes_per_second": 1e9} | changes


def measured(samples, **changes):
    return {
        "samples": samples,
        "sides": [as_row(side) for side in (PLAIN, DRAFTED, GENERATE)],
        "left_out": {},
        "step_bytes": 10**8,
        "bandwidth": {"best_gigabytes_per_second": 2.0},
    } | changes


def as_row(side):
    return vars(side) | {"name": side.name}


def test_every_turn_holds_every_side_and_none_keeps_its_place():
    orders = [in_turn(list(range(5)), turn, 5) for turn in range(5)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert {order[0] for order in orders} != {0}
    assert len({order[order.index(2) - 1] for order in orders}) > 1


def test_two_sides_in_two_turns_are_each_first_once():
    assert [in_turn(["a", "b"], turn, 2) for turn in range(2)] == [["a", "b"], ["b", "a"]]


def test_ratios_pair_turns_and_take_medians_of_repeats_and_means_of_prompts():
    plain = [sample(PLAIN, turn, turn % 2, 8.0 * (turn + 1)) for turn in range(6)]
    seconds = [4.0, 4.0, 12.0, 8.0, 1.0, 12.0]  # ratios 2 4 | 2 4 | 40 4
    drafted = [sample(DRAFTED, turn, turn % 2, took) for turn, took in enumerate(seconds)]
    found = paired_ratio(plain, drafted, "seconds")
    assert found["value"] == pytest.approx((2 + 4) / 2)
    assert found["median"] == pytest.approx(4)
    assert found["low"] <= found["value"] <= found["high"]


def test_a_turn_without_its_pair_makes_no_ratio():
    plain = [sample(PLAIN, turn, 0, 1.0) for turn in range(2)]
    assert paired_ratio(plain, plain[:1], "seconds") is None
    unknown = [sample(PLAIN, turn, 0, 1.0, decode_seconds=None) for turn in range(2)]
    assert paired_ratio(unknown, plain, "decode_seconds") is None


def test_a_step_reads_all_weights_except_a_table_that_only_embeds(model):
    table_bytes = model.get_input_embeddings().weight.numel() * 8
    assert step_bytes(model) == weight_bytes(model) - table_bytes
    tied = LlamaForCausalLM(tiny_config(tie_word_embeddings=True))
    assert step_bytes(tied) == weight_bytes(tied)


def test_the_floor_is_bandwidth_over_bytes_of_a_step():
    readings = [(0, 1e9), (0, 3e9), (0, 2e9), (1, 5e9)]
    samples = [sample(PLAIN, turn, 0, 1.0, bytes_per_second=each) for turn, each in readings]
    assert floors_of_turns(samples, 10**8) == {0: 20, 1: 50}


def test_bandwidth_is_measured_by_the_fastest_operation():
    bandwidth = Bandwidth(2**20, torch.device("cpu"))
    assert bandwidth.size_bytes == 2**20
    assert bandwidth.measure() > 0
    facts = bandwidth.facts()
    by_operation = facts["gigabytes_per_second_by_operation"]
    assert by_operation.keys() == READS.keys()
    assert facts["operation"] == max(by_operation, key=by_operation.get)
    assert facts["best_gigabytes_per_second"] >= facts["median_gigabytes_per_second"]


def test_a_share_of_the_floor_pairs_measurements_of_one_turn():
    # The machine is half as fast in the second turn, and the share is the same.
    samples = [
        sample(PLAIN, 0, 0, 2.0, bytes_per_second=1e9),
        sample(PLAIN, 1, 1, 4.0, bytes_per_second=0.5e9),
    ]
    (row,) = summarize(measured(samples))["sides"]
    assert row["share_of_floor"] == pytest.approx(10 / 1.6 / 10)
    assert row["tokens_per_second"]["median"] == pytest.approx((11 / 2 + 11 / 4) / 2)
    assert row["decoding_tokens_per_second"]["median"] == pytest.approx((10 / 1.6 + 10 / 3.2) / 2)
    assert row["over_generate"] is None


def test_the_predicted_speed_up_is_beside_the_measured():
    full = {"full": {"calls": 10, "seconds": 10.0}}
    drafting = {"draft": {"calls": 8, "seconds": 4.0}, "verify": {"calls": 4, "seconds": 6.0}}
    drafts = {"rounds": 4, "drafted": 8, "accepted": 6, "steps": drafting}
    samples = [
        sample(PLAIN, 0, 0, 10.0, steps=full),
        sample(DRAFTED, 0, 0, 10.0, **drafts),
        sample(GENERATE, 0, 0, 20.0),
    ]
    rows = {row["name"]: row for row in summarize(measured(samples))["sides"]}
    law = rows[DRAFTED.name]["law"]
    assert (law["k"], law["r"], law["c"], law["v"]) == (2, 0.75, 0.5, 1.5)
    assert law["predicted"] == predicted_speedup(2, 0.75, 0.5, 1.5)
    assert law["measured"]["value"] == 1
    assert law["measured_over_predicted"] == 1
    assert rows[PLAIN.name]["law"] is None
    assert rows[PLAIN.name]["over_generate"]["value"] == 2
    assert rows[PLAIN.name]["decoding_over_generate"]["value"] == 2
    assert rows[DRAFTED.name]["decoding_over_own"]["value"] == 1


def test_what_holds_a_peer_back_is_said_where_it_took_part():
    theirs = Side("llama.cpp")
    samples = [sample(side, 0, 0, 1.0) for side in (PLAIN, theirs)]
    bandwidth = dict.fromkeys(("best_gigabytes_per_second", "median_gigabytes_per_second"), 2.0)
    bandwidth |= {"operation": "sum", "buffer_bytes": 10**8}
    for sides in ([PLAIN, theirs], [PLAIN]):
        found = measured(samples, sides=list(map(as_row, sides)), bandwidth=bandwidth)
        found["summary"] = summarize(found)
        assert ("AVX2" in "".join(_sides(found))) == (theirs in sides)


def test_removed_layers_are_compared_with_their_bytes():
    shorter = Side(OURS, removed=3)
    samples = [sample(PLAIN, 0, 0, 10.0), sample(shorter, 0, 0, 6.0)]
    sides = [as_row(PLAIN), as_row(shorter)]
    of_bytes = {"step_bytes_without": {"3": 5 * 10**7}}
    summary = summarize(measured(samples, sides=sides, **of_bytes))
    (row,) = summary["removal"]
    assert row["ideal"] == 0.5
    assert row["time_of_whole"]["value"] == pytest.approx(0.6)
    assert row["measured_over_ideal"] == pytest.approx(1.2)
    assert [each["name"] for each in summary["sides"]] == [PLAIN.name]


@pytest.mark.parametrize("side", [DRAFTED, GENERATE, THEIR_DRAFTED, THEIR_LOOKUP])
def test_every_side_decodes_what_plain_decoding_does(setting, side):
    for ids in setting.prompts:
        expected = build(PLAIN, setting).decode(ids, STEPS)
        made = build(side, setting).decode(ids, STEPS)
        assert made.output_ids == expected.output_ids
        assert len(made.output_ids) == STEPS
        if side.drafts:
            assert made.accepted <= made.drafted <= made.rounds * side.drafts


def test_early_exit_of_transformers_drafts_as_many_as_asked(setting):
    for drafts in (1, 2, 5):
        side = Side("transformers", "self-speculative", False, 4, drafts)
        made = build(side, setting).decode(setting.prompts[0], STEPS)
        ours = build(Side(OURS, "self-speculative", False, 4, drafts), setting)
        # Only rounds at an output's end may draft fewer.
        assert made.drafted > (made.rounds - drafts) * drafts
        assert made.output_ids == ours.decode(setting.prompts[0], STEPS).output_ids


def test_a_call_that_fails_while_it_drafts_leaves_the_model_whole(setting):
    model, layers = setting.model, setting.model.config.num_hidden_layers
    engine = build(THEIR_DRAFTED, setting)

    def fail(*_):
        raise RuntimeError("out of luck")

    handle = model.model.layers[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        engine.decode(setting.prompts[0], STEPS)
    handle.remove()
    assert model.config.num_hidden_layers == layers
    assert model.generation_config.num_assistant_tokens is None
    assert not model._forward_pre_hooks


def test_no_side_stops_at_an_end_token(setting, tokenizer):
    ids = setting.prompts[0]
    expected = build(PLAIN, setting).decode(ids, STEPS).output_ids
    setting.model.generation_config.eos_token_id = expected[2]
    setting = Setting.endless(setting.model, tokenizer, setting.capacity, setting.prompts)
    for side in (PLAIN, DRAFTED, GENERATE, THEIR_DRAFTED, THEIR_LOOKUP):
        assert build(side, setting).decode(ids, STEPS).output_ids == expected
    assert setting.tokenizer.eos_token_id is None
    assert tokenizer.eos_token_id == END


def test_removed_layers_come_off_a_copy_that_shares_the_weights(setting):
    model = setting.model.float()
    layers = model.config.num_hidden_layers
    held = {parameter.data_ptr() for parameter in model.parameters()}
    pruned = setting.without(2, True)
    assert setting.without(0, True) is model
    assert setting.without(2, True) is pruned
    assert (pruned.config.num_hidden_layers, model.config.num_hidden_layers) == (layers - 2, layers)
    assert {parameter.data_ptr() for parameter in pruned.parameters()} < held
    turned = {parameter.data_ptr() for parameter in setting.without(0, False).parameters()}
    assert turned & held
    assert {parameter.data_ptr() for parameter in model.parameters()} == held
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_a_missing_package_is_left_out_and_the_rest_goes_on(setting, monkeypatch, capsys):
    for package in peers.PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    absent = [Side("economize"), Side("flashspec", "prompt lookup", drafts=4), Side("llama.cpp")]
    comparison = Comparison(Turns(setting), PeersArguments(max_steps=STEPS))
    comparison.prepare([*absent, PLAIN])
    assert list(comparison.turns.engines) == [PLAIN]
    warnings = capsys.readouterr().err
    for side in absent:
        assert "is not installed" in comparison.turns.left_out[side.name]
        assert warnings.count(f"{side.name} is left out") == 1
    assert comparison.turns.setup[PLAIN.name]["seconds"] > 0


def test_outputs_shorter_than_the_warm_up_leave_no_side_out(setting):
    setting.capacity = 32 + 4
    comparison = Comparison(Turns(setting), PeersArguments(max_steps=4))
    comparison.prepare([PLAIN, DRAFTED])
    assert list(comparison.turns.engines) == [PLAIN, DRAFTED]


def test_a_side_that_breaks_down_or_stops_early_is_left_out(setting, capsys):
    arguments = PeersArguments(max_steps=STEPS, repeats=2)
    comparison = Comparison(Turns(setting), arguments)
    comparison.prepare([PLAIN, DRAFTED])
    good = comparison.turns.engines[DRAFTED].decode
    calls = []

    def worse(ids, steps):
        calls.append(ids)
        made = good(ids, steps)
        # Two calls a turn: the second turn's fails.
        return Decoded(made.output_ids[:-1]) if len(calls) > 3 else made

    comparison.turns.engines[DRAFTED] = Engine(worse)
    comparison.measure(Bandwidth(2**16, torch.device("cpu")))
    comparison.judge()
    assert list(comparison.turns.engines) == [PLAIN]
    assert "made 11 tokens, not 12" in comparison.turns.left_out[DRAFTED.name]
    assert f"{DRAFTED.name} is left out" in capsys.readouterr().err
    of_plain = [each for each in comparison.samples if each["side"] == PLAIN.name]
    assert len(of_plain) == 4
    assert {each["verdict"] for each in comparison.samples} == {"equal"}
    rows = summarize(measured(comparison.samples, left_out=comparison.turns.left_out))["sides"]
    assert [row["name"] for row in rows] == [PLAIN.name]


def test_another_output_is_judged_wrong(setting):
    comparison = Comparison(Turns(setting), PeersArguments(max_steps=STEPS, repeats=1))
    comparison.prepare([PLAIN, DRAFTED])
    plain = comparison.turns.engines[PLAIN].decode
    comparison.turns.engines[DRAFTED] = Engine(
        lambda ids, steps: Decoded([(plain(ids, steps).output_ids[0] + 1) % END] * steps)
    )
    comparison.measure(Bandwidth(2**16, torch.device("cpu")))
    comparison.judge()
    verdicts = {each["side"]: each["verdict"] for each in comparison.samples}
    assert verdicts == {PLAIN.name: "equal", DRAFTED.name: "wrong"}


@pytest.mark.parametrize(("side", "is_right"), [(DRAFTED, False), (THEIR_DRAFTED, True)])
def test_the_run_fails_where_a_side_of_this_project_does(side, is_right):
    of_dtype = {"left_out": {side.name: "RuntimeError"}, "summary": {"sides": []}}
    assert peers._ours_is_right({"dtypes": {"float32": of_dtype}}) is is_right


def test_sides_share_exit_layers_and_draft_lengths():
    arguments = PeersArguments(exit_layers=[2, 4], num_speculations=[1, 3], removed=[0])
    sides = list(sides_of(arguments, cuda=False))
    assert len({side.name for side in sides}) == len(sides)
    for system in (OURS, "transformers", "economize"):
        cells = {(s.exit_layer, s.drafts) for s in sides if s.system == system and s.exit_layer}
        assert cells == {(2, 1), (2, 3), (4, 1), (4, 3)}
    assert all(side.plain() in sides for side in sides if side.system != "flashspec")
    assert not any(side.removed for side in sides)


@pytest.fixture
def long_checkpoint(tokenizer, tmp_path):
    """A tiny model with room for the prompts of human_eval, a token a byte."""
    torch.manual_seed(0)
    folder = tmp_path / "long"
    LlamaForCausalLM(tiny_config(max_position_embeddings=2048)).double().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_one_run_writes_all_that_it_measured(long_checkpoint, tmp_path, monkeypatch, capsys):
    for package in peers.PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    eager = lambda *of: (side for side in sides_of(*of) if not side.compiled)  # noqa: E731
    monkeypatch.setattr(peers, "sides_of", eager)
    flags = ["--num_prompts", "1", "--max_steps", "8", "--repeats", "2", "--removed", "2"]
    flags += ["--exit_layers", "4", "--num_speculations", "2", "--dtypes", "float64", "float32"]
    flags += ["--model", str(long_checkpoint), "--output_dir", str(tmp_path / "found")]
    assert run_script(peers.main, [*flags, "--device", "cpu"]) == 0
    results = json.loads((tmp_path / "found" / "peers.json").read_text())
    assert list(results["dtypes"]) == ["float64", "float32"]
    of_float64 = results["dtypes"]["float64"]
    assert len(of_float64["samples"]) == 6 * 2
    assert {each["verdict"] for each in of_float64["samples"] if not each["removed"]} == {"equal"}
    assert "economize autoregressive" in of_float64["left_out"]
    (law,) = [row["law"] for row in of_float64["summary"]["sides"] if row["law"]]
    assert law["measured_over_predicted"] > 0
    written = (tmp_path / "found" / "peers.md").read_text()
    assert written == table(results)
    for expected in ("| floor", "2 equal of 2", "Left out: flashspec", "## ", "--dtypes"):
        assert expected in written
    assert (tmp_path / "found" / "peers.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--exit_layers", "4", "0"], "--exit_layers 0"),
        (["--exit_layers", "6"], "--exit_layers 6"),
        (["--removed", "5"], "--removed 5"),
        (["--max_steps", "4000"], "--max_steps 4000"),
    ],
)
def test_a_bad_flag_is_one_line(flags, told, long_checkpoint, tmp_path, capsys):
    known = ["--model", str(long_checkpoint), "--output_dir", str(tmp_path / "found")]
    known += ["--exit_layers", "4", "--removed", "2", "--device", "cpu"]
    assert run_script(peers.main, known + flags) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "found").exists()
