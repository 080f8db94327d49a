"""What every decoding strategy shares: configuration, the stop rule, the loop and its result."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from self_speculation.llama_model_utils import CachedLlama
from self_speculation.output_text import OutputText
from self_speculation.sampling import SamplingRule
from self_speculation.timing import StepTime, Stopwatch, now

# Part of every run's identity: raise it when the same arguments may yield other tokens or speeds.
ENGINE_VERSION = 6


@dataclass(frozen=True)
class GenerationConfig:
    """How to decode. `kept_exit_layer` counts layers that the model still holds after pruning."""

    max_steps: int = 512
    kept_exit_layer: int | None = None
    num_speculations: int | None = None
    sampling: SamplingRule = SamplingRule()
    stop_words: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


@dataclass
class Generation:
    """One generated output, and what it took.

    `output_ids` end with the token that completed the stop, `text` before it. The first token
    belongs to the prefill, all others to `decode_seconds` and `steps`. `rounds` holds (drafted,
    accepted) tokens of every speculative round, as the verifier judged them: a stop may lie
    before the last.
    """

    output_ids: list[int]
    text: str
    stop_reason: str
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float
    steps: dict[str, StepTime] = field(default_factory=dict)
    rounds: list[tuple[int, int]] = field(default_factory=list)

    @property
    def drafted_tokens(self) -> int:
        return sum(drafted for drafted, _ in self.rounds)

    @property
    def accepted_tokens(self) -> int:
        return sum(accepted for _, accepted in self.rounds)


def on_device(ids: list[int], device: torch.device) -> torch.Tensor:
    """Token ids, (T,), on a device that is not waited for."""
    ids_T = torch.tensor(ids)
    if device.type != "cuda":
        return ids_T.to(device)
    # Out of pageable memory, the copy would wait until all work before it is done.
    return ids_T.pin_memory().to(device, non_blocking=True)


class StopRule:
    """Ends an output at a stop token, or where its text comes to hold a stop word.

    `after` yields the rule for the outputs of one prompt, whose text continues the prompt's.
    """

    def __init__(
        self, tokenizer: Any, stop_token_ids: set[int], stop_words: tuple[str, ...]
    ) -> None:
        self._tokenizer = tokenizer
        self._alone = self._decode = OutputText(tokenizer)
        self.stop_token_ids = frozenset(stop_token_ids)
        self._stop_words = stop_words
        self._ends = {word[-1] for word in stop_words}
        self._completing: dict[int, bool] = {}
        # A token adds at least one byte to the text, save for the few that add nothing.
        self._tail_size = 16 + max((len(word.encode()) for word in stop_words), default=0)

    def after(self, prompt_ids: list[int]) -> "StopRule":
        """Return the same rule for outputs that follow this prompt."""
        rule = copy.copy(self)
        rule._decode = OutputText(self._tokenizer, prompt_ids)
        return rule

    def reason(self, output_ids: list[int]) -> str | None:
        """Why the newest token ends the output: stop_token, stop_word, or None."""
        if output_ids[-1] in self.stop_token_ids:
            return "stop_token"
        if not self._stop_words or not self._may_complete(output_ids[-1]):
            return None
        # The tail is searched first, so that a long output is not decoded anew for every token.
        start = self._decode.whole_run(output_ids, max(0, len(output_ids) - self._tail_size))
        spans = (output_ids[start:], output_ids)
        if all(self._cut(self._decode(ids)) is not None for ids in spans):
            return "stop_word"
        return None

    def text(self, output_ids: list[int], reason: str) -> str:
        """The output's text before the stop."""
        if reason == "stop_token":
            return self._decode(output_ids[:-1])
        text = self._decode(output_ids)
        return text[: self._cut(text)] if reason == "stop_word" else text

    def settled(self, output_ids: list[int]) -> str:
        """The beginning of the text that further tokens cannot change any more.

        What is held back may become a character that lacks bytes yet, or a stop word.
        """
        ends = output_ids and output_ids[-1] in self.stop_token_ids
        text = self._decode(output_ids[:-1] if ends else self._decode.settled(output_ids))
        cut = self._cut(text)
        if cut is not None:
            return text[:cut]
        text = text.rstrip("\ufffd")
        held = max((_overlap(text, word) for word in self._stop_words), default=0)
        return text[: len(text) - held]

    def _may_complete(self, token_id: int) -> bool:
        """Whether a stop word's last character can come with this token; True in doubt.

        Decoding is slow beside a small model's steps, and most tokens are soon told apart.
        """
        if token_id not in self._completing:
            piece = self._alone([token_id])
            # Alone, a token may lack bytes of a character, or lose a space before it.
            doubtful = not piece or "\ufffd" in piece or " " in self._ends
            self._completing[token_id] = doubtful or any(end in piece for end in self._ends)
        return self._completing[token_id]

    def _cut(self, text: str) -> int | None:
        """Where the first stop word begins."""
        return min((text.index(word) for word in self._stop_words if word in text), default=None)


def _overlap(text: str, word: str) -> int:
    """How many characters at the text's end are the beginning of the word, but not all of it."""
    return next((size for size in range(len(word) - 1, 0, -1) if text.endswith(word[:size])), 0)


