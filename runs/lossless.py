"""Self-speculative decoding held against plain decoding of the same model, prompt by prompt."""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from arguments.generation import GenerationArguments
from command_line.errors import InterruptedRunError
from models.loading import LoadedModel
from processes.progress import progress
from pruned_model import PrunePlan
from runs.check_log import CheckLog, Result
from runs.definition import RunDefinition
from runs.encoding import EncodedExample, encode_examples
from runs.experiment import check_alike, load_and_prune
from runs.fitting import fitted_to_memory, positions_for, within_memory
from runs.measuring import make_record
from runs.preparation import make_generator, save_as_asked
from runs.record import RunRecord
from self_speculation.distribution import ALPHA, chi_square, needed_tokens, sample_sequences
from self_speculation.equality import TIE_GAPS, first_difference, ties_allowed, verdict
from self_speculation.output_text import OutputText
from self_speculation.sampling import seeded_generator
from self_speculation.text_generator import TextGenerator


def check_run(definition: RunDefinition, draws: int, command: str) -> tuple[Result, Path]:
    """Checks all prompts of a run; returns the log, which is written anew after every one.

    Of several processes each checks its share, and the leading one writes the log.
    """
    ranks = definition.runtime.ranks
    with ranks.together():
        check_alike(definition)
        loaded, pruned = load_and_prune(definition)
        encoded = encode_examples(definition)
        if ranks.leads:
            save_as_asked(definition.arguments.prune, loaded, pruned)
        record = make_record(definition, loaded, pruned.plan, command)
        pair = DecoderPair(definition, loaded, pruned.plan, encoded)
        is_sampled = definition.arguments.generation.sample
        found = pair.sampled(draws) if is_sampled else pair.greedy()
        summarize = summarize_sampled if is_sampled else summarize_greedy
        return _checked(definition, record, found, lambda all: summarize(all, loaded.model.dtype))


def _checked(
    definition: RunDefinition,
    record: RunRecord,
    found: Iterator[tuple[int, Result]],
    summarize: Callable[[list[Result]], Result],
) -> tuple[Result, Path]:
    """Takes the results in, and logs them as they come."""
    ranks = definition.runtime.ranks
    results = CheckLog(definition.arguments.log.output_dir, record, ranks)
    status = "failed"
    try:
        with progress(ranks, len(definition.evaluated.examples)) as bar:
            for index, result in found:
                ranks.check()
                results.add(index, result)
                bar.advance()
            results.merge(bar.refresh)
        status = "complete"
    except (KeyboardInterrupt, InterruptedRunError):
        status = "interrupted"
        if ranks.count > 1:
            raise
    finally:
        log = results.finish(status, summarize)
    return log, results.path


class DecoderPair:
    """Both decoders of one pruned model, and what is found of them on every prompt."""

    def __init__(
        self,
        definition: RunDefinition,
        loaded: LoadedModel,
        plan: PrunePlan,
        encoded: list[EncodedExample],
    ) -> None:
        self._definition, self._loaded, self._plan = definition, loaded, plan
        self._encoded = encoded

    def greedy(self) -> Iterator[tuple[int, Result]]:
        """The ids of both decoders, and where they part the model's gap between the tokens."""
        flags = self._definition.arguments.generation
        return self._found(flags, lambda item, *both: self._parted(item.prompt_ids, *both))

    def sampled(self, draws: int) -> Iterator[tuple[int, Result]]:
        """The distribution of speculation's draws, tested against the verifier's."""
        flags = self._definition.arguments.generation
        steps = max(flags.max_steps, needed_tokens(flags.num_speculations))
        flags = dataclasses.replace(flags, max_steps=steps)
        return self._found(flags, lambda item, *both: self._tested(item, *both, draws))

    def _found(
        self, flags: GenerationArguments, compare: Callable[..., Result]
    ) -> Iterator[tuple[int, Result]]:
        """What comparing finds of this process's share, with the examples' places among all."""

        def make(longest: int, prompt: list[int]) -> tuple[TextGenerator, TextGenerator]:
            both = self._plain_generator(flags, longest), self._generator(flags, longest)
            for one in both:
                one.warm_up(prompt)  # allocates the cache
            return both

        both = fitted_to_memory(self._definition, self._encoded, flags, make)
        for index, item in self._definition.runtime.ranks.share(list(enumerate(self._encoded))):
            yield index, self._compared(item, flags, both, compare)

    def _generator(
        self, flags: GenerationArguments, longest: int, loaded: LoadedModel | None = None
    ) -> TextGenerator:
        words = self._definition.arguments.stop_words
        return make_generator(flags, loaded or self._loaded, self._plan, words, longest)

    def _plain_generator(self, flags: GenerationArguments, longest: int) -> TextGenerator:
        """What the other is held against: neither speculation nor compilation."""
        plain = dataclasses.replace(self._loaded, compiled=False)
        return self._generator(plain_flags(flags), longest, plain)

    def _compared(
        self,
        item: EncodedExample,
        flags: GenerationArguments,
        both: tuple[TextGenerator, TextGenerator],
        compare: Callable[..., Result],
    ) -> Result:
        facts = {"example_id": item.example.example_id, "prompt_tokens": item.full_length}
        if not item.prompt_ids:
            return facts | {"verdict": "prompt_too_long"}
        fits = positions_for(self._definition, flags, item.prompt_ids) <= both[0].engine.capacity
        found = within_memory(lambda: compare(item, *both)) if fits else None
        return facts | (found or {"verdict": "out_of_memory"})

    def _parted(self, ids: list[int], plain: TextGenerator, spoken: TextGenerator) -> Result:
        one, made = plain.generate(ids).output_ids, spoken.generate(ids)
        other = made.output_ids
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        found = first_difference(model, ids, one, other)
        result = {
            "verdict": verdict(found, model.dtype),
            "tokens": len(one),
            "drafted": made.drafted_tokens,
            "difference": None,
        }
        if found:
            text_of = OutputText(tokenizer, ids + one[: found.position], special=True)
            result["difference"] = {
                "position": found.position,
                "logit_gap": found.logit_gap if found.logit_gap < float("inf") else None,
                "autoregressive": text_of(one[found.position :]),
                "self_speculative": text_of(other[found.position :]),
            }
        return result

    def _tested(
        self, item: EncodedExample, plain: TextGenerator, spoken: TextGenerator, draws: int
    ) -> Result:
        strategy, ids = spoken.strategy, item.prompt_ids
        needed = needed_tokens(strategy.config.num_speculations)
        if needed >= strategy.engine.room_after(len(ids)):
            return {"verdict": "prompt_too_long"}
        seed, name = self._definition.arguments.generation.seed, item.example.example_id
        generator = seeded_generator(strategy.engine.device, seed, name, "law")
        observed, expected = sample_sequences(strategy, ids, generator, draws, plain.strategy)
        result = {
            "draws": observed.total(),
            "sequences": len(observed),
            "likely_sequences": len(expected),
        }
        if not observed:
            return result | {"verdict": "untested", "chi_square": None}
        found = chi_square(observed, expected)
        state = "untested" if found.p_value is None else "tested"
        return result | {"verdict": state, "chi_square": dataclasses.asdict(found)}


