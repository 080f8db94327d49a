"""Metrics are made of sums; what was not measured is None."""

import math

import pytest

from runs.likelihood import Sums, likelihood, total


def line(tokens, text_bytes, nats, *compared):
    values = dict(zip(("kl_nats", "agreeing"), compared, strict=False))
    return {"tokens": tokens, "bytes": text_bytes, "nats": nats} | values


def test_metrics_weigh_every_token_alike():
    found = likelihood([line(2, 4, 3.0, 0.5, 1), None, line(6, 16, 5.0, 1.5, 5)])
    assert found == {
        "perplexity": pytest.approx(math.e),
        "bits_per_byte": pytest.approx(8 / math.log(2) / 20),
        "nats_per_token": 1.0,
        "kl": 0.25,
        "agreement": 0.75,
        "tokens": 8,
        "bytes": 20,
        "prompts": 2,
    }


def test_a_model_that_guesses_bytes_needs_eight_bits_for_each():
    found = likelihood([line(10, 10, 10 * math.log(256))])
    assert found["perplexity"] == pytest.approx(256)
    assert found["bits_per_byte"] == pytest.approx(8)


def test_what_some_lines_lack_is_none():
    found = likelihood([line(2, 4, 3.0, 0.5, 1), line(6, 16, 5.0)])
    assert (found["kl"], found["agreement"]) == (None, None)
    assert found["nats_per_token"] == 1.0


def test_without_lines_everything_is_none_and_counts_are_0():
    found = likelihood([None])
    assert {name for name, value in found.items() if value is not None} == {
        *("tokens", "bytes", "prompts")
    }
    assert (found["tokens"], found["bytes"], found["prompts"]) == (0, 0, 0)


def test_a_perplexity_beyond_all_numbers_is_none():
    found = likelihood([line(1, 1, 1000.0)])
    assert (found["perplexity"], found["nats_per_token"]) == (None, 1000.0)


def test_passages_of_one_text_add_up():
    assert total([Sums(1, 2.0, 0.5, 1), Sums(2, 3.0, 1.0, 0)]) == Sums(3, 5.0, 1.5, 1)
    assert total([Sums(1, 2.0), Sums(2, 3.0)]) == Sums(3, 5.0)
