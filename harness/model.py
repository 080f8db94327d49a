"""Answers lm-evaluation-harness with a prepared model: log-likelihoods and generated texts."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn

from arguments.drafting import EARLY_EXIT
from arguments.generation import GenerationArguments
from command_line.errors import FailedError, UsageError
from harness.requests import decoding_of
from models.tokens import without_added_ends
from processes.progress import progress
from runs.batches import BatchDecoder, calls_of
from runs.preparation import PreparedModel, make_batched_generator, make_generator
from runs.prompt_encoding import check_embedded
from self_speculation.batched_generator import BatchedTextGenerator
from self_speculation.batched_llama import takes_batches
from self_speculation.generator_base import Generation
from self_speculation.llama_model_utils import early_exit_view, position_limit
from self_speculation.offloading import input_device

Decode = Callable[[list[list[int]], int, list[str]], list[Generation]]  # of prompts, seed, names


class HarnessModel(HFLM):
    """Answers the harness's requests with a prepared model.

    The strategy of the flags generates texts: autoregressive decoding up to `batch_size` at a time,
    self-speculation one after another. The harness's own code computes log-likelihoods, in batches,
    with the model as pruned; autoregressive decoding with an exit layer is another model, the
    layers up to that exit. Self-speculation follows the distribution of the whole model, and so do
    its log-likelihoods.

    Each process answers its share of the requests and gets the answers of all, so that the harness
    takes each for the only one. `generated` holds counts and seconds of each generated text;
    `texts_at_once` is the most that were generated at a time: 1 for self-speculation, and for
    attention that takes no masks.
    """

    def __init__(
        self, prepared: PreparedModel, flags: GenerationArguments, batch_size: int
    ) -> None:
        super().__init__(
            pretrained=scored_model(prepared, flags),
            tokenizer=prepared.loaded.tokenizer,
            batch_size=batch_size,
        )
        self._device = input_device(prepared.loaded.model)  # HFLM takes that of the first weight
        self._prepared = prepared
        self._flags = flags
        speculates = flags.generation_strategy != "autoregressive"
        alone = speculates or not takes_batches(prepared.loaded.model)
        self._most_at_once, self.texts_at_once = 1 if alone else batch_size, 1
        self._ranks = prepared.runtime.ranks
        self.generated: list[dict[str, Any]] = []

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood, and whether it is the greedy one."""
        pairs = self._shared(super().loglikelihood, requests, disable_tqdm)
        return [(value, is_greedy) for value, is_greedy in pairs]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of every text."""
        return self._shared(super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the texts of all requests, in order; each depends on its name and the seed."""
        alike: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True, default=str)].append(index)
        names, before = unique_names(requests), len(self.generated)
        own: list[tuple[int, str, dict[str, Any]]] = []
        with progress(self._ranks, len(requests)) as advance:
            for indices in alike.values():
                share = self._ranks.share(indices)
                group = [(names[index], requests[index]) for index in share]
                for place, text in self._generate_alike(group):
                    self._ranks.check()
                    own.append((share[place], text, self.generated[-1]))
                    advance(1)
            shares = self._ranks.exchange(own)
        known = {index: (text, facts) for share in shares for index, text, facts in share}
        order = chain.from_iterable(alike.values())
        self.generated[before:] = [known[index][1] for index in order]
        return [known[index][0] for index in range(len(requests))]

    def _shared(
        self, answer: Callable[..., list[Any]], requests: list[Instance], is_quiet: bool
    ) -> list[Any]:
        """Answer this process's share of the requests; return the answers to all."""
        own = list(self._ranks.share(requests))
        answers = answer(own, is_quiet or not self._ranks.leads) if own else []
        return self._ranks.in_order(self._ranks.exchange(answers))

    def _generate_alike(self, requests: list[tuple[str, Instance]]) -> Iterator[tuple[int, str]]:
        """Yield the place and the text of requests with equal arguments, and note what each took.

        Places of texts that are generated together need not be in order.
        """
        if not requests:
            return
        first = requests[0][1]
        flags, stop_words = decoding_of(self._flags, first.args[1], first.task_name)
        limit = min(self.max_length, position_limit(self.model.config))
        if flags.max_steps >= limit:
            raise UsageError(
                f"--tasks {first.task_name}: asks for {flags.max_steps} tokens, which leaves "
                f"none of the model's {limit} positions to the prompt"
            )
        longest = limit - flags.max_steps
        # An empty prompt is the token that begins a log-likelihood.
        prompts = [self.tok_encode(one.args[0]) or [self.prefix_token_id] for _, one in requests]
        fitting = [ids[-longest:] for ids in prompts]
        decode, calls = self._decoder(flags, stop_words, fitting)
        for places in calls:
            names = [requests[place][0] for place in places]
            made = decode([fitting[place] for place in places], flags.seed, names)
            for place, name, one in zip(places, names, made, strict=True):
                self.generated.append(_facts(name, one, len(prompts[place]), len(places)))
                yield place, one.text

    def _decoder(
        self, flags: GenerationArguments, stop_words: tuple[str, ...], prompts: list[list[int]]
    ) -> tuple[Decode, Iterator[list[int]]]:
        """Return a function that decodes prompts, and the places of the prompts of each call."""
        loaded, plan, lengths = self._prepared.loaded, self._prepared.plan, list(map(len, prompts))
        size = min(self._most_at_once, len(prompts))

        def make(size: int) -> BatchedTextGenerator:
            made = make_batched_generator(flags, loaded, plan, stop_words, max(lengths), size)
            made.warm_up(prompts[:size])
            return made

        if size > 1:
            calls = calls_of(range(len(prompts)), lengths.__getitem__, size)
            return partial(self._together, BatchDecoder(make, size)), calls
        pruned, longest = self._prepared.pruned, max(lengths)
        generator = make_generator(flags, EARLY_EXIT, loaded, pruned, stop_words, longest)
        generator.warm_up(prompts[0])

        def decode(prompts: list[list[int]], seed: int, names: list[str]) -> list[Generation]:
            return [generator.generate(*one) for one in zip(prompts, [seed], names, strict=True)]

        return decode, ([place] for place in range(len(prompts)))

    def _together(
        self, decoder: BatchDecoder, prompts: list[list[int]], seed: int, names: list[str]
    ) -> list[Generation]:
        made = decoder.decode(prompts, seed, names)
        self.texts_at_once = max(self.texts_at_once, decoder.size)
        for ids, one in zip(prompts, made, strict=True):
            if one is None:
                name = self._prepared.loaded.name
                raise FailedError(f"--model {name}: out of memory with {len(ids)} prompt tokens")
        return [one for one in made if one]

    @property
    def max_length(self) -> int:
        """Return the harness's limit of positions, stretched if the model's are."""
        return max(super().max_length, position_limit(self.model.config))

    def tok_encode(self, string: str, *how: Any, **named: Any) -> list[int]:
        """Return the harness's encoding, without end tokens that the tokenizer adds by itself."""
        ids = super().tok_encode(string, *how, **named)
        ids = without_added_ends(self.tokenizer, string, ids)
        check_embedded(self._prepared.loaded, ids)
        return ids

    def _model_call(self, *inputs: Any, **named: Any) -> Tensor:
        # A model spread over devices begins and ends on different ones.
        return super()._model_call(*inputs, **named).to(self.device)


