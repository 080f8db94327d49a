"""Runs that measure references or plain texts, from flags to files."""

import json
import math

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import benchmark
import correctness
import sweep
from command_line.errors import EXIT_INTERRUPTED
from command_line.script import run_script
from runs import forced_runs
from runs.likelihood import likelihood
from runs.reader import check_metrics, find_runs, read_record, read_samples
from tests.conftest import ANGULAR, GREEDY, SPECULATIVE, SWEEP_GRID, timeless, write
from tests.ranked import scripts_in_ranks

FORCED = ["--teacher_forced", "true"]
RANDOM = ["--prune_method", "random", "--dropout_threshold", "0.3", "--prune_seed", "2"]
TEXTS = ["a first text, of some length", "ß", "second: häßlich", "x", "the last one"]
SKIP = ["--first_token", "skip", "--window", "8", "--stride", "5"]


@pytest.fixture
def text_rows(tmp_path):
    return write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])


@pytest.fixture
def measure_texts(checkpoint, text_rows, tmp_path):
    """Run benchmark.py on plain texts; return exit code, record and lines."""

    def start(*flags, folder="texts", model=checkpoint, script=benchmark, path=text_rows):
        words = ["--model", str(model), "--dtype", "float64", "--dataset", "text"]
        words += ["--data_path", str(path), "--random_shuffle", "false"]
        words += ["--output_dir", str(tmp_path / folder)]
        code = run_script(script.main, [*words, *flags])
        found = find_runs(tmp_path / folder)
        if not found:
            return code, None, None
        return code, read_record(found[0]), read_samples(found[0])

    return start


def likelihoods(samples):
    return [sample.teacher_forced for sample in samples]


