"""A run in batches logs what a run of single prompts does, but for speed."""

import pytest
import torch

import benchmark
from command_line.errors import EXIT_INTERRUPTED
from command_line.script import run_script
from runs import decoders
from runs.reader import find_runs, read_record, read_samples
from self_speculation.batched_generator import BatchedTextGenerator
from tests.conftest import ANGULAR, GREEDY, write
from tests.ranked import scripts_in_ranks

SAMPLED = ["--sample", "true", "--temperature", "0.9", "--max_steps", "12"]
BATCH = ["--batch_size", "2"]
SAID = ("index", "example_id", "prediction", "output_ids", "stop_reason", "scores", "status")


def said(samples):
    return [{name: getattr(one, name) for name in SAID} for one in samples]


@pytest.mark.parametrize(
    "flags",
    [
        GREEDY,
        SAMPLED,
        [*GREEDY, *ANGULAR],
        [*GREEDY, "--exit_layer", "3"],
        [*GREEDY, "--stop_words", "e", "--no_repeat_ngram_size", "2"],
    ],
)
def test_texts_and_scores_are_those_of_single_prompts(run, flags):
    _, alone, samples = run(*flags, samples="7")
    code, record, together = run(*flags, *BATCH, samples="7")
    assert code == 0
    assert said(together) == said(samples)
    assert record.metrics["predicted_text"] == alone.metrics["predicted_text"]
    assert record.identity == alone.identity | {"batch_size": 2}


def test_speed_is_the_throughput_of_all(run, capsys):
    _, record, samples = run(*GREEDY, *BATCH, samples="7")
    tokens = sum(len(one.output_ids) for one in samples)
    calls = {one.batch["first"]: one.batch["seconds"] for one in samples}
    assert record.metrics["batched"] == {
        "batch_size": 2,
        "tokens": tokens,
        "seconds": pytest.approx(sum(calls.values())),
        "tokens_per_second": pytest.approx(tokens / sum(calls.values())),
    }
    for name in ("tokens_per_second", "time_per_token", "total_time", "time_to_first_token"):
        assert set(record.metrics[name].values()) == {None}
    assert {one.decode_seconds for one in samples} == {None}
    assert "together, 2 prompts at a time" in capsys.readouterr().out


def test_conversations_advance_together(run, tmp_path):
    rows = [
        {"question_id": n, "category": "qa", "turns": [f"{n}?", "Why?", "So?"][: 1 + n % 3]}
        for n in range(5)
    ]
    path = write(tmp_path / "spoken.jsonl", rows)
    flags = ["--dataset", "spec_bench", *GREEDY]
    _, _, samples = run(*flags, samples="5", path=path)
    _, record, together = run(*flags, *BATCH, samples="5", path=path)
    assert said(together) == said(samples)
    counts = ["prompt_tokens", "generated_tokens", "stop_reason"]
    for one, other in zip(samples, together, strict=True):
        assert [[turn[name] for name in counts] for turn in one.turns] == [
            [turn[name] for name in counts] for turn in other.turns
        ]
    assert record.metrics["counts"]["turns"] == 7


def test_prompts_that_are_too_long_are_skipped(run, tmp_path):
    rows = [{"prompt": "x" * n, "response": "y"} for n in (10, 257, 256, 3)]
    path = write(tmp_path / "mixed.jsonl", rows)
    _, record, samples = run(*GREEDY, *BATCH, path=path, samples="4")
    assert [one.status for one in samples] == ["done", "prompt_too_long", "done", "done"]
    assert [one.batch is None for one in samples] == [False, True, False, False]
    assert record.metrics["counts"]["skipped_prompts"] == 1


def test_self_speculation_is_refused(words, capsys):
    flags = ["--generation_strategy", "self_speculative", "--exit_layer", "2"]
    code = run_script(benchmark.main, words(*GREEDY, *flags, "--num_speculations", "2", *BATCH))
    assert code == 2
    line = "--batch_size 2: --generation_strategy self_speculative decodes one prompt at a time"
    assert line in capsys.readouterr().err


