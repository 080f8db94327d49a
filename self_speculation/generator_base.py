"""The decoding loop that all strategies share: configuration, stop rule, output and result."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from self_speculation.draft_length import Switch
from self_speculation.drafter import Drafting
from self_speculation.llama_model_utils import CachedLlama, LlamaEngine, on_device
from self_speculation.output_text import OutputText
from self_speculation.sampling import SamplingRule
from self_speculation.timing import StepTime, Stopwatch, now

# Part of the run id: raise it when the same arguments may yield other tokens or speeds.
ENGINE_VERSION = 7


@dataclass(frozen=True)
class GenerationConfig:
    """How to decode.

    `kept_exit_layer` counts the layers that pruning kept. `draft_layers` draft instead, if given:
    layers of any model of this shape, of which the model's own first layers are computed once.
    `num_speculations` is the most tokens of a draft, and `drafting` says who drafts them;
    autoregressive decoding ignores both, and `draft_layers`.
    """

    max_steps: int = 512
    kept_exit_layer: int | None = None
    num_speculations: int = 0
    sampling: SamplingRule = SamplingRule()
    stop_words: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    draft_layers: tuple[nn.Module, ...] | None = None
    drafting: Drafting = Drafting()


@dataclass
class Generation:
    """An output with its times and its speculative rounds.

    `output_ids` end with the token that completed the stop, `text` ends before it. The prefill
    yields the first token; `decode_seconds` and `steps` cover all others. `rounds` holds the
    (drafted, accepted) tokens of each round, as the verifier judged them: the output may stop
    before the last accepted token. `drafters` names the drafter of each round, "" where nothing was
    drafted. `switches` are the changes between drafting and plain steps. `earlier_answers` counts
    the outputs that drafters could use besides this one; None for drafters that use none.
    """

    output_ids: list[int]
    text: str
    stop_reason: str
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float
    steps: dict[str, StepTime] = field(default_factory=dict)
    rounds: list[tuple[int, int]] = field(default_factory=list)
    drafters: list[str] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)
    earlier_answers: int | None = None

    @property
    def seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds

    @property
    def drafted_tokens(self) -> int:
        return sum(drafted for drafted, _ in self.rounds)

    @property
    def accepted_tokens(self) -> int:
        return sum(accepted for _, accepted in self.rounds)


class StopRule:
    """Ends an output at a stop token, or as soon as its text contains a stop word.

    `after` returns the rule for outputs that continue a prompt's text.
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
        # Almost every token adds at least one byte to the text; 16 more allow for the others.
        self._tail_size = 16 + max((len(word.encode()) for word in stop_words), default=0)

    def after(self, prompt_ids: list[int]) -> "StopRule":
        """Return the rule for outputs that follow this prompt."""
        rule = copy.copy(self)
        rule._decode = OutputText(self._tokenizer, prompt_ids)
        return rule

    def reason(self, output_ids: list[int]) -> str | None:
        """Return why the last token ends the output: stop_token, stop_word, or None."""
        if output_ids[-1] in self.stop_token_ids:
            return "stop_token"
        if not self._stop_words or not self._may_complete(output_ids[-1]):
            return None
        # Search the tail first, so that a long output is not decoded again for every token.
        start = self._decode.whole_run(output_ids, max(0, len(output_ids) - self._tail_size))
        spans = (output_ids[start:], output_ids)
        if all(self._cut(self._decode(ids)) is not None for ids in spans):
            return "stop_word"
        return None

    def text(self, output_ids: list[int], reason: str) -> str:
        """Return the output's text before the stop."""
        if reason == "stop_token":
            return self._decode(output_ids[:-1])
        text = self._decode(output_ids)
        return text[: self._cut(text)] if reason == "stop_word" else text

    def settled(self, output_ids: list[int]) -> str:
        """Return the beginning of the text that further tokens cannot change.

        An incomplete character and the beginning of a stop word are held back.
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
        """Whether the token may contain the last character of a stop word; True in doubt.

        Decoding a text is slow compared with a small model's steps; this saves it for most tokens.
        """
        if token_id not in self._completing:
            piece = self._alone([token_id])
            # A token decoded alone may lack bytes of a character, or lose its leading space.
            doubtful = not piece or "\ufffd" in piece or " " in self._ends
            self._completing[token_id] = doubtful or any(end in piece for end in self._ends)
        return self._completing[token_id]

    def _cut(self, text: str) -> int | None:
        """Return the place at which the first stop word begins."""
        return min((text.index(word) for word in self._stop_words if word in text), default=None)


def _overlap(text: str, word: str) -> int:
    """Return how many characters at the text's end begin the word without completing it."""
    return next((size for size in range(len(word) - 1, 0, -1) if text.endswith(word[:size])), 0)


