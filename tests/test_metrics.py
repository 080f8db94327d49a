"""Every metric against a value worked out by hand."""

import math

import pytest

from metrics import predicted_speedup, summarize, text_scores
from run_log import SampleRecord

SCORED = dict.fromkeys(text_scores("a", "b"), 0.0)


def sample(tokens=5, rounds=(), decode=1.0, steps=None, **changes):
    values = {
        "index": 0,
        "example_id": "x",
        "prompt_tokens": 7,
        "reference": "",
        "prediction": "",
        "output_ids": list(range(tokens)),
        "prefill_seconds": 0.5,
        "decode_seconds": decode,
        "steps": steps or {},
        "rounds": list(rounds),
        "scores": SCORED,
    }
    return SampleRecord(**values | changes)


def test_rouge_by_hand():
    # 3 of 4 words, 2 of 3 bigrams and 1 of 2 trigrams of each text are shared, in order.
    scores = text_scores("the cat sat down", "the cat sat up")
    assert scores["rouge-1"] == pytest.approx(3 / 4)
    assert scores["rouge-2"] == pytest.approx(2 / 3)
    assert scores["rouge-3"] == pytest.approx(1 / 2)
    assert scores["rouge-l"] == pytest.approx(3 / 4)
    # Two of three words in order, out of 3 and 5: precision 2/3, recall 2/5.
    assert text_scores("b x d", "a b c d e")["rouge-l"] == pytest.approx(1 / 2)


def test_bleu_of_words_by_hand():
    """0.0 in every log of older tools, which took the text for a list of characters."""
    # n-gram precisions 4/5, 3/4, 2/3, 1/2 and no brevity penalty.
    bleu = text_scores("a b c d x", "a b c d y")["bleu_score"]
    assert bleu == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # A prediction of 4 words that all match a reference of 6: brevity penalty exp(1 - 6/4).
    short = text_scores("a b c d", "a b c d e f")["bleu_score"]
    assert short == pytest.approx(math.exp(1 - 6 / 4))


