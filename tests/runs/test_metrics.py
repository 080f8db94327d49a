"""Metrics equal values that were worked out by hand."""

import math
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score import tokenize

from runs.metrics import scoring, summarize, text_scores, words
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


def test_skipped_prompts_are_counted_and_left_out_of_means():
    skipped = sample(status="prompt_too_long", output_ids=[], scores={}, prediction=None)
    summary = summarize([sample(), skipped])
    assert summary["counts"]["skipped_prompts"] == 1
    assert summary["counts"]["prompts"] == 2
    assert summary["counts"]["prompt_tokens"] == 7
    assert summarize([skipped])["predicted_text"]["rouge-l"] is None


def test_the_peak_of_memory_is_the_highest_sample():
    samples = [sample(peak_memory_bytes=size) for size in (None, 5, 3)]
    assert summarize(samples)["peak_memory_bytes"] == 5
    assert summarize([])["peak_memory_bytes"] is None


def test_copied_tokens_are_shares_of_the_output():
    samples = [sample(tokens=4, copied_tokens=3), sample(tokens=12, copied_tokens=0)]
    found = summarize(samples)["copied_share"]
    assert found == {"mean": pytest.approx(3 / 8), "token_weighted": pytest.approx(3 / 16)}
    older = {"mean": None, "token_weighted": None}
    assert summarize([sample()])["copied_share"] == summarize([])["copied_share"] == older


def test_texts_without_references_have_no_scores():
    """An empty reference of a data set that has none made every score 0."""
    found = summarize([sample(scores={}), sample(scores={})])
    assert found["predicted_text"] == dict.fromkeys(SCORED)
    assert found["tokens_per_second"]["mean"] == pytest.approx(4)
    executed = summarize([sample(scores={"pass@1": 1.0})])["predicted_text"]
    assert executed == dict.fromkeys(SCORED) | {"pass@1": 1}


def test_the_first_token_of_every_turn_belongs_to_its_prefill():
    turns = [
        {"generated_tokens": count, "prefill_seconds": seconds}
        for count, seconds in ((5, 0.1), (4, 0.3), (0, None))
    ]
    spoken = sample(tokens=9, decode=1.0, turns=turns)
    assert spoken.decoded_tokens == 7
    summary = summarize([spoken, sample(tokens=3, decode=2.0)])
    assert summary["tokens_per_second"]["token_weighted"] == pytest.approx((7 + 2) / 3)
    assert (summary["counts"]["turns"], summary["counts"]["skipped_turns"]) == (3, 1)
    alone = summarize([spoken])["time_to_first_token"]
    assert (alone["mean"], alone["p95"]) == (pytest.approx(0.2), pytest.approx(0.29))
    assert "turns" not in summarize([sample()])["counts"]