def alike(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == (other and pytest.approx(other, abs=1e-9))


def test_references_are_measured_and_outputs_stay_the_same(run, checkpoint, tokenizer, capsys):
    _, plain, expected = run(*GREEDY, *ANGULAR)
    code, record, samples = run(*GREEDY, *ANGULAR, *FORCED)
    assert code == 0
    assert [one.output_ids for one in samples] == [one.output_ids for one in expected]
    assert plain.run_id != record.run_id
    assert "teacher_forced" not in plain.metrics
    assert [one.teacher_forced for one in expected] == [None] * 3
    whole = LlamaForCausalLM.from_pretrained(checkpoint)
    pruned = LlamaForCausalLM.from_pretrained(checkpoint)
    pruned.model.layers = torch.nn.ModuleList(
        whole.model.layers[index] for index in record.plan["kept_layers"]
    )
    for sample, number in zip(samples, range(3), strict=True):
        prompt = tokenizer(f"number {number}:")["input_ids"]
        answer = tokenizer(f"item {number}")["input_ids"]
        said, target = (
            model(torch.tensor([prompt + answer]), use_cache=False)
            .logits[0, len(prompt) - 1 : -1]
            .log_softmax(-1)
            for model in (pruned, whole)
        )
        assert sample.teacher_forced == {
            "tokens": 6,
            "bytes": 6,
            "nats": pytest.approx(-said[range(6), answer].sum().item(), abs=1e-6),
            "kl_nats": pytest.approx((target.exp() * (target - said)).sum().item(), abs=1e-6),
            "agreeing": (said.argmax(-1) == target.argmax(-1)).sum().item(),
        }
    assert record.metrics["teacher_forced"] == likelihood(likelihoods(samples))
    assert record.metrics["teacher_forced"]["kl"] > 0
    assert record.model["kept_layers"] == 4
    out = capsys.readouterr().out
    assert "bits per byte of 18 tokens\n" in out
    assert "top-1 agreement" in out


def test_the_base_plan_agrees_with_itself(run):
    _, record, samples = run(*GREEDY, *FORCED)
    assert {(one["kl_nats"], one["agreeing"]) for one in likelihoods(samples)} == {(0.0, 6)}
    assert record.metrics["teacher_forced"]["agreement"] == 1


def test_both_decoders_are_measured_alike_and_early_exit_is_not(run):
    _, _, plain = run(*GREEDY, *ANGULAR, *FORCED)
    _, _, spoken = run(*GREEDY, *ANGULAR, *FORCED, *SPECULATIVE, "--exit_layer", "5")
    assert likelihoods(spoken) == likelihoods(plain)
    _, _, early = run(*GREEDY, *ANGULAR, *FORCED, "--exit_layer", "5")
    assert likelihoods(early) != likelihoods(plain)


def test_prompts_without_reference_are_decoded_and_not_measured(run, tmp_path, capsys):
    rows = [{"prompt": f"p {n}", "response": answer} for n, answer in enumerate(["é", "", "b"])]
    path = write(tmp_path / "some.jsonl", rows)
    code, record, samples = run(*GREEDY, *FORCED, path=path)
    assert code == 0
    assert [bool(one) for one in likelihoods(samples)] == [True, False, True]
    assert record.metrics["teacher_forced"]["prompts"] == 2
    assert record.metrics["teacher_forced"]["bytes"] == 3
    none = write(tmp_path / "none.jsonl", [{"prompt": "p", "response": ""}])
    code, record, _ = run(*GREEDY, *FORCED, samples=None, path=none)
    assert (code, record.metrics["teacher_forced"]["perplexity"]) == (0, None)
    assert "warning: --teacher_forced true: no prompt of" in capsys.readouterr().err


def test_a_long_prompt_is_the_one_that_is_decoded(run, tmp_path, capsys):
    rows = [{"prompt": "p" * 300, "response": "r" * 30}, {"prompt": "q", "response": "r"}]
    path = write(tmp_path / "long.jsonl", rows)
    _, _, samples = run(*GREEDY, *FORCED, path=path, samples=None)
    assert samples[0].status == "prompt_too_long"
    assert samples[0].teacher_forced is None
    cut = ["--truncate_prompt", "true"]
    _, _, samples = run(*GREEDY, *FORCED, *cut, path=path, samples=None)
    # 256 positions: 241 of the prompt, and 15 of the reference that are read; one is only said.
    assert samples[0].prompt_tokens == 241
    assert samples[0].teacher_forced["tokens"] == samples[0].teacher_forced["bytes"] == 16
    err = capsys.readouterr().err
    assert "1 references exceed the model's positions and lose their end" in err


@pytest.mark.parametrize("flags", [[*GREEDY, *FORCED], [*GREEDY, *ANGULAR, *FORCED]])
def test_a_resumed_run_measures_only_what_is_missing(
    run, words, stop_at, tmp_path, flags, monkeypatch
):
    line = words(*flags, "--random_shuffle", "false", prompts=5)
    undo = stop_at(2, KeyboardInterrupt)
    assert run_script(benchmark.main, line) == EXIT_INTERRUPTED
    undo()
    read, ordinary = [], forced_runs.TeacherForcing.measure_plans

    def measured(self, plans, passages, *rest):
        read.extend(passages)
        return ordinary(self, plans, passages, *rest)

    monkeypatch.setattr(forced_runs.TeacherForcing, "measure_plans", measured)
    assert run_script(benchmark.main, line) == 0
    assert len(read) == 3
    (path,) = find_runs(tmp_path / "logs")
    _, unbroken, samples = run(*flags, samples="5")
    alike(likelihoods(read_samples(path)), likelihoods(samples))
    found = read_record(path).metrics["teacher_forced"]
    assert found == pytest.approx(unbroken.metrics["teacher_forced"], abs=1e-9)


def test_several_processes_measure_references_once(words, tmp_path, monkeypatch):
    logs = []
    for count in (1, 3):
        line = words(*GREEDY, *FORCED, *RANDOM, folder=f"of {count}")
        assert scripts_in_ranks(monkeypatch, count, benchmark.main, line) == [0] * count
        (path,) = find_runs(tmp_path / f"of {count}")
        logs.append(likelihoods(read_samples(path)))
    alike(*logs)


def test_texts_are_measured_in_windows_and_not_decoded(measure_texts, capsys):
    code, record, lines = measure_texts(*SKIP, *RANDOM, "--batch_size", "3")
    assert code == 0
    assert [one.status for one in lines] == ["measured"] * 5
    assert [one.prompt_tokens for one in lines] == [len(text.encode()) for text in TEXTS]
    assert [one and one["tokens"] for one in likelihoods(lines)] == [27, 1, 16, None, 11]
    assert [one and one["bytes"] for one in likelihoods(lines)] == [27, 2, 16, None, 11]
    forced = record.metrics["teacher_forced"]
    assert forced["perplexity"] == pytest.approx(math.exp(forced["nats_per_token"]))
    windows = {"window": 8, "stride": 5, "first_token": "skip"}
    for place in (forced, record.data, record.identity):
        assert windows.items() <= place.items()
    assert forced["prompts"] == 4
    check_metrics({"teacher_forced": forced})
    assert record.metrics["counts"]["prompts"] == 5
    assert record.metrics["tokens_per_second"]["mean"] is None
    out = capsys.readouterr().out
    assert "of 55 tokens (window 8, stride 5, first token skip)" in out
    assert "tokens/s" not in out
    _, other, _ = measure_texts(*SKIP, *RANDOM, "--batch_size", "1", folder="single")
    assert other.metrics["teacher_forced"] == pytest.approx(forced, abs=1e-9)


def test_windows_and_exit_layer_alone_distinguish_runs_of_texts(measure_texts):
    def run_id(*flags):
        folder = "".join(flags).replace("-", "")
        return measure_texts(*SKIP, *flags, folder=folder)[1].run_id

    assert run_id() == run_id("--seed", "7", "--max_steps", "3")
    others = [[], ["--window", "9"], ["--stride", "4"], ["--exit_layer", "3"]]
    assert len({run_id(*flags) for flags in others}) == 4


@pytest.fixture
def begun(checkpoint, tokenizer, tmp_path):
    """Save the tiny Llama with a tokenizer that has a first token, and with 512 positions."""
    folder = tmp_path / "begun"
    model = LlamaForCausalLM.from_pretrained(checkpoint)
    model.config.max_position_embeddings = 512
    model.save_pretrained(folder)
    names = {"bos_token": "<end>", "eos_token": "<end>"}
    tokens = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **names)
    tokens.save_pretrained(folder)
    return folder