def test_bleu_of_a_corpus_pools_its_counts():
    pairs = [("a b c d x", "a b c d y"), ("a b c d", "a b c d e f")]
    samples = [sample(prediction=p, reference=r, scores=text_scores(p, r)) for p, r in pairs]
    # Precisions 8/9, 6/7, 4/5, 2/3; 9 words against 11.
    expected = math.exp(1 - 11 / 9) * (8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25
    assert summarize(samples)["predicted_text"]["bleu_score"] == pytest.approx(expected)


def test_exact_match_is_equality_and_not_edit_distance():
    assert text_scores(" yes\n", "yes")["exact_match"] == 1
    assert text_scores("yes", "Yes")["exact_match"] == 0
    assert text_scores("kitten", "sitting")["edit_distance"] == 3
    assert text_scores("kitten", "sitting")["exact_match"] == 0
    assert text_scores("same", "same")["edit_distance"] == 0


def test_empty_texts_count():
    scores = text_scores("", "something")
    assert scores == SCORED | {"edit_distance": 9}
    assert text_scores("", "")["exact_match"] == 1
    summary = summarize(
        [sample(tokens=1, scores=scores), sample(scores=text_scores("same", "same"))]
    )
    assert summary["predicted_text"]["exact_match"] == 0.5
    assert summary["counts"]["prompts"] == 2


def test_speed_leaves_the_prefill_and_its_token_out():
    summary = summarize([sample(tokens=5, decode=2.0), sample(tokens=9, decode=1.0)])
    assert summary["time_per_token"]["mean"] == pytest.approx((2 / 4 + 1 / 8) / 2)
    assert summary["tokens_per_second"]["mean"] == pytest.approx((4 / 2 + 8 / 1) / 2)
    assert summary["tokens_per_second"]["token_weighted"] == pytest.approx(12 / 3)
    assert summary["total_time"]["mean"] == pytest.approx((2.5 + 1.5) / 2)


def test_one_token_outputs_have_no_speed_but_count_in_time():
    summary = summarize([sample(tokens=1, decode=0.0)])
    assert summary["tokens_per_second"] == {
        "mean": None,
        "median": None,
        "standard_deviation": None,
        "token_weighted": None,
    }
    assert summary["total_time"]["mean"] == 0.5


def test_acceptance_by_token_and_by_prompt():
    samples = [sample(rounds=[(4, 4), (4, 2)], **TIMED), sample(rounds=[(2, 0)], **TIMED)]
    acceptance = summarize(samples)["acceptance_rate"]
    assert acceptance["mean"] == pytest.approx((6 / 8 + 0 / 2) / 2)
    assert acceptance["token_weighted"] == pytest.approx(6 / 10)


TIMED = {
    "steps": {"draft": {"calls": 8, "seconds": 0.8}, "verify": {"calls": 2, "seconds": 0.4}},
    "full_step": {"calls": 2, "seconds": 0.4},
}


def test_plain_decoding_has_no_acceptance_and_no_speedup():
    summary = summarize([sample(steps={"full": {"calls": 4, "seconds": 0.8}})])
    assert set(summary["acceptance_rate"].values()) == {None}
    assert set(summary["speedup_over_full_steps"].values()) == {None}
    assert summary["step_seconds"] == {
        "draft": None,
        "verify": None,
        "full": pytest.approx(0.2),
        "early_exit": None,
    }


def test_no_draft_at_all_divides_by_nothing():
    """One-token outputs leave nothing to draft."""
    summary = summarize([sample(tokens=1, decode=0.0)])
    assert summary["acceptance_rate"]["mean"] is None
    assert summary["counts"]["drafted_tokens"] == 0


def test_predicted_and_measured_speedup_by_hand():
    # Two rounds of 4 drafts, 6 accepted: 1 + 8 tokens. A draft step takes 0.1 s, a verify pass and
    # a full step 0.2 s each: k = 4, r = 3/4, c = 1/2, v = 1.
    made = sample(tokens=9, rounds=[(4, 4), (4, 2)], decode=1.25, **TIMED)
    summary = summarize([made])
    assert summary["step_seconds"]["draft"] == pytest.approx(0.1)
    speedup = summary["speedup_over_full_steps"]
    assert speedup["predicted"] == pytest.approx((4 * 0.75 + 1) / (4 * 0.5 + 1))
    assert speedup["measured"] == pytest.approx(8 * 0.2 / 1.25)
    assert summary["round_overhead"] == pytest.approx(1.25 / 1.2 - 1)
    counts = summary["counts"]
    assert (counts["draft_steps"], counts["verify_passes"], counts["full_steps"]) == (8, 2, 0)


def test_full_steps_of_a_speculative_run_are_those_of_the_yardstick():
    """Not the odd last token of an output, which the strategy decodes plainly."""
    steps = TIMED["steps"] | {"full": {"calls": 1, "seconds": 9.0}}
    made = sample(tokens=9, rounds=[(4, 4), (4, 2)], **TIMED | {"steps": steps})
    assert summarize([made])["step_seconds"]["full"] == pytest.approx(0.2)


def test_late_exit_layers_cannot_pay():
    """Exit layer 30 of 32 with six drafts stays below 1.06x even when all are accepted."""
    assert predicted_speedup(k=6, r=1.0, c=30 / 32, v=1.0) < 1.06


def test_skipped_prompts_are_counted_and_left_out_of_means():
    skipped = sample(status="prompt_too_long", output_ids=[], scores={}, prediction=None)
    summary = summarize([sample(), skipped])
    assert summary["counts"]["skipped_prompts"] == 1
    assert summary["counts"]["prompts"] == 2
    assert summary["counts"]["prompt_tokens"] == 7
    assert summarize([skipped])["predicted_text"]["rouge-l"] is None


def speculative(**changes):
    steps = {
        "draft": {"calls": 6, "seconds": 0.3},
        "verify": {"calls": 2, "seconds": 0.4},
    }
    values = {"steps": steps, "full_step": {"calls": 2, "seconds": 0.3}}
    return sample(**{"rounds": [(3, 1), (3, 2)]} | values | changes)


def test_seconds_of_other_threads_are_not_averaged():
    slow = [speculative(index=index, threads=1, decode_seconds=9.0) for index in range(2)]
    fast = [speculative(index=2 + index, threads=4, decode_seconds=1.0) for index in range(3)]
    found = summarize(slow + fast)
    alone = summarize(fast)
    assert found["timed"] == {"ranks": 1, "threads": 4, "prompts": 3}
    for key in ("tokens_per_second", "time_per_token", "decode_seconds", "step_seconds"):
        assert found[key] == alone[key]
    assert found["counts"]["prompts"] == 5
    assert found["counts"]["drafted_tokens"] == 5 * slow[0].drafted_tokens


def test_acceptance_falls_with_the_draft_position():
    sample = speculative(rounds=[(3, 3), (3, 1), (3, 0), (2, 2), (0, 0)])
    found = summarize([sample])["acceptance_rate"]["by_position"]
    assert found == [3 / 4, 2 / 4, 1 / 3]
    assert summarize([])["acceptance_rate"]["by_position"] is None


def test_the_bound_is_the_prediction_with_every_draft_accepted():
    found = summarize([speculative()])["speedup_over_full_steps"]
    everything = speculative(rounds=[(k, k) for k, _ in speculative().rounds])
    assert found["bound"] == summarize([everything])["speedup_over_full_steps"]["predicted"]
    assert found["predicted"] < found["bound"]


def test_the_peak_of_memory_is_the_highest_sample():
    samples = [speculative(peak_memory_bytes=size) for size in (None, 5, 3)]
    assert summarize(samples)["peak_memory_bytes"] == 5
    assert summarize([])["peak_memory_bytes"] is None
