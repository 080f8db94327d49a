"""A run measures scores and copied tokens of each example beside its speed."""

import pytest

from runs.copied_tokens import copied_tokens
from tests.conftest import GREEDY, SPECULATIVE, write

QUESTIONS = [{"question": f"How many? {n}", "answer": f"So {n}.\n#### {n},000"} for n in (1, 2)]


@pytest.fixture
def spoken_text(monkeypatch):
    """Sets the text of all answers."""

    def say(text):
        monkeypatch.setattr("self_speculation.generator_base.StopRule.text", lambda *_: text)

    return say


def test_answers_are_compared_as_numbers(run, tmp_path, spoken_text, capsys):
    spoken_text("It is $2000.00, I think.")
    path = write(tmp_path / "questions.jsonl", QUESTIONS)
    code, record, samples = run("--dataset", "gsm8k", *GREEDY, path=path, samples="2")
    assert code == 0
    assert [sample.scores["numeric_match"] for sample in samples] == [0, 1]
    assert record.metrics["predicted_text"]["numeric_match"] == 0.5
    assert "exact match 0.000, numeric match 0.500\n" in capsys.readouterr().out
    _, same, _ = run("--dataset", "gsm8k", *GREEDY, "--numeric_match", "true", path=path)
    assert same.run_id == record.run_id


def test_own_rows_are_compared_as_numbers_if_asked(run, spoken_text):
    spoken_text("item 1.0")
    _, plain, samples = run(*GREEDY)
    assert "numeric_match" not in samples[0].scores
    _, record, samples = run(*GREEDY, "--numeric_match", "true")
    assert [sample.scores["numeric_match"] for sample in samples] == [0, 1, 0]
    assert record.run_id != plain.run_id
    assert record.identity == plain.identity | {"numeric_match": True}


@pytest.mark.parametrize("flags", [[], [*SPECULATIVE, "--exit_layer", "3"]])
def test_copied_tokens_are_those_of_prompt_and_output(run, tokenizer, flags):
    _, record, samples = run(*GREEDY, *flags)
    for sample in samples:
        ids = tokenizer(f"number {sample.index}:")["input_ids"]
        assert sample.copied_tokens == copied_tokens(ids, sample.output_ids)
    share = sum(s.copied_tokens for s in samples) / sum(len(s.output_ids) for s in samples)
    assert record.metrics["copied_share"]["token_weighted"] == share


def test_prompts_that_are_not_read_have_no_copied_tokens(run, tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "x" * n, "response": ""} for n in (300, 3)])
    skipped, done = run(*GREEDY, path=path, samples="2")[2]
    assert (skipped.copied_tokens, done.copied_tokens is None) == (None, False)