def test_a_first_token_predicts_every_token(measure_texts, begun, tokenizer):
    code, _, lines = measure_texts("--window", "8", model=begun)
    assert code == 0
    sizes = [len(text.encode()) for text in TEXTS]
    assert [one["tokens"] for one in likelihoods(lines)] == sizes
    assert [one["bytes"] for one in likelihoods(lines)] == sizes
    model = LlamaForCausalLM.from_pretrained(begun)
    said = model(torch.tensor([[256]])).logits[0, -1].log_softmax(-1)
    expected = -said[tokenizer("x")["input_ids"][0]].item()
    assert lines[3].teacher_forced["nats"] == pytest.approx(expected, abs=1e-6)


def test_interrupted_texts_go_on(measure_texts, monkeypatch, tmp_path):
    _, unbroken, expected = measure_texts(*SKIP, *ANGULAR, "--num_samples", "3", folder="whole")
    ordinary, calls = forced_runs.TeacherForcing.measure, []

    def stopping(self, passages, *rest):
        calls.append(len(passages))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ordinary(self, passages, *rest)

    flags = [*SKIP, *ANGULAR, "--num_samples", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(forced_runs.TeacherForcing, "measure", stopping)
        code, record, lines = measure_texts(*flags)
    assert (code, record.status, len(lines)) == (EXIT_INTERRUPTED, "interrupted", 1)
    code, record, lines = measure_texts(*flags)
    assert (code, record.run_id) == (0, unbroken.run_id)
    assert timeless(json.loads(json.dumps([vars(one) for one in lines]))) == timeless(
        json.loads(json.dumps([vars(one) for one in expected]))
    )


def test_several_processes_share_the_texts(
    measure_texts, checkpoint, text_rows, tmp_path, monkeypatch
):
    _, _, expected = measure_texts(*SKIP)
    line = ["--model", str(checkpoint), "--dtype", "float64", "--dataset", "text"]
    line += ["--data_path", str(text_rows), "--random_shuffle", "false", *SKIP]
    line += ["--output_dir", str(tmp_path / "ranks"), "--batch_size", "2"]
    assert scripts_in_ranks(monkeypatch, 2, benchmark.main, line) == [0, 0]
    (path,) = find_runs(tmp_path / "ranks")
    alike(likelihoods(read_samples(path)), likelihoods(expected))


def test_a_saved_pruned_model_has_no_unpruned_one(measure_texts, run, tmp_path, capsys):
    folder = tmp_path / "pruned"
    measure_texts(*SKIP, *RANDOM, "--save_pruned", str(folder))
    capsys.readouterr()
    code, record, lines = measure_texts(*SKIP, model=folder, folder="again")
    assert code == 0
    forced = record.metrics["teacher_forced"]
    assert (forced["kl"], forced["agreement"]) == (None, None)
    captured = capsys.readouterr()
    flags = "--prune_method random --prune_seed 2 --dropout_threshold 0.3"
    assert f"--model ORIGINAL {flags} measures them" in captured.err
    assert "KL none" in captured.out
    _, original, _ = measure_texts(*SKIP, *RANDOM)
    assert forced["perplexity"] == pytest.approx(
        original.metrics["teacher_forced"]["perplexity"], rel=1e-6
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--window", "257"], "--window 257: the model has 256 positions"),
        (["--window", "8", "--stride", "9"], "--stride 9: must be at most --window 8"),
        (["--window", "8", "--first_token", "bos"], "--first_token bos: the tokenizer of"),
        (
            [*SPECULATIVE, "--exit_layer", "3"],
            "--generation_strategy self_speculative: --dataset text decodes nothing",
        ),
        (["--repeats", "2"], "--repeats 2: --dataset text times no decoding"),
        (["--n_shot", "1"], "--n_shot 1: --dataset text has no answers to show"),
        (["--template", "{message}"], "--template {message}: --dataset text measures"),
        (["--apply_chat_template", "true"], "--apply_chat_template true: --dataset text"),
        (["--truncate_prompt", "true"], "--truncate_prompt true: --dataset text"),
        (["--max_prompt_tokens", "3"], "--max_prompt_tokens 3: --dataset text"),
    ],
)
def test_flags_that_do_not_fit_texts_are_one_line(measure_texts, capsys, tmp_path, flags, message):
    before = [] if "--first_token" in flags else ["--first_token", "skip"]
    assert measure_texts(*before, *flags) == (2, None, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "texts").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}, {"text": ""}], "line 2"),
        ([{"text": "a"}, {"text": "b"}], "--first_token skip: every text is a single token"),
        ([{"texts": "a"}], "has no field 'text'"),
    ],
)
def test_texts_without_anything_to_measure_are_one_line(
    measure_texts, tmp_path, capsys, rows, message
):
    path = write(tmp_path / "empty.jsonl", rows)
    assert measure_texts(*SKIP, path=path) == (2, None, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "texts").exists()


