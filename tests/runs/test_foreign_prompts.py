"""Prompts under odd tokenizers, chat templates and settings of checkpoints."""

import datetime
import json
import shutil

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.utils import chat_template_utils

from models.tokens import text_ids
from tests.conftest import ANGULAR, GREEDY, SPECULATIVE, tiny_config
from tests.spaced_tokenizers import spaced_tokenizer

DATED = "{{ strftime_now('%d %B %Y') }}: {% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def copied(checkpoint, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(checkpoint, folder)
    return folder


@pytest.fixture
def today(monkeypatch):
    """Sets the day that chat templates see."""

    def set_day(day):
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(2026, 7, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return set_day


@pytest.mark.parametrize("pruning", [[], ANGULAR])
def test_a_run_with_the_date_in_its_template_is_another_run_the_next_day(
    run, copied, today, pruning
):
    (copied / "chat_template.jinja").write_text(DATED)
    flags = ["--model", str(copied), "--apply_chat_template", "true", *GREEDY, *pruning]
    found = []
    for day in (1, 1, 2):
        today(day)
        code, record, samples = run(*flags)
        assert code == 0
        found.append((record, samples))
    (first, one), (again, same), (next_day, other) = found
    assert first.run_id == again.run_id != next_day.run_id
    assert first.data["evaluation"] == next_day.data["evaluation"]
    assert [s.output_ids for s in one] == [s.output_ids for s in same]
    differing = {key for key in first.identity if first.identity[key] != next_day.identity[key]}
    assert differing == {"prompt_tokens_fingerprint"} | ({"plan"} if pruning else set())


def test_a_token_beyond_the_embeddings_is_refused_by_name(run, copied, capsys):
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<fits>", "[PAD]"]})
    tokenizer.save_pretrained(copied)
    rows = copied.parent / "padded.jsonl"
    rows.write_text('{"prompt": "a[PAD]", "response": "b"}\n')
    assert run("--model", str(copied), *GREEDY, path=rows)[:2] == (2, None)
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: --model {copied}: its tokenizer makes token 258 ('[PAD]') of a prompt" in error
    assert error.endswith("and the model has embeddings for 258 tokens")


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_prompt_does_not_end_with_the_end_token_that_a_tokenizer_adds(
    run, tmp_path, capsys, kind
):
    tokenizer = spaced_tokenizer(kind, adds_end=True)
    config = tiny_config(vocab_size=len(tokenizer), num_hidden_layers=2, eos_token_id=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    code, _, samples = run("--model", str(tmp_path / "model"), *GREEDY)
    assert code == 0
    plain = spaced_tokenizer(kind)("number 0:")["input_ids"]
    assert text_ids(tokenizer, "number 0:") == plain
    assert samples[0].prompt_tokens == len(plain)
    warned = capsys.readouterr().err
    assert warned.count("not used: the </s> that its tokenizer puts behind every text") == 1
    # An end token in the text stays.
    assert text_ids(tokenizer, "a</s>") == [*spaced_tokenizer(kind)("a")["input_ids"], 2]
    assert text_ids(tokenizer, "") == [1]


def test_settings_of_a_checkpoint_that_runs_do_not_follow_are_named_once(run, copied, capsys):
    path = copied / "generation_config.json"
    settings = {"repetition_penalty": 1.3, "temperature": 0.6, "do_sample": True, "top_p": 1.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    flags = ["--exit_layer", "3", *SPECULATIVE]
    assert run("--model", str(copied), *GREEDY, *flags)[0] == 0
    (line,) = (one for one in capsys.readouterr().err.splitlines() if "not used" in one)
    assert line == (
        f"warning: {copied}: the flags alone decide how to decode; not used: temperature 0.6, "
        "repetition_penalty 1.3 of its generation_config.json"
    )


def test_settings_of_sampling_that_a_checkpoint_does_not_ask_for_are_not_named(run, copied, capsys):
    path = copied / "generation_config.json"
    settings = {"temperature": 0.9, "top_p": 0.6, "top_k": 50}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert run("--model", str(copied), *GREEDY)[0] == 0
    assert "not used" not in capsys.readouterr().err


def test_a_checkpoint_without_settings_of_its_own_is_not_warned_of(run, capsys):
    assert run(*GREEDY)[0] == 0
    assert "not used" not in capsys.readouterr().err
