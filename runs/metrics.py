"""Text quality of an example, and the summary of a run."""

import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

import regex
from rapidfuzz.distance import Levenshtein
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu import corpus_bleu, sentence_bleu

from runs.record import DoneSample, SampleRecord, is_done
from runs.speculation_metrics import (
    acceptance_length,
    acceptance_rate,
    drafts_by,
    plain_rounds,
)
from runs.speed_metrics import batched, ratio, speed, total_steps

ROUGE_TOKENIZER = "unicode-words"  # `words`; a change of its rule needs another name
_ROUGE = {"rouge-l": "rougeL", "rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-3": "rouge3"}
_TEXT_SCORES = (*_ROUGE, "bleu_score", "exact_match", "edit_distance")
# Scripts without spaces between words; only a dictionary could separate their words.
_SCRIPTS = ("Hani", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr")
_UNSPACED = "[" + "".join(rf"\p{{scx={script}}}" for script in _SCRIPTS) + "]"
_CHARACTER = rf"(?={_UNSPACED})[\p{{L}}\p{{Nl}}]\p{{M}}*"
# Marks, and the two joiners of Persian and Indic scripts, belong to the letter before them.
_SPACED_WORD = rf"(?:(?!{_UNSPACED})\p{{L}}[\p{{M}}\u200c\u200d]*|\p{{Nd}})+"
_WORD = regex.compile(f"{_CHARACTER}|{_SPACED_WORD}")
_UNSPACED_WORD = regex.compile(_CHARACTER)
_HAN_WORD = regex.compile(r"\p{scx=Hani}")


def words(text: str) -> list[str]:
    """Return the text's words for ROUGE, in lower case; docs/logs.md gives the rule.

    ASCII text has the words that rouge_score's own tokenizer finds; it reads no other letters.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text.lower()))


class _UnicodeWords(Tokenizer):
    """`words`, as rouge_score asks for them."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


_ROUGE_SCORER = RougeScorer(list(_ROUGE.values()), tokenizer=_UnicodeWords())


def scoring(references: Iterable[str]) -> dict[str, Any]:
    """Return the names of the tokenizers of ROUGE and BLEU for these references, for the log.

    The majority of the references' words decides, so that all texts of a run have one tokenizer.
    BLEU's is sacrebleu's own choice if that needs no other package: 13a, and zh for Chinese. Other
    texts without spaces are compared by char. `ascii_words`: all words are ASCII, which earlier
    releases read as well.
    """
    kinds = Counter(_kind(word) for reference in references for word in words(reference))
    unspaced = kinds["han"] + kinds["unspaced"]
    bleu = "13a"
    if 2 * unspaced > kinds.total():
        # Japanese always mixes in kana; Chinese has a few in names.
        bleu = "zh" if 10 * kinds["han"] > 9 * unspaced else "char"
    return {
        "rouge_tokenizer": ROUGE_TOKENIZER,
        "bleu_tokenizer": bleu,
        "ascii_words": kinds.total() == kinds["ascii"],
    }


def _kind(word: str) -> str:
    if word.isascii():
        return "ascii"
    if _HAN_WORD.match(word):
        return "han"
    return "unspaced" if _UNSPACED_WORD.match(word) else "spaced"


def text_scores(
    prediction: str, reference: str, bleu_tokenizer: str | None = None
) -> dict[str, float]:
    """Score one text: ROUGE F-measures and BLEU in [0, 1], exact match, edit distance.

    Exact match is 0 or 1 and ignores white space at both ends. It and the distance compare code
    points. `bleu_tokenizer` is the one of `scoring`, by default for this reference alone.
    """
    tokenize = bleu_tokenizer or scoring([reference])["bleu_tokenizer"]
    rouge = _ROUGE_SCORER.score(target=reference, prediction=prediction)
    return {key: rouge[name].fmeasure for key, name in _ROUGE.items()} | {
        "bleu_score": sentence_bleu(prediction, [reference], tokenize=tokenize).score / 100,
        "exact_match": float(prediction.strip() == reference.strip()),
        "edit_distance": float(Levenshtein.distance(prediction, reference)),
    }


def summarize(samples: list[SampleRecord], bleu_tokenizer: str | None = None) -> dict[str, Any]:
    """Return a run's metrics, computed from its samples alone; docs/logs.md explains the keys.

    Speed comes from all passes over the prompts; everything else comes from the first.
    `measurement` adds `throughput`.
    """
    first = [sample for sample in samples if sample.repeat == 0]
    done = list(filter(is_done, first))
    return {
        "predicted_text": _text_summary(done, bleu_tokenizer),
        "acceptance_rate": acceptance_rate(done),
        "acceptance_length": acceptance_length(done),
        "drafts_by": drafts_by(done),
        "plain_rounds": plain_rounds(done),
        **speed(list(filter(is_done, samples))),
        **batched(list(filter(is_done, samples))),
        "copied_share": _copied_share(done),
        "counts": _counts(first, done) | {"passes": _full_passes(samples)},
        "peak_memory_bytes": max((s.peak_memory_bytes or 0 for s in samples), default=0) or None,
    }


def differing_outputs(samples: list[SampleRecord]) -> int:
    """Return how many outputs of later passes differ from the first pass's of the same prompt."""
    first = {one.index: one.output_ids for one in samples if one.repeat == 0 and is_done(one)}
    later = (one for one in samples if one.repeat and is_done(one) and one.index in first)
    return sum(one.output_ids != first[one.index] for one in later)


def _full_passes(samples: list[SampleRecord]) -> int:
    """Return the number of passes that have a line for every prompt of the first."""
    lines = Counter(sample.repeat for sample in samples)
    return sum(count == lines[0] for count in lines.values())


def _text_summary(done: list[DoneSample], bleu_tokenizer: str | None) -> dict[str, float | None]:
    missing: dict[str, float | None] = dict.fromkeys(_TEXT_SCORES)
    if not done:
        return missing
    means = missing | {key: statistics.fmean(s.scores[key] for s in done) for key in done[0].scores}
    if means["bleu_score"] is None:  # the data set has no references
        return means
    predictions, references = [s.prediction for s in done], [s.reference for s in done]
    tokenize = bleu_tokenizer or scoring(references)["bleu_tokenizer"]
    bleu = corpus_bleu(predictions, [references], tokenize=tokenize)
    return means | {"bleu_score": bleu.score / 100}


def _copied_share(done: list[DoneSample]) -> dict[str, float | None]:
    """Return the share of output tokens that the prompt holds; None for logs without counts."""
    counted = [(s.copied_tokens, len(s.output_ids)) for s in done if s.copied_tokens is not None]
    shares = [copied / tokens for copied, tokens in counted]
    copied, tokens = (sum(pair[place] for pair in counted) for place in (0, 1))
    return {
        "mean": statistics.fmean(shares) if shares else None,
        "token_weighted": ratio(copied, tokens),
    }


def _counts(samples: list[SampleRecord], done: list[DoneSample]) -> dict[str, int]:
    calls = {name: int(step["calls"]) for name, step in total_steps(done).items()}
    turns = [turn for sample in done for turn in sample.turns]
    unanswered = sum(not turn["generated_tokens"] for turn in turns)
    in_turns = {"turns": len(turns), "skipped_turns": unanswered} if turns else {}
    return in_turns | {
        "prompts": len(samples),
        "skipped_prompts": sum(sample.status == "prompt_too_long" for sample in samples),
        "failed_prompts": sum(sample.status == "out_of_memory" for sample in samples),
        "prompt_tokens": sum(sample.prompt_tokens for sample in done),
        "generated_tokens": sum(len(sample.output_ids) for sample in done),
        "drafted_tokens": sum(sample.drafted_tokens for sample in done),
        "accepted_tokens": sum(sample.accepted_tokens for sample in done),
        "draft_steps": calls.get("draft", 0),
        "verify_passes": calls.get("verify", 0),
        "full_steps": calls.get("full", 0),
        "early_exit_steps": calls.get("early_exit", 0),
    }