def test_a_sweep_measures_texts_once_for_each_plan(begun, text_rows, tmp_path, capsys):
    words = ["--model", str(begun), "--dtype", "float64", "--dataset", "text", "--data_path"]
    words += [str(text_rows), *SWEEP_GRID, "--output_dir", str(tmp_path / "logs")]
    words += ["--prune_methods", "base", "random", "--dropout_thresholds", "0.3"]
    words += ["--prune_seeds", "2"]
    assert run_script(sweep.main, words) == 0
    runs = [read_record(path) for path in find_runs(tmp_path / "logs")]
    agreement = {one.plan["method"]: one.metrics["teacher_forced"]["agreement"] for one in runs}
    assert len(runs) == 2
    assert agreement["base"] == 1 > agreement["random"]
    assert "2 of 2 runs are complete" in capsys.readouterr().out
    assert run_script(sweep.main, [*words, "--dry_run", "true"]) == 0
    assert "0 of 2 runs and 0 prompts are left" in capsys.readouterr().out


def test_texts_cannot_be_checked_for_losslessness(measure_texts, capsys):
    flags = ["--exit_layer", "3", "--num_speculations", "2"]
    assert measure_texts(*flags, script=correctness)[0] == 2
    assert "--dataset text decodes nothing" in capsys.readouterr().err