def scored_model(prepared: PreparedModel, flags: GenerationArguments) -> nn.Module:
    """Return the model whose distribution the strategy's output follows."""
    layers = prepared.plan.kept_exit_layer(flags.exit_layer)
    if layers is None or flags.generation_strategy == "self_speculative":
        return prepared.loaded.model
    return early_exit_view(prepared.loaded.model, layers)


def unique_names(requests: list[Instance]) -> list[str]:
    """Return a name per request: task, document, place in it, and count of earlier equals."""
    seen: Counter[tuple] = Counter()
    names = []
    for request in requests:
        key = (request.task_name, request.doc_id, request.idx)
        names.append("/".join(map(str, (*key, seen[key]))))
        seen[key] += 1
    return names


def summarize_requests(requests: list[dict[str, Any]]) -> dict[str, Any]:
    """Return speed and acceptance over all generated texts; None where nothing was measured.

    `tokens_per_second` covers decoding alone: the first token of a text belongs to its prefill.
    """

    def total(name: str) -> Any:
        return sum(request[name] for request in requests)

    drafted, decoded = total("drafted_tokens"), total("generated_tokens") - len(requests)
    return {
        "requests": len(requests),
        "prompt_tokens": total("prompt_tokens"),
        "cut_prompts": sum(request["cut_tokens"] > 0 for request in requests),
        "generated_tokens": total("generated_tokens"),
        "drafted_tokens": drafted,
        "accepted_tokens": total("accepted_tokens"),
        "acceptance_rate": total("accepted_tokens") / drafted if drafted else None,
        "tokens_per_second": decoded / total("decode_seconds") if decoded else None,
        "prefill_seconds": total("prefill_seconds") or None,
        "decode_seconds": total("decode_seconds") or None,
        "threads": torch.get_num_threads(),
    }


def _facts(name: str, made: Generation, full_length: int, together: int) -> dict[str, Any]:
    """Return counts and seconds of a text, whose prompt lost its first `cut_tokens`.

    A text of several that were generated together has an equal share of their seconds.
    """
    return {
        "name": name,
        "prompt_tokens": made.prompt_tokens,
        "cut_tokens": full_length - made.prompt_tokens,
        "generated_tokens": len(made.output_ids),
        "drafted_tokens": made.drafted_tokens,
        "accepted_tokens": made.accepted_tokens,
        "prefill_seconds": made.prefill_seconds / together,
        "decode_seconds": made.decode_seconds / together,
    }