class Streamer:
    """Receives an output while it grows; this class shows nothing.

    Its time is excluded from all measured times. `shows_drafts`: it also receives each draft, for
    which the host waits for the device.
    """

    shows_drafts = False

    def begin(self, stop_rule: StopRule) -> None:
        """Begin a new output, even if the last output never ended."""

    def draft(self, output_ids: list[int]) -> None:
        """Show a draft: all ids that were not shown before may still be rejected."""

    def show(self, output_ids: list[int]) -> None:
        """Show the output so far; its ids are final."""

    def end(self, text: str) -> None:
        """End the output, whose text this is."""


class Output:
    """The tokens of an output as it grows, up to the first reason to stop."""

    def __init__(self, prompt_ids: list[int], limit: int, stop_rule: StopRule) -> None:
        self.prompt_ids = prompt_ids
        self.ids: list[int] = []
        self.stop_reason: str | None = None
        self._limit = limit
        self._stop_rule = stop_rule

    @property
    def tokens(self) -> list[int]:
        """Prompt and output, in order."""
        return self.prompt_ids + self.ids

    @property
    def remaining(self) -> int:
        """Tokens that may still be generated."""
        return self._limit - len(self.ids)

    def extend(self, ids: list[int]) -> None:
        """Append tokens up to the token that ends the output."""
        for token_id in ids:
            self.ids.append(token_id)
            self.stop_reason = self._stop_rule.reason(self.ids)
            if self.stop_reason is None and not self.remaining:
                self.stop_reason = "length"
            if self.stop_reason:
                return


def output_limit(engine: LlamaEngine, prompt_ids: list[int], max_steps: int) -> int:
    """Return how many tokens may follow the prompt.

    Raises ValueError for a prompt that is empty or longer than the engine's capacity.
    """
    if not 1 <= len(prompt_ids) <= engine.capacity:
        raise ValueError(f"a prompt of {len(prompt_ids)} tokens, not 1 to {engine.capacity}")
    return min(max_steps, engine.room_after(len(prompt_ids)))


class GenerationStrategy(ABC):
    """Decodes one prompt after another with the same engine and configuration.

    A subclass defines the round. After each round the engine has cached all tokens but the last.
    """

    def __init__(self, engine: CachedLlama, config: GenerationConfig, stop_rule: StopRule) -> None:
        self.engine = engine
        self.config = config
        self.stop_rule = stop_rule
        self.exit_layer = config.kept_exit_layer

    def generate(
        self,
        prompt_ids: list[int],
        generator: torch.Generator,
        max_steps: int | None = None,
        streamer: Streamer | None = None,
    ) -> Generation:
        """Generate up to `max_steps` tokens (default: the configuration's).

        The output also ends when the engine has no room for more. Raises ValueError for a prompt
        that is empty or longer than the engine's capacity.
        """
        engine = self.engine
        limit = output_limit(engine, prompt_ids, max_steps or self.config.max_steps)
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
        self.finish(output)
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
            **self.facts(),
        )

    def begin(
        self, prompt_ids: list[int], generator: torch.Generator, streamer: Streamer | None = None
    ) -> None:
        """Forget the last prompt; `ending` is the stop rule for outputs that follow this prompt."""
        self.engine.reset(self.exit_layer)
        self.ending = self.stop_rule.after(prompt_ids)
        self.generator = generator
        self.streamer = streamer or Streamer()
        self._unmeasured_seconds = 0.0
        self.stopwatch = Stopwatch(self.engine.device)
        self.rounds: list[tuple[int, int]] = []

    def facts(self) -> dict[str, Any]:
        """Return the fields of the output's `Generation` that this strategy alone has."""
        return {}

    def begin_output(self, prompt_ids: list[int]) -> None:
        """Forget the output so far, so that another may follow the same prompt."""

    def finish(self, output: Output) -> None:
        """Do what is left to do at the end of an output."""

    def forget_outputs(self) -> None:
        """Forget what earlier outputs taught, as if this output was the first."""

    @contextmanager
    def unmeasured(self) -> Iterator[None]:
        """Exclude the block from the decoding time.

        Use it only while the device is idle, after its tokens were read.
        """
        started = perf_counter()
        yield
        self._unmeasured_seconds += perf_counter() - started

    def prefill(self, output: Output) -> int:
        """Run the prompt through the model; return the first token."""
        return self.step(output, self.column(output.prompt_ids))

    def step(self, output: Output, ids_1T: torch.Tensor, depth: int | None = None) -> int:
        """Run new tokens through the first `depth` layers (default: all); return the next token."""
        return self.picked(output, self.engine.forward(ids_1T, depth=depth))

    def picked(self, output: Output, logits_1V: Tensor) -> int:
        """Choose the token that follows prompt and output by these logits."""
        token, _ = self.config.sampling.pick(logits_1V, output.tokens, self.generator)
        return int(token)

    def column(self, ids: list[int]) -> torch.Tensor:
        """Return token ids on the engine's device, (1, T)."""
        return on_device(ids, self.engine.device)[None]

    @abstractmethod
    def round(self, output: Output) -> list[int]:
        """Generate the next tokens, at least one and at most `output.remaining`."""
