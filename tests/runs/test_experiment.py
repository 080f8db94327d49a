"""One run: what it calibrates on, which prompts it reads, and what defines it."""

import dataclasses
import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer

from arguments.run import RUN_GROUPS, RunArguments
from command_line.flags import parse
from models.runtime import Runtime
from prompts.dataset_table import DATASETS
from pruned_model import PruneModel
from pruning.states import measure_states
from runs import definition, experiment
from runs.definition import define_run
from self_speculation.text_generator import WARM_UP_STEPS, TextGenerator
from tests.conftest import ANGULAR, GREEDY, SPECULATIVE, write


def outputs(samples):
    return [sample.output_ids for sample in samples]


@pytest.fixture
def calibrated(tokenizer, monkeypatch):
    """The texts that plans are measured on."""
    seen = []

    def watched(model, prompts, *rest):
        seen.extend(tokenizer.decode(prompt[0]) for prompt in prompts)
        return measure_states(model, prompts, *rest)

    monkeypatch.setattr("pruning.measurements.measure_states", watched)
    return seen


@pytest.fixture
def run_id(checkpoint, rows):
    """Returns the id of a run with more flags, which is not run."""

    def define(*flags, samples="3", path=rows):
        data = ["--dataset", "custom_jsonl", "--data_path", str(path), "--num_samples", samples]
        words = ["--model", str(checkpoint), "--dtype", "float64", *data]
        words += ["--random_shuffle", "false", *flags]
        return define_run(RunArguments(*parse(words, "", *RUN_GROUPS)), None).run_id

    return define


def test_calibration_reads_prompts_that_are_not_evaluated(run, calibrated):
    _, _, samples = run(*GREEDY, *ANGULAR, samples="7")
    assert len(calibrated) == 4
    assert set(calibrated) < {f"number {i}:" for i in range(7, 12)}
    assert [sample.reference for sample in samples] == [f"item {i}" for i in range(7)]


