"""A prompt without enough memory is reported, and stops nothing else."""

import pytest
import torch
import torch.distributed

import benchmark
import correctness
from command_line.script import run_script
from runs import experiment
from runs.decoders import SingleDecoder
from runs.reader import find_runs, read_record, read_samples
from self_speculation.key_value_cache import KeyValueCache
from self_speculation.text_generator import TextGenerator
from tests.conftest import GREEDY, write


def out_of_memory(kind):
    return {
        "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        "python": MemoryError(),
    }[kind]


@pytest.fixture
def short_of_memory(monkeypatch):
    """Lets decoding of every prompt of this length run out of memory."""
    ordinary = TextGenerator.generate

    def make(kind, length):
        def generate(generator, prompt_ids, *rest, **named):
            if len(prompt_ids) == length and "max_steps" not in named:
                raise out_of_memory(kind)
            return ordinary(generator, prompt_ids, *rest, **named)

        monkeypatch.setattr(TextGenerator, "generate", generate)

    return make


@pytest.mark.parametrize("kind", ["cuda", "cpu", "python"])
def test_an_example_without_memory_is_reported_and_stops_no_other(
    words, short_of_memory, tmp_path, capsys, kind
):
    # The rows are numbered 0 to 11: the last two are one character longer.
    short_of_memory(kind, len("number 10:"))
    flags = words(*GREEDY, "--random_shuffle", "false", prompts=12)
    assert run_script(benchmark.main, flags) == 1
    assert (
        "complete: 12 prompts, 160 tokens; 2 FAILED for want of memory" in capsys.readouterr().out
    )
    (path,) = find_runs(tmp_path / "logs")
    samples, record = read_samples(path), read_record(path)
    assert [one.index for one in samples if one.status == "out_of_memory"] == [10, 11]
    assert [one.prompt_tokens for one in samples[10:]] == [10, 10]
    assert record.metrics["counts"]["failed_prompts"] == 2
    assert record.metrics["counts"]["skipped_prompts"] == 0
    # The complete run keeps its exit code.
    assert run_script(benchmark.main, flags) == 1


def limit_cache(monkeypatch, most):
    """Lets memory suffice for caches of `most` positions."""
    ordinary = KeyValueCache._allocate

    def limited(cache, like):
        if cache.capacity > most:
            raise out_of_memory("cuda")
        return ordinary(cache, like)

    monkeypatch.setattr(KeyValueCache, "_allocate", limited)


def test_a_prompt_too_long_for_the_cache_stops_no_other(checkpoint, tmp_path, monkeypatch, capsys):
    prompts = ["short", "long " * 30, "longer " * 30, "small"]
    rows = write(tmp_path / "rows.jsonl", [{"prompt": one, "response": "x"} for one in prompts])
    limit_cache(monkeypatch, 100)
    flags = ["--model", str(checkpoint), "--dtype", "float64", "--dataset", "custom_jsonl"]
    flags += ["--data_path", str(rows), "--random_shuffle", "false", *GREEDY]
    assert run_script(benchmark.main, [*flags, "--output_dir", str(tmp_path / "logs")]) == 1
    assert "complete: 4 prompts, 32 tokens; 2 FAILED" in capsys.readouterr().out
    samples = read_samples(*find_runs(tmp_path / "logs"))
    assert [one.status for one in samples] == ["done", "out_of_memory", "out_of_memory", "done"]
    assert [one.prompt_tokens for one in samples] == list(map(len, prompts))
    limit_cache(monkeypatch, 0)
    assert run_script(benchmark.main, [*flags, "--output_dir", str(tmp_path / "none")]) == 1
    assert "out of memory with any prompt" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("script", [benchmark.main, correctness.main])
def test_only_prompts_that_do_not_fit_are_left_out(
    checkpoint, tmp_path, monkeypatch, capsys, script
):
    """Even if all of them are about as long as the longest."""
    prompts = ["x" * length for length in (70, 93, 75, 80, 90)]
    rows = write(tmp_path / "rows.jsonl", [{"prompt": one, "response": "x"} for one in prompts])
    limit_cache(monkeypatch, 100)
    flags = ["--model", str(checkpoint), "--dtype", "float64", "--dataset", "custom_jsonl"]
    flags += ["--data_path", str(rows), "--random_shuffle", "false", *GREEDY, "--max_steps", "16"]
    flags += ["--generation_strategy", "self_speculative", "--exit_layer", "2"]
    flags += ["--num_speculations", "2", "--output_dir", str(tmp_path / "logs")]
    assert run_script(script, flags) == 1
    out = capsys.readouterr().out
    assert ("2 FAILED" if script is benchmark.main else "3 equal, 2 out_of_memory") in out


def test_a_check_reports_a_prompt_without_memory(words, short_of_memory, tmp_path, capsys):
    short_of_memory("cuda", len("number 10:"))
    spoken = ["--exit_layer", "3", "--num_speculations", "2", "--max_steps", "8"]
    assert run_script(correctness.main, words(*spoken, prompts=12)) == 1
    assert "10 equal, 2 out_of_memory" in capsys.readouterr().out


def test_lack_of_memory_elsewhere_is_one_line(words, monkeypatch, capsys):
    def load(*_):
        raise out_of_memory("cuda")

    monkeypatch.setattr(experiment, "load_model", load)
    assert run_script(benchmark.main, words(*GREEDY)) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("error: out of memory (CUDA out of memory. Tried to allocate 20 GiB)")
    )


def test_other_errors_are_not_mistaken_for_lack_of_memory(words, monkeypatch):
    def fails(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(SingleDecoder, "_decode", fails)
    with pytest.raises(RuntimeError, match="something else"):
        run_script(benchmark.main, words(*GREEDY))