def plain_flags(flags: GenerationArguments) -> GenerationArguments:
    """The same decoding, without speculation."""
    return dataclasses.replace(
        flags, generation_strategy="autoregressive", exit_layer=-1, num_speculations=-1
    )


def summarize_greedy(results: list[Result], dtype: torch.dtype) -> Result:
    """Verdicts counted, and the share of tokens before the first difference."""
    compared = [one for one in results if "tokens" in one]
    tokens = sum(one["tokens"] for one in compared)
    parted = [one["difference"] for one in compared if one["difference"]]
    gaps = [one["logit_gap"] for one in parted if one["logit_gap"] is not None]
    lost = sum(
        one["tokens"] - one["difference"]["position"] for one in compared if one["difference"]
    )
    counts = Counter(one["verdict"] for one in results)
    tested = sum(one["drafted"] > 0 for one in compared)
    holds = not counts["wrong"] and counts["tie"] <= ties_allowed(tokens)
    return {
        "verdicts": dict(counts),
        "tested": tested,
        "tokens": tokens,
        "match_rate": counts["equal"] / len(compared) if compared else None,
        "tokens_before_difference": 1 - lost / tokens if tokens else None,
        "median_logit_gap": statistics.median(gaps) if gaps else None,
        "largest_logit_gap": max(gaps, default=None),
        "lossless": _proven(dtype, tested, holds),
    }


def summarize_sampled(results: list[Result], dtype: torch.dtype) -> Result:
    """Calls wrong what the distribution makes too unlikely; marks the results with it.

    The level is shared by the prompts, so that any of them is called wrong by mistake with a
    probability of about `ALPHA`. Chi-square is an approximation, worst far out in its tail: twice
    `ALPHA` for one prompt, and five times, at worst fifteen, where more than a hundred share it.
    In half precision they are only told of, as both passes round otherwise.
    """
    tested = [one for one in results if one["verdict"] == "tested"]
    level = ALPHA / max(len(tested), 1)
    refused = "wrong" if dtype in TIE_GAPS else "different"
    for one in tested:
        one["verdict"] = "equal" if one["chi_square"]["p_value"] >= level else refused
    counts = Counter(one["verdict"] for one in results)
    return {
        "verdicts": dict(counts),
        "tested": len(tested),
        "draws": sum(one.get("draws", 0) for one in results),
        "alpha": ALPHA,
        "level": level,
        "smallest_p_value": min((one["chi_square"]["p_value"] for one in tested), default=None),
        "lossless": _proven(dtype, len(tested), not counts["wrong"]),
    }


def _proven(dtype: torch.dtype, tested: int, holds: bool) -> bool | None:
    """Half precision proves nothing, nor does what was never tested."""
    return holds if dtype in TIE_GAPS and (tested or not holds) else None
