"""The seam between the decoding loop and everything that can propose tokens.

Shapes: K drafted tokens, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from self_speculation.drafters import DRAFTERS, LEAST_MATCH
from self_speculation.llama_model_utils import CachedLlama
from self_speculation.sampling import SamplingRule

# Draws the draft number `place` (from 0) of a round by its logits, (1, V), and all tokens before
# it; returns the token, (1,), and the distribution that it was drawn from, (V,), or None if the
# verifier's own draw decides whether the token is accepted.
Pick = Callable[[Tensor, list[int], int], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Drafting:
    """Who drafts, and how many tokens.

    `drafter` names an entry of `DRAFTERS`. `other` drafts for a hybrid where the lookup matches
    fewer than `least_match` tokens. `history`: drafters use the earlier answers of this process.
    `vocabulary`: the only tokens that drafting layers may propose.

    `threshold` ends a draft after a token whose own probability is below it. `adaptive` chooses the
    length of each draft by estimates of acceptance and cost. `never_slower` decodes without drafts
    where these estimates say that drafts lose.
    """

    drafter: str = "early_exit"
    other: str | None = None
    least_match: int = LEAST_MATCH
    history: bool = False
    vocabulary: tuple[int, ...] | None = None
    threshold: float | None = None
    adaptive: bool = False
    never_slower: bool = False

    @property
    def drafts_with_layers(self) -> bool:
        """Whether layers of the model draft, always or for a hybrid."""
        return any(DRAFTERS[name].layers for name in (self.drafter, self.other) if name)

    @property
    def varies(self) -> bool:
        """Whether the drafts of an output have different lengths."""
        stops = self.threshold is not None or self.measures
        return stops or DRAFTERS[self.drafter].layers is None

    @property
    def skips(self) -> bool:
        """Whether no layer drafts in some rounds."""
        return DRAFTERS[self.drafter].layers is None or self.never_slower

    @property
    def measures(self) -> bool:
        """Whether measured times decide how much is drafted."""
        return self.adaptive or self.never_slower

    @property
    def differs(self) -> bool:
        """Whether a start may draft otherwise than another: by its clock, or by earlier answers."""
        return self.measures or self.history


@dataclass(frozen=True)
class DraftSetting:
    """The parts of a drafter: the engine, the rules, and the tokens that end an output.

    `drafter` is the name in `DRAFTERS` by which the drafter was asked for.
    """

    engine: CachedLlama
    rule: SamplingRule
    drafting: Drafting
    ends: frozenset[int]
    drafter: str

    def make(self) -> "Drafter":
        """Return the drafter of this setting."""
        made: Drafter = DRAFTERS[self.drafter].load()(self)
        return made


@dataclass(frozen=True)
class Draft:
    """Proposed tokens, (K,), and the distributions that they were drawn from, (K, V).

    `probs_KV` is None if the verifier's own choice of each token decides: for tokens that were
    looked up, and for all drafts of a greedy output.
    """

    tokens_K: Tensor
    probs_KV: Tensor | None = None


class Drafter(ABC):
    """Proposes tokens for one output after another.

    `learns`: `learn` is called after each round. `outlook` may read only tokens that are final, and
    `propose` may run them through `engine.draft`, where they stay pending until they are verified.
    """

    learns = False

    def begin(self, prompt_ids: list[int], pick: Pick) -> None:
        """Begin an output that follows the prompt. `pick` draws the tokens of drafts."""

    @abstractmethod
    def outlook(self, tokens: list[int]) -> str | None:
        """Return which kind of draft would follow prompt and output; None without an idea.

        Drafts of one kind should be accepted alike: the acceptance is learned by kind. A kind is
        the name of the drafter, with any details after a space. It is called once a round, before
        `propose`.
        """

    @abstractmethod
    def propose(self, tokens: list[int], count: int) -> Draft:
        """Propose 1 to `count` tokens to follow `tokens`, whose last one is not cached."""

    def learn(self, block_ids: list[int], successors: list[int]) -> None:
        """Take the likeliest successor that the verifier gave to each token of a round.

        The block is the last token before the draft, and the draft.
        """

    def end(self, output_ids: list[int]) -> None:
        """End the output."""


def drafted_by(kind: str) -> str:
    """Return the name of the drafter in a kind of draft."""
    return kind.partition(" ")[0]


def looked_up(ids: list[int], device: torch.device) -> Draft:
    """Return a draft of at least one token, known without running the model."""
    assert ids, "a draft without a token"
    return Draft(torch.tensor(ids, dtype=torch.long, device=device))
