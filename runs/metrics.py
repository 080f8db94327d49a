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

from runs.record import SampleRecord

ROUGE_TOKENIZER = "unicode-words"  # `words`; a change of its rule needs another name
_ROUGE = {"rouge-l": "rougeL", "rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-3": "rouge3"}
# Scripts without spaces between words: their words are known to dictionaries alone.
_SCRIPTS = ("Hani", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr")
_UNSPACED = "[" + "".join(rf"\p{{scx={script}}}" for script in _SCRIPTS) + "]"
_CHARACTER = rf"(?={_UNSPACED})[\p{{L}}\p{{Nl}}]\p{{M}}*"
# Marks, and the two joiners of Persian and Indic scripts, belong to the letter before them.
_SPACED_WORD = rf"(?:(?!{_UNSPACED})\p{{L}}[\p{{M}}\u200c\u200d]*|\p{{Nd}})+"
_WORD = regex.compile(f"{_CHARACTER}|{_SPACED_WORD}")
_UNSPACED_WORD = regex.compile(_CHARACTER)
_HAN_WORD = regex.compile(r"\p{scx=Hani}")


def words(text: str) -> list[str]:
    """The text's words for ROUGE: runs of letters and digits of any script, in lower case.

    - ASCII text has the words that rouge_score's own tokenizer finds, which knows no other letters.
    - Chinese, Japanese, Thai, Lao, Khmer and Burmese do not separate words: each letter with its
      marks is one.
    - Letters are compared in the normal form NFC, so that an accent may be a character of its own.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text.lower()))


class _UnicodeWords(Tokenizer):
    """`words`, as rouge_score asks for them."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


_ROUGE_SCORER = RougeScorer(list(_ROUGE.values()), tokenizer=_UnicodeWords())


def scoring(references: Iterable[str]) -> dict[str, Any]:
    """How texts are compared with these references, for the log: the names of both tokenizers.

    BLEU's is sacrebleu's own choice where that needs no other package: 13a, and zh for Chinese.
    Other texts without spaces are compared by char. The references' words decide, most of them
    together, so that all texts of a run have one tokenizer. `ascii_words`: the references have no
    other words than earlier releases saw, too.
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
    """Scores one text: ROUGE F-measures and BLEU in [0, 1], exact match, edits in characters.

    Exact match is 0 or 1; texts are equal where they are so without white space at their ends, by
    code points, as is the distance. `bleu_tokenizer` is `scoring`'s, by default for this text.
    """
    tokenize = bleu_tokenizer or scoring([reference])["bleu_tokenizer"]
    rouge = _ROUGE_SCORER.score(target=reference, prediction=prediction)
    return {key: rouge[name].fmeasure for key, name in _ROUGE.items()} | {
        "bleu_score": sentence_bleu(prediction, [reference], tokenize=tokenize).score / 100,
        "exact_match": float(prediction.strip() == reference.strip()),
        "edit_distance": float(Levenshtein.distance(prediction, reference)),
    }


def summarize(samples: list[SampleRecord], bleu_tokenizer: str | None = None) -> dict[str, Any]:
    """A run's metrics, from its samples alone.

    - `predicted_text`: means of the texts' scores; BLEU over the whole corpus, by the tokenizer
      that `scoring` names for it, or for the references of these samples.
    - `acceptance_rate`: `mean` per prompt, `token_weighted` accepted / drafted over all;
      `by_position` the share of first, second, ... drafts of a round that were accepted.
    - `total_time`, `time_per_token`, `tokens_per_second`: per prompt; seconds, the latter two over
      decoding alone. `tokens_per_second` also `token_weighted`: all tokens by all seconds.
    - `step_seconds`: one draft, verify, full or early_exit pass with its choice of a token.
    - `speedup_over_full_steps`: decoding by full steps / this run's decoding; `predicted` by
      (k r + 1) / (k c + v), `bound` the same were every draft accepted, `measured` against the
      full steps timed in the same run.
    - `round_overhead`: decoding seconds beyond those of all passes, as a fraction of the latter.
    - `counts` of prompts, tokens and passes; prompts that were skipped are longer than the model's
      positions, and those that failed found too little memory.
    - `peak_memory_bytes`: the most that the process held.
    - `throughput`, which `throughput` adds.
    - `timed`: ranks and threads of the prompts that everything in seconds is of, and their number.
      A run that went on with other threads is timed by those prompts that are most.
    """
    done = [sample for sample in samples if sample.status == "done"]
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
    """What all processes did together in the seconds since the latest start began to decode.

    The examples with these `indices` were left to its `ranks` processes. Prompts, scores and files
    take their part of the time, as does whatever process ends last.
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
    """(k r + 1) / (k c + v): tokens a speculative round yields over its cost in full steps.

    k tokens drafted a round, r the share accepted, c a draft step and v a verify pass, both in full
    steps (Leviathan et al. 2023, with a verify pass that need not cost one step).
    """
    return (k * r + 1) / (k * c + v)


def _timed_alike(done: list[SampleRecord]) -> list[SampleRecord]:
    """The samples of the most common ranks and threads, whose seconds may be averaged."""
    groups: dict[tuple[int, int], list[SampleRecord]] = {}
    for sample in done:
        groups.setdefault((sample.ranks, sample.threads), []).append(sample)
    return max(groups.values(), key=len, default=[])


def _decoded(sample: SampleRecord) -> int:
    """Tokens that decoding made: all but the first."""
    return len(sample.output_ids) - 1


def _seconds_per_token(sample: SampleRecord) -> float:
    return sample.decode_seconds / _decoded(sample)


def _text_summary(done: list[SampleRecord], bleu_tokenizer: str | None) -> dict[str, float | None]:
    if not done:
        return dict.fromkeys([*_ROUGE, "bleu_score", "exact_match", "edit_distance"])
    means = {key: statistics.fmean(s.scores[key] for s in done) for key in done[0].scores}
    predictions, references = [s.prediction for s in done], [s.reference for s in done]
    tokenize = bleu_tokenizer or scoring(references)["bleu_tokenizer"]
    bleu = corpus_bleu(predictions, [references], tokenize=tokenize)
    return means | {"bleu_score": bleu.score / 100}


def _acceptance(done: list[SampleRecord]) -> dict[str, float | None]:
    drafting = [sample for sample in done if sample.drafted_tokens]
    accepted = sum(s.accepted_tokens for s in drafting)
    rates = _spread(s.accepted_tokens / s.drafted_tokens for s in drafting)
    return rates | {
        "token_weighted": _ratio(accepted, sum(s.drafted_tokens for s in drafting)),
        "by_position": _acceptance_by_position(drafting),
    }


def _acceptance_by_position(drafting: list[SampleRecord]) -> list[float] | None:
    """Of the rounds that drafted a j-th token, the share that accepted it; j = 1, 2, ..."""
    rounds = Counter(tuple(pair) for sample in drafting for pair in sample.rounds)
    longest = max((drafted for drafted, _ in rounds), default=0)
    shares = []
    for position in range(1, longest + 1):
        tried = sum(count for (drafted, _), count in rounds.items() if drafted >= position)
        held = sum(count for (_, accepted), count in rounds.items() if accepted >= position)
        shares.append(held / tried)
    return shares or None


def _total_steps(done: list[SampleRecord]) -> dict[str, dict[str, float]]:
    totals: dict[str, dict[str, float]] = {}
    for sample in done:
        for name, step in sample.steps.items():
            total = totals.setdefault(name, {"calls": 0, "seconds": 0.0})
            total["calls"] += step["calls"]
            total["seconds"] += step["seconds"]
    return totals


def _step_seconds(
    done: list[SampleRecord], steps: dict[str, dict[str, float]]
) -> dict[str, float | None]:
    yardstick = [sample.full_step for sample in done if sample.full_step]
    full = yardstick or ([steps["full"]] if "full" in steps else [])
    mean = {name: _ratio(step["seconds"], step["calls"]) for name, step in steps.items()}
    return {
        "draft": mean.get("draft"),
        "verify": mean.get("verify"),
        "full": _ratio(sum(s["seconds"] for s in full), sum(s["calls"] for s in full)),
        "early_exit": mean.get("early_exit"),
    }


def _speedup(
    done: list[SampleRecord], step_seconds: dict[str, float | None]
) -> dict[str, float | None]:
    drafted = sum(sample.drafted_tokens for sample in done)
    if not drafted:
        return {"predicted": None, "bound": None, "measured": None}
    k = drafted / sum(len(sample.rounds) for sample in done)
    r = sum(sample.accepted_tokens for sample in done) / drafted
    full = step_seconds["full"]
    c, v = step_seconds["draft"] / full, step_seconds["verify"] / full
    by_full_steps = sum(map(_decoded, done)) * full
    return {
        "predicted": predicted_speedup(k, r, c, v),
        "bound": predicted_speedup(k, 1, c, v),
        "measured": by_full_steps / sum(sample.decode_seconds for sample in done),
    }


def _round_overhead(done: list[SampleRecord], steps: dict[str, dict[str, float]]) -> float | None:
    passes = sum(step["seconds"] for step in steps.values())
    return sum(sample.decode_seconds for sample in done) / passes - 1 if passes else None


def _counts(
    samples: list[SampleRecord], done: list[SampleRecord], steps: dict[str, dict[str, float]]
) -> dict[str, int]:
    return {
        "prompts": len(samples),
        "skipped_prompts": sum(sample.status == "prompt_too_long" for sample in samples),
        "failed_prompts": sum(sample.status == "out_of_memory" for sample in samples),
        "prompt_tokens": sum(sample.prompt_tokens for sample in done),
        "generated_tokens": sum(len(sample.output_ids) for sample in done),
        "drafted_tokens": sum(sample.drafted_tokens for sample in done),
        "accepted_tokens": sum(sample.accepted_tokens for sample in done),
        "draft_steps": _calls(steps, "draft"),
        "verify_passes": _calls(steps, "verify"),
        "full_steps": _calls(steps, "full"),
        "early_exit_steps": _calls(steps, "early_exit"),
    }


def _calls(steps: dict[str, dict[str, float]], name: str) -> int:
    return int(steps.get(name, {}).get("calls", 0))


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