def test_long_calibration_prompts_keep_their_tail(run, tmp_path, calibrated):
    prompts = [{"prompt": text, "response": ""} for text in ("short", "a" * 300 + "TAIL")]
    path = write(tmp_path / "long.jsonl", prompts)
    assert run(*GREEDY, *ANGULAR, samples="1", path=path)[0] == 0
    assert calibrated == ["a" * 252 + "TAIL"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_real_token_is_read_whatever_side_the_tokenizer_pads(
    run, checkpoint, tmp_path, side
):
    """Even for a tokenizer that pads and cuts every text."""
    _, plain, _ = run(*GREEDY, *ANGULAR)
    padded = shutil.copytree(checkpoint, tmp_path / side)
    core = Tokenizer.from_file(str(padded / "tokenizer.json"))
    core.enable_padding(direction=side, length=64, pad_id=256, pad_token="<end>")
    core.enable_truncation(4)
    core.save(str(padded / "tokenizer.json"))
    settings = json.loads((padded / "tokenizer_config.json").read_text())
    settings |= {"padding_side": side, "pad_token": "<end>"}
    (padded / "tokenizer_config.json").write_text(json.dumps(settings))
    _, other, samples = run(*GREEDY, *ANGULAR, "--model", str(padded))
    assert other.plan["scores"] == plain.plan["scores"]
    assert other.plan["calibration"] == plain.plan["calibration"]
    assert samples[0].prompt_tokens == len("number 0:")


def test_prompts_beyond_the_models_positions_are_skipped_and_counted(run, tmp_path, capsys):
    prompts = [{"prompt": "x" * n, "response": "y"} for n in (10, 257, 256)]
    path = write(tmp_path / "mixed.jsonl", prompts)
    code, record, samples = run(*GREEDY, path=path)
    assert code == 0
    assert [sample.status for sample in samples] == ["done", "prompt_too_long", "done"]
    assert [len(sample.output_ids) for sample in samples] == [16, 0, 1]
    assert record.metrics["counts"]["skipped_prompts"] == 1
    assert "1 skipped, longer than the model's positions" in capsys.readouterr().out

    _, record, samples = run(*GREEDY, "--truncate_prompt", "true", path=path)
    assert record.metrics["counts"]["skipped_prompts"] == 0
    assert [sample.prompt_tokens for sample in samples] == [10, 241, 241]
    assert [len(sample.output_ids) for sample in samples] == [16, 16, 16]
    assert samples[1].output_ids == samples[2].output_ids


def test_prompts_keep_their_last_tokens(run, tmp_path):
    rows = [{"prompt": text, "response": "y"} for text in ("abcdefghij", "cdefghij", "hij")]
    path = write(tmp_path / "tails.jsonl", rows)
    _, _, samples = run(*GREEDY, "--max_prompt_tokens", "8", path=path)
    assert [sample.prompt_tokens for sample in samples] == [8, 8, 3]
    assert samples[0].output_ids == samples[1].output_ids
    _, whole, _ = run(*GREEDY, path=path)
    _, tails, _ = run(*GREEDY, "--max_prompt_tokens", "10", path=path)
    assert whole.run_id == tails.run_id  # a flag that cuts nothing changes nothing


def test_only_prompts_too_long_is_an_error(run, tmp_path, capsys):
    path = write(tmp_path / "long.jsonl", [{"prompt": "x" * 300, "response": "y"}])
    code, record, _ = run(*GREEDY, path=path)
    assert (code, record) == (2, None)
    assert "every prompt exceeds the model's 256 positions" in capsys.readouterr().err


def test_an_example_draws_the_same_tokens_whatever_runs_before_it(run):
    _, _, few = run("--max_steps", "12", samples="2")
    _, _, many = run("--max_steps", "12", samples="5")
    assert outputs(many)[:2] == outputs(few)
    _, _, other = run("--max_steps", "12", "--seed", "7", samples="2")
    assert outputs(other) != outputs(few)


def test_prompts_that_yield_no_token_are_refused(run, tmp_path, monkeypatch, capsys):
    class Tokenizer:
        eos_token_id = None

        def __call__(self, prompt):
            return {"input_ids": [] if prompt == "\u200b" else [1]}

    ordinary = definition.find_checkpoint

    def find(arguments):
        return dataclasses.replace(ordinary(arguments), tokenizer=Tokenizer())

    monkeypatch.setattr(definition, "find_checkpoint", find)
    path = tmp_path / "odd.jsonl"
    path.write_text('{"prompt": "\u200b", "response": ""}', "utf-8")
    assert run(*GREEDY, path=path)[:2] == (2, None)
    assert "its tokenizer makes no token of '\\u200b'" in capsys.readouterr().err


def test_too_few_rows_are_run_with_a_warning(run, capsys):
    code, record, _ = run(*GREEDY, *ANGULAR, samples="10")
    assert (code, record.plan["calibration"]["prompts"]) == (0, 2)
    assert "--calibration_samples 4: " in (err := capsys.readouterr().err)
    assert "rows.jsonl has 2 examples that are not evaluated; these calibrate" in err
    code, record, _ = run(*GREEDY, samples="50")
    assert (code, record.metrics["counts"]["prompts"]) == (0, 12)
    assert "--num_samples 50: " in (err := capsys.readouterr().err)
    assert "rows.jsonl has 12 examples; all of them are run" in err


def test_the_device_is_warm_before_the_first_example(run, monkeypatch):
    calls, full_steps = [], 0
    ordinary, ordinary_step = TextGenerator.generate, TextGenerator.time_full_step

    def watched(self, prompt_ids, *arguments, **options):
        calls.append((options.get("max_steps"), arguments))
        return ordinary(self, prompt_ids, *arguments, **options)

    def watched_step(self, token_id):
        nonlocal full_steps
        full_steps += 1
        return ordinary_step(self, token_id)

    monkeypatch.setattr(TextGenerator, "generate", watched)
    monkeypatch.setattr(TextGenerator, "time_full_step", watched_step)
    _, record, _ = run(*GREEDY, *SPECULATIVE, "--exit_layer", "3")
    assert calls[0] == (WARM_UP_STEPS, ())
    assert full_steps == len(calls) == 1 + record.metrics["counts"]["prompts"]


@pytest.mark.parametrize("flags", [[], ["--exit_layer", "2"]])
def test_plain_runs_time_no_further_full_steps(run, flags, monkeypatch):
    """After early exit such a step would attend to keys that were never written."""
    monkeypatch.setattr(TextGenerator, "time_full_step", None)
    code, record, samples = run("--max_steps", "8", *flags)
    assert code == 0
    assert all(sample.full_step is None for sample in samples)
    assert (record.metrics["step_seconds"]["early_exit"] is None) == (not flags)


def test_the_run_id_follows_what_defines_the_run(
    run, run_id, rows, checkpoint, tmp_path, monkeypatch
):
    base = run(*GREEDY)[1].run_id
    assert run_id(*GREEDY) == base
    without_effect = ["--calibration_samples", "9", "--temperature", "3", "--seed", "1"]
    assert run_id(*GREEDY, *without_effect, "--num_speculations", "9") == base
    dropped = ["--prune_method", "random", "--dropout_threshold", "0.01"]  # the same plan
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    assert run_id(*GREEDY, "--model", str(moved)) == base
    others = [
        run_id("--max_steps", "16"),
        run_id("--max_steps", "16", "--seed", "1"),
        run_id(*GREEDY, "--truncate_prompt", "true"),
        run_id(*GREEDY, samples="4"),
        run_id(*GREEDY, "--dtype", "float32"),
        run_id(*GREEDY, "--model_args", "attn_implementation=eager"),
        run_id(*GREEDY, "--model_args", "device_map=cpu"),
        run_id(*GREEDY, *ANGULAR),
        run_id(*GREEDY, *ANGULAR, "--prune_n", "3"),
        run_id(*GREEDY, *ANGULAR, "--prune_seed", "1"),
        run_id(*GREEDY, *dropped, "--prune_seed", "1"),
        run_id(*GREEDY, *dropped, "--prune_seed", "5"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(definition, "ENGINE_VERSION", 0)
        others.append(run_id(*GREEDY))
    rounder = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((rounder / "config.json").read_text())
    (rounder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    others.append(run_id(*GREEDY, "--model", str(rounder)))
    rows.write_text(rows.read_text().replace("item 0", "item zero"))
    others.append(run_id(*GREEDY))
    assert len({base, *others}) == len(others) + 1


def test_the_log_tells_which_rows_were_used(run, rows, tmp_path):
    copy = write(
        tmp_path / "copy.parquet", [json.loads(line) for line in rows.read_text().splitlines()]
    )
    _, one, _ = run(*GREEDY, *ANGULAR)
    _, other, _ = run(*GREEDY, *ANGULAR, path=copy)
    assert one.run_id == other.run_id
    evaluation, calibration = one.data["evaluation"], one.data["calibration"]
    assert evaluation.pop("source") == calibration.pop("source") == str(rows)
    fingerprints = [evaluation.pop("fingerprint"), calibration.pop("fingerprint")]
    assert fingerprints == [other.data[use]["fingerprint"] for use in ("evaluation", "calibration")]
    assert evaluation == {"split": "test", "available_rows": 12, "examples": 3, "shots": []}
    assert calibration == {"split": "test", "available_rows": 12, "examples": 4, "shots": []}
    rows.write_text(rows.read_text().replace("item 0", "item zero"))
    _, changed, _ = run(*GREEDY, *ANGULAR)
    assert changed.data["evaluation"]["fingerprint"] != fingerprints[0]
    assert changed.data["calibration"]["fingerprint"] == fingerprints[1]
    _, base, _ = run(*GREEDY)
    assert base.data["calibration"] is None


def test_shots_are_logged_and_read_by_the_model(run, rows, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(rows, folder / "test.jsonl")
    write(folder / "train.csv", [{"prompt": "Q", "response": "A"}])
    _, record, samples = run(*GREEDY, "--n_shot", "1", path=folder)
    assert record.data["evaluation"]["shots"] == ["1"]
    assert samples[0].prompt_tokens == len("Q A\n\nnumber 0:")


CHAT_TEMPLATE = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_prompts_go_through_the_tokenizers_chat_template(
    run, run_id, checkpoint, tmp_path, calibrated
):
    folder = shutil.copytree(checkpoint, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    flags = [*GREEDY, "--model", str(folder), "--template", "say {message}", *ANGULAR]
    in_chat = [*flags, "--apply_chat_template", "true"]
    code, chat, samples = run(*in_chat)
    assert code == 0
    assert samples[0].prompt_tokens == len("<user>say number 0:<assistant>")
    assert all(text.startswith("<user>say number") for text in calibrated)
    _, plain, samples = run(*flags)
    assert samples[0].prompt_tokens == len("say number 0:")
    (folder / "chat_template.jinja").write_text(f"hello {CHAT_TEMPLATE}")
    assert len({plain.run_id, chat.run_id, run_id(*in_chat)}) == 3


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no template"),
        ("{{ raise_exception('roles must alternate') }}", "refuses the chat (roles must alter"),
        ("{% if %}", "fails (TemplateSyntaxError: "),
    ],
)
def test_chat_templates_that_do_not_work_are_refused_before_weights_are_read(
    run, checkpoint, tmp_path, monkeypatch, capsys, template, message
):
    folder = shutil.copytree(checkpoint, tmp_path / "chat")
    if template:
        (folder / "chat_template.jinja").write_text(template)
    monkeypatch.setattr(experiment, "load_model", None)
    flags = ["--model", str(folder), "--apply_chat_template", "true"]
    assert run(*GREEDY, *flags)[:2] == (2, None)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--apply_chat_template true: the t" in err
    assert message in err


def test_the_data_set_says_what_ends_an_answer(run, run_id, tmp_path):
    """Unless --stop_words does."""
    chat = {"data": [{"role": "USER", "message": "hi"}, {"role": "PARSER", "message": "ho"}]}
    path = write(tmp_path / "chat.jsonl", [chat])
    flags = ["--dataset", "chat_format", *GREEDY]
    own, none, other = (
        run(*flags, *words, path=path)[1]
        for words in ([], ["--stop_words", "none"], ["--stop_words", r"\n", "x"])
    )
    assert own.data["stop_words"] == ["\n[/PARSER]"]
    assert none.data["stop_words"] == []
    assert other.data["stop_words"] == ["\n", "x"]
    assert len({own.run_id, none.run_id, other.run_id}) == 3
    assert run_id(*flags, "--stop_words", r"\n[/PARSER]", path=path) == own.run_id


def test_a_data_sets_stop_words_end_its_outputs(run, tmp_path, monkeypatch):
    path = write(tmp_path / "top.jsonl", [{"utterance": "number 0:", "semantic_parse": "item 0"}])
    flags = ["--dataset", "top_v2", *GREEDY]
    _, _, (whole,) = run(*flags, path=path)
    word = whole.prediction[3:6]
    stopped = dataclasses.replace(DATASETS["top_v2"], stop_words=(word,))
    monkeypatch.setitem(DATASETS, "top_v2", stopped)
    _, _, (short,) = run(*flags, path=path)
    assert (short.prediction, short.stop_reason) == (whole.prediction[:3], "stop_word")
    _, _, (unstopped,) = run(*flags, "--stop_words", "none", path=path)
    assert unstopped.prediction == whole.prediction


def test_the_peak_of_memory_is_that_of_decoding(run, monkeypatch):
    """Loading and calibration need more memory, and are over by then."""
    order = []
    reset = Runtime.reset_peak_memory
    prune = PruneModel.prune

    def watched_prune(self, releases):
        order.append("prune")
        prune(self, releases)

    def watched_reset(self):
        order.append("reset")
        reset(self)

    monkeypatch.setattr(PruneModel, "prune", watched_prune)
    monkeypatch.setattr(Runtime, "reset_peak_memory", watched_reset)
    run(*GREEDY, *ANGULAR)
    assert order == ["prune", "reset"]


def test_float32_uses_full_precision_products(run):
    torch.set_float32_matmul_precision("high")
    run(*GREEDY, "--dtype", "float32")
    assert torch.get_float32_matmul_precision() == "highest"
