"""Metrics equal values that were worked out by hand."""

import math
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score import tokenize

from runs.metrics import predicted_speedup, scoring, summarize, text_scores, words
from runs.record import SampleRecord

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


# Whatever text holds beside letters, digits and their marks, all of which separates words.
_PLAIN = st.characters(codec="utf-8", exclude_categories=("L", "M", "Nd", "Nl", "Cn"))
_ASCII = st.characters(codec="ascii")
_TEXTS = st.text(st.one_of(_ASCII, st.sampled_from("aZ09 _.'-\n"), _PLAIN), max_size=60)


@given(_TEXTS)
@example("it's don't U.S. 3,000 a_b e-mail\tC++ <br/>x\x1f\x0by")
@example("it\u2019s \u201cquoted\u201d \u2014 really\u2026 \u00bd x\u00b2 5\ufe0f \u20ac9\u00a0m")
@settings(deadline=None)
def test_texts_of_ascii_words_have_the_words_that_rouge_score_finds(text):
    assert words(text) == tokenize.tokenize(text, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Müller isst CAFÉ, ŒUVRE", ["müller", "isst", "café", "œuvre"]),
        ("Привет, МИР! ΟΔΟΣ", ["привет", "мир", "οδος"]),
        ("हिन्दी में लिखा।", ["हिन्दी", "में", "लिखा"]),
        ("السَّلام عليكم ١٢", ["السَّلام", "عليكم", "١٢"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("我用PyTorch训练〇2024年。", [*"我用", "pytorch", *"训练〇", "2024", "年"]),
        ("東京タワーへ", [*"東京タワーへ"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("ខ្មែរ မြန်မာ ລາວ", ["ខ្", "មែ", "រ", "မြ", "န်", "မာ", *"ລາວ"]),
        ("👩\u200d💻 ok", ["ok"]),
    ],
)
def test_letters_of_every_script_are_words(text, expected):
    assert words(text) == expected
    assert words(unicodedata.normalize("NFD", text)) == expected


def test_an_equal_text_of_any_script_scores_as_one():
    """ROUGE-L of two equal Chinese sentences was 0, and exact match 1."""
    for text in ("今天天气很好", "東京タワーへ行こう", "สวัสดีครับ", "Привет, дорогой мой мир"):
        scores = text_scores(text, text)
        for name in ("rouge-l", "rouge-1", "rouge-2", "rouge-3", "bleu_score"):
            assert scores[name] == pytest.approx(1), (text, name)


def test_letters_that_ascii_lacks_are_no_spaces():
    """ROUGE-L of "Müller" and "M ller" was 1."""
    assert text_scores("Müller", "M ller")["rouge-l"] == 0
    assert text_scores("Müller", "Mu\u0308ller")["rouge-l"] == 1


def test_chinese_by_hand():
    # 5 of 6 characters, in order, and 2 of 4 bigrams are shared; the full stop is no word.
    scores = text_scores("今天天气很好。", "今天天气不好。")
    assert scores["rouge-l"] == pytest.approx(5 / 6)
    assert scores["rouge-2"] == pytest.approx(3 / 5)
    # For BLEU it is: 6 of 7, 4 of 6, 2 of 5, 1 of 4.
    assert scores["bleu_score"] == pytest.approx((6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25)


@pytest.mark.parametrize(
    ("references", "tokenizer"),
    [
        ([], "13a"),
        (["", " ...\n"], "13a"),
        (["It’s a café.", "Zwölf Boxkämpfer"], "13a"),
        (["Привет, мир"], "13a"),
        (["한국어 문장이다"], "13a"),
        (["今天天气很好", "我们去优の良品店吧"], "zh"),
        (["我用 PyTorch 训练"], "zh"),
        (["The word 天气 is Chinese for weather"], "13a"),
        (["東京タワーへ行こう"], "char"),
        (["สวัสดีครับ"], "char"),
        (["plain English words of one row"] * 9 + ["今天天气很好"] * 2, "13a"),
        (["plain English words of one row"] * 2 + ["今天天气很好"] * 9, "zh"),
    ],
)
def test_the_references_choose_one_bleu_tokenizer_in_any_order(references, tokenizer):
    assert scoring(references)["bleu_tokenizer"] == tokenizer
    assert scoring(references[::-1]) == scoring(references)


def test_bleu_of_a_run_has_one_tokenizer_for_all_texts():
    pairs = [("今天天气很好", "今天天气不好"), ("one two three", "one two three")]
    samples = [sample(prediction=p, reference=r) for p, r in pairs]
    by_words, by_characters = (
        summarize(samples, tokenizer)["predicted_text"]["bleu_score"] for tokenizer in ("13a", "zh")
    )
    assert by_words != pytest.approx(by_characters)
    assert summarize(samples)["predicted_text"]["bleu_score"] == by_characters
    assert text_scores(*pairs[0], "13a")["bleu_score"] == 0 < text_scores(*pairs[0])["bleu_score"]


def test_bleu_of_words_by_hand():
    """BLEU was 0.0 in every log of the older tools, which split texts into characters."""
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
    """A last token that the strategy decodes without a draft is not a full step to compare with."""
    steps = TIMED["steps"] | {"full": {"calls": 1, "seconds": 9.0}}
    made = sample(tokens=9, rounds=[(4, 4), (4, 2)], **TIMED | {"steps": steps})
    assert summarize([made])["step_seconds"]["full"] == pytest.approx(0.2)


def test_late_exit_layers_cannot_pay():
    """With exit layer 30 of 32, six drafts that are all accepted give less than 1.06x."""
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