def test_a_batch_shrinks_where_memory_runs_out(run, monkeypatch, capsys):
    ordinary = BatchedTextGenerator.generate

    def short(self, prompts, *others):
        if self.engine.batch_size > 2:
            raise torch.OutOfMemoryError("no memory")
        return ordinary(self, prompts, *others)

    _, _, samples = run(*GREEDY, *BATCH, samples="8")
    monkeypatch.setattr(BatchedTextGenerator, "generate", short)
    code, record, together = run(*GREEDY, "--batch_size", "8", samples="8")
    assert code == 0
    assert said(together) == said(samples)
    assert record.metrics["batched"]["batch_size"] == 2
    warnings = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert [line.split(":")[1].strip() for line in warnings] == ["--batch_size 8", "--batch_size 4"]


def test_prompts_without_memory_are_counted_one_by_one(run, monkeypatch):
    ordinary = BatchedTextGenerator.generate

    def short(self, prompts, *others):
        if self.engine.batch_size > 1 or any(len(ids) > 9 for ids in prompts):
            raise torch.OutOfMemoryError("no memory")
        return ordinary(self, prompts, *others)

    monkeypatch.setattr(BatchedTextGenerator, "warm_up", lambda *_: [])
    monkeypatch.setattr(BatchedTextGenerator, "generate", short)
    code, record, samples = run(*GREEDY, *BATCH, samples="12")  # "number 10:" has 10 tokens
    assert code == 1
    lengths = [one.prompt_tokens for one in samples]
    failed = [one.status == "out_of_memory" for one in samples]
    assert failed == [length > 9 for length in lengths]
    assert record.metrics["counts"]["failed_prompts"] == sum(failed) == 2


def test_a_batched_run_goes_on_with_any_number_of_processes(words, tmp_path, monkeypatch):
    flags = words(*GREEDY, *BATCH, prompts=12)
    with monkeypatch.context() as patch:
        answers = decoders.ManyDecoder.answers
        calls = []

        def interrupted(self, requests):
            if calls:
                raise KeyboardInterrupt
            calls.append(requests)
            return answers(self, requests)

        patch.setattr(decoders.ManyDecoder, "answers", interrupted)
        assert run_script(benchmark.main, flags) == EXIT_INTERRUPTED
    assert scripts_in_ranks(monkeypatch, 2, benchmark.main, flags) == [0, 0]
    (path,) = find_runs(tmp_path / "logs")
    resumed = said(read_samples(path))
    whole = words(*GREEDY, *BATCH, prompts=12, folder="whole")
    assert run_script(benchmark.main, whole) == 0
    (path,) = find_runs(tmp_path / "whole")
    assert said(read_samples(path)) == resumed
    assert read_record(path).is_complete


def test_prompts_that_the_last_cache_cannot_hold_are_out_of_memory(run, tmp_path, monkeypatch):
    """Not cut short: the cache of one prompt at a time may be smaller than the batch's."""
    rows = [{"prompt": "x" * n, "response": "y"} for n in (3, 5, 8, 30, 60)]
    path = write(tmp_path / "rows.jsonl", rows)
    _, _, expected = run(*GREEDY, path=path, samples="5")
    make, generate, calls = decoders.make_batched_generator, BatchedTextGenerator.generate, []

    def made(flags, loaded, plan, words, longest, size):
        if size == 1 and longest > 30:
            raise torch.OutOfMemoryError("no memory")
        return make(flags, loaded, plan, words, longest, size)

    def short(self, prompts, *others):
        calls.append(prompts)
        if self.engine.batch_size > 1 and len(calls) > 1:  # not in the warm-up
            raise torch.OutOfMemoryError("no memory")
        return generate(self, prompts, *others)

    monkeypatch.setattr(decoders, "make_batched_generator", made)
    monkeypatch.setattr(BatchedTextGenerator, "generate", short)
    code, _, samples = run(*GREEDY, *BATCH, path=path, samples="5")
    assert code == 1
    assert said(samples)[:4] == said(expected)[:4]
    assert samples[4].status == "out_of_memory"
