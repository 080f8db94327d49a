"""Text quality, speed and acceptance, from an example's text up to a run's summary."""

import statistics
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import regex
from rapidfuzz.distance import Levenshtein
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu import corpus_bleu, sentence_bleu

from runs.record import DoneSample, SampleRecord, is_done

ROUGE_TOKENIZER = "unicode-words"  # `words`; a change of its rule needs another name
_ROUGE = {"rouge-l": "rougeL", "rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-3": "rouge3"}
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

    All seconds come from the largest group of prompts with one rank and thread count.
    `measurement` adds `throughput`.
    """
    done = [sample for sample in samples if is_done(sample)]
    timed = _timed_alike(done)
    steps = _total_steps(timed)
    step_seconds = _step_seconds(timed, steps)
    decoded, seconds = sum(map(_decoded, timed)), sum(s.decode_seconds for s in timed)
    return {
        "predicted_text": _text_summary(done, bleu_tokenizer),
        "acceptance_rate": _acceptance(done),
        "total_time": _spread(s.prefill_seconds + s.decode_seconds for s in timed),
        "time_per_token": _spread(_seconds_per_token(s) for s in timed if _decoded(s)),
        "tokens_per_second": _spread(1 / _seconds_per_token(s) for s in timed if _decoded(s))
        | {"token_weighted": _ratio(decoded, seconds) if decoded else None},
        "prefill_seconds": _spread(s.prefill_seconds for s in timed),
        "decode_seconds": _spread(s.decode_seconds for s in timed),
        "step_seconds": step_seconds,
        "speedup_over_full_steps": _speedup(timed, step_seconds),
        "round_overhead": _round_overhead(timed, steps),
        "counts": _counts(samples, done, _total_steps(done)),
        "peak_memory_bytes": max((s.peak_memory_bytes or 0 for s in samples), default=0) or None,
        "timed": {
            "ranks": timed[0].ranks if timed else None,
            "threads": timed[0].threads if timed else None,
            "prompts": len(timed),
        },
    }


def throughput(
    samples: list[SampleRecord], indices: Collection[int], seconds: float, ranks: int
) -> dict[str, float]:
    """Return the joint speed of the latest start's processes, which decoded these `indices`.

    The seconds include scores, files and the wait for the last process.
    """
    chosen = set(indices)
    new = [sample for sample in samples if sample.index in chosen]
    tokens = sum(len(sample.output_ids) for sample in new)
    return {
        "ranks": ranks,
        "prompts": len(new),
        "generated_tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }


def predicted_speedup(k: float, r: float, c: float, v: float) -> float:
    """Return (k r + 1) / (k c + v): the tokens of a speculative round / its cost in full steps.

    k: tokens drafted per round; r: the share accepted; c, v: a draft step and a verify pass, in
    full steps (Leviathan et al. 2023, where v is 1).
    """
    return (k * r + 1) / (k * c + v)


def _timed_alike(done: list[DoneSample]) -> list[DoneSample]:
    """Return the largest group of samples with one rank and thread count."""
    groups: dict[tuple[int, int], list[DoneSample]] = {}
    for sample in done:
        groups.setdefault((sample.ranks, sample.threads), []).append(sample)
    return max(groups.values(), key=len, default=[])


def _decoded(sample: SampleRecord) -> int:
    """Return the tokens that decoding yielded: all but the first."""
    return len(sample.output_ids) - 1


def _seconds_per_token(sample: DoneSample) -> float:
    return sample.decode_seconds / _decoded(sample)


def _text_summary(done: list[DoneSample], bleu_tokenizer: str | None) -> dict[str, float | None]:
    if not done:
        return dict.fromkeys([*_ROUGE, "bleu_score", "exact_match", "edit_distance"])
    means: dict[str, float | None] = {
        key: statistics.fmean(s.scores[key] for s in done) for key in done[0].scores
    }
    predictions, references = [s.prediction for s in done], [s.reference for s in done]
    tokenize = bleu_tokenizer or scoring(references)["bleu_tokenizer"]
    bleu = corpus_bleu(predictions, [references], tokenize=tokenize)
    return means | {"bleu_score": bleu.score / 100}


def _acceptance(done: list[DoneSample]) -> dict[str, float | list[float] | None]:
    drafting = [sample for sample in done if sample.drafted_tokens]
    accepted = sum(s.accepted_tokens for s in drafting)
    rates: dict[str, Any] = _spread(s.accepted_tokens / s.drafted_tokens for s in drafting)
    return rates | {
        "token_weighted": _ratio(accepted, sum(s.drafted_tokens for s in drafting)),
        "by_position": _acceptance_by_position(drafting),
    }


def _acceptance_by_position(drafting: list[DoneSample]) -> list[float] | None:
    """Return the share of j-th drafts that were accepted, for j = 1, 2, ..."""
    rounds = Counter(tuple(pair) for sample in drafting for pair in sample.rounds)
    longest = max((drafted for drafted, _ in rounds), default=0)
    shares = []
    for position in range(1, longest + 1):
        tried = sum(count for (drafted, _), count in rounds.items() if drafted >= position)
        held = sum(count for (_, accepted), count in rounds.items() if accepted >= position)
        shares.append(held / tried)
    return shares or None


def _total_steps(done: list[DoneSample]) -> dict[str, dict[str, float]]:
    totals: dict[str, dict[str, float]] = {}
    for sample in done:
        for name, step in sample.steps.items():
            total = totals.setdefault(name, {"calls": 0, "seconds": 0.0})
            total["calls"] += step["calls"]
            total["seconds"] += step["seconds"]
    return totals


def _step_seconds(
    done: list[DoneSample], steps: dict[str, dict[str, float]]
) -> dict[str, float | None]:
    mean = {name: _ratio(step["seconds"], step["calls"]) for name, step in steps.items()}
    full = [sample.full_step for sample in done if sample.full_step]
    if full:
        mean["full"] = _ratio(sum(s["seconds"] for s in full), sum(s["calls"] for s in full))
    return {name: mean.get(name) for name in ("draft", "verify", "full", "early_exit")}


def _speedup(
    done: list[DoneSample], step_seconds: dict[str, float | None]
) -> dict[str, float | None]:
    drafted = sum(sample.drafted_tokens for sample in done)
    draft, verify, full = (step_seconds[name] for name in ("draft", "verify", "full"))
    if not (drafted and draft and verify and full):
        return {"predicted": None, "bound": None, "measured": None}
    k = drafted / sum(len(sample.rounds) for sample in done)
    r = sum(sample.accepted_tokens for sample in done) / drafted
    c, v = draft / full, verify / full
    by_full_steps = sum(map(_decoded, done)) * full
    return {
        "predicted": predicted_speedup(k, r, c, v),
        "bound": predicted_speedup(k, 1, c, v),
        "measured": by_full_steps / sum(sample.decode_seconds for sample in done),
    }


def _round_overhead(done: list[DoneSample], steps: dict[str, dict[str, float]]) -> float | None:
    passes = sum(step["seconds"] for step in steps.values())
    return sum(sample.decode_seconds for sample in done) / passes - 1 if passes else None


def _counts(
    samples: list[SampleRecord], done: list[DoneSample], steps: dict[str, dict[str, float]]
) -> dict[str, int]:
    calls = {name: int(step["calls"]) for name, step in steps.items()}
    return {
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


def _spread(values: Iterable[float]) -> dict[str, float | None]:
    found = list(values)
    if not found:
        return {"mean": None, "median": None, "standard_deviation": None}
    return {
        "mean": statistics.fmean(found),
        "median": statistics.median(found),
        "standard_deviation": statistics.stdev(found) if len(found) > 1 else None,
    }


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