class Streamer:
    """Shows an output while it grows; this one shows nothing.

    What it takes is no part of any time measured. `shows_drafts`: each draft is to be handed in,
    for which the device must be waited for.
    """

    shows_drafts = False

    def begin(self, stop_rule: StopRule) -> None:
        """A new output begins; the last one may not have come to its end."""

    def draft(self, output_ids: list[int]) -> None:
        """Those of these ids that were not shown before are drafted, and may fall."""

    def show(self, output_ids: list[int]) -> None:
        """These ids stand."""

    def end(self, text: str) -> None:
        """The output is over, and this is its text."""


class Output:
    """The tokens of one output as it grows; it stops growing at the first reason to."""

    def __init__(self, prompt_ids: list[int], limit: int, stop_rule: StopRule) -> None:
        self.prompt_ids = prompt_ids
        self.ids: list[int] = []
        self.stop_reason: str | None = None
        self._limit = limit
        self._stop_rule = stop_rule

    @property
    def tokens(self) -> list[int]:
        """Prompt and output, newest token last."""
        return self.prompt_ids + self.ids

    @property
    def remaining(self) -> int:
        """Tokens that may still be generated."""
        return self._limit - len(self.ids)

    def extend(self, ids: list[int]) -> None:
        """Appends tokens up to the one that ends the output."""
        for token_id in ids:
            self.ids.append(token_id)
            self.stop_reason = self._stop_rule.reason(self.ids)
            if self.stop_reason is None and not self.remaining:
                self.stop_reason = "length"
            if self.stop_reason:
                return


class GenerationStrategy(ABC):
    """Decodes one prompt after another with the same engine and configuration.

    A subclass says what one round is. After every round the engine holds all tokens but the newest.
    """

    def __init__(self, engine: CachedLlama, config: GenerationConfig, stop_rule: StopRule) -> None:
        self.engine = engine
        self.config = config
        self.stop_rule = stop_rule

    def generate(
        self,
        prompt_ids: list[int],
        generator: torch.Generator,
        max_steps: int | None = None,
        streamer: Streamer | None = None,
    ) -> Generation:
        """Generates up to `max_steps` tokens; the default is the configuration's.

        Ends where prompt and output fill what the engine can hold after such a prompt. Raises
        ValueError for a prompt that is empty or beyond its capacity.
        """
        engine = self.engine
        if not 1 <= len(prompt_ids) <= engine.capacity:
            raise ValueError(f"a prompt of {len(prompt_ids)} tokens, not 1 to {engine.capacity}")
        limit = min(max_steps or self.config.max_steps, engine.room_after(len(prompt_ids)))
        self.begin(prompt_ids, generator, streamer)
        output = Output(prompt_ids, limit, self.ending)
        self.streamer.begin(self.ending)

        started = now(engine.device)
        output.extend([self.prefill(output)])
        prefilled = now(engine.device)
        with self.unmeasured():
            self.streamer.show(output.ids)
        while output.stop_reason is None:
            output.extend(self.round(output))
            with self.unmeasured():
                self.streamer.show(output.ids)
        ended = now(engine.device)
        text = self.ending.text(output.ids, output.stop_reason)
        self.streamer.end(text)
        return Generation(
            output_ids=output.ids,
            text=text,
            stop_reason=output.stop_reason,
            prompt_tokens=len(prompt_ids),
            prefill_seconds=prefilled - started,
            decode_seconds=ended - prefilled - self._unmeasured_seconds,
            steps=self.stopwatch.steps(),
            rounds=self.rounds,
        )

    def begin(
        self, prompt_ids: list[int], generator: torch.Generator, streamer: Streamer | None = None
    ) -> None:
        """Forgets the last prompt; `ending` is the stop rule for outputs that follow this one."""
        self.engine.reset(self.config.kept_exit_layer)
        self.ending = self.stop_rule.after(prompt_ids)
        self.generator = generator
        self.streamer = streamer or Streamer()
        self._unmeasured_seconds = 0.0
        self.stopwatch = Stopwatch(self.engine.device)
        self.rounds: list[tuple[int, int]] = []

    @contextmanager
    def unmeasured(self) -> Iterator[None]:
        """What is done inside is no part of the decoding's time.

        It stands where tokens have just come off the device, which has nothing left to do.
        """
        started = perf_counter()
        yield
        self._unmeasured_seconds += perf_counter() - started

    def prefill(self, output: Output) -> int:
        """Runs the prompt through the model; returns the first token."""
        return self.step(output, self.column(output.prompt_ids))

    def step(self, output: Output, ids_1T: torch.Tensor, depth: int | None = None) -> int:
        """One plain step through the first `depth` layers: new tokens in, the next token out."""
        logits_1V = self.engine.forward(ids_1T, depth=depth)
        token, _ = self.config.sampling.pick(logits_1V, output.tokens, self.generator)
        return int(token)

    def column(self, ids: list[int]) -> torch.Tensor:
        """Token ids as the engine takes them, (1, T)."""
        return on_device(ids, self.engine.device)[None]

    @abstractmethod
    def round(self, output: Output) -> list[int]:
        """Generates the next tokens, at least one and at most `output.remaining`."""
