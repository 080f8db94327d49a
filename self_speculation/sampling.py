"""The choice of a token and the acceptance of drafted tokens: pure functions of tensors.

Shapes: K drafted tokens, M rows of logits (K + 1 when a draft is verified), V vocabulary.
"""

import hashlib
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor


class Noise:
    """The random numbers that decide the tokens of an output: a row, (V,), per position.

    With them a token depends on its position and its distribution alone, not on what was drafted.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._first = 0
        self._rows: deque[Tensor] = deque()

    def row(self, position: int, like_V: Tensor) -> Tensor:
        """Return the row of an output's token; rows of tokens before `forget`'s are gone."""
        assert position >= self._first, "the noise of this token is forgotten"
        while position >= self._first + len(self._rows):
            self._rows.append(_times(like_V, self._generator))
        return self._rows[position - self._first]

    def forget(self, before: int) -> None:
        """Free the rows of tokens that are final, and skip those that no token needed."""
        while self._rows and self._first < before:
            self._rows.popleft()
            self._first += 1
        self._first = max(self._first, before)


@dataclass(frozen=True)
class SamplingRule:
    """The n-gram ban, temperature, top-k and top-p, the same for drafter and verifier.

    They are applied in that order, as in transformers. Without `sample` the likeliest token that
    is not banned is chosen, and the distribution is one-hot.
    """

    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram_size: int | None = None

    @property
    def reads_tokens(self) -> bool:
        """Whether the choice depends on earlier tokens; if not, drafts can stay on the device."""
        return self.no_repeat_ngram_size is not None

    def pick(
        self, logits_1V: Tensor, tokens: list[int], generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Choose the token that follows `tokens`, which only the n-gram ban reads.

        Return the token, (1,), and the distribution that it was drawn from, float32 (V,); None for
        the greedy choice, which is one-hot.
        """
        if not self.sample:
            return self._ban_repeats(logits_1V, tokens).argmax(-1), None
        (probs_V,) = self.probabilities(logits_1V, tokens)
        return _draw(probs_V, generator), probs_V

    def pick_each(
        self, logits_BV: Tensor, tokens: list[list[int]], generators: list[torch.Generator]
    ) -> list[int]:
        """Choose the next token of each of B sequences; the host waits for the device once.

        Each row of the arguments belongs to one sequence, whose token is the one that `pick` would
        choose.
        """
        if self.no_repeat_ngram_size is not None:
            pairs = zip(logits_BV[:, None], tokens, strict=True)
            logits_BV = torch.cat([self._ban_repeats(row_1V, ids) for row_1V, ids in pairs])
        if not self.sample:
            return logits_BV.argmax(-1).tolist()
        draws = zip(self._distributions(logits_BV), generators, strict=True)
        return torch.cat([_draw(probs_V, generator) for probs_V, generator in draws]).tolist()

    def choose(
        self, logits_MV: Tensor, tokens: list[int], noise: Noise | None, position: int
    ) -> Tensor:
        """Return the token that follows at each row, (M,), whatever was drafted.

        The rows are those of `probabilities`. `noise` draws the tokens, whose first has this
        position in the output: they are those that `pick` would draw one after the other with the
        same generator. Greedy choices need none.
        """
        if not self.sample:
            return self._ban_repeats(logits_MV, tokens).argmax(-1)
        assert noise is not None, "sampled tokens need noise"
        probs_MV = self.probabilities(logits_MV, tokens)
        rows = [noise.row(position + row, probs_V) for row, probs_V in enumerate(probs_MV)]
        return (probs_MV / torch.stack(rows)).argmax(-1)

    def probabilities(self, logits_MV: Tensor, tokens: list[int]) -> Tensor:
        """Return the distributions of the next tokens, float32 (M, V).

        The last row follows all of `tokens`, the row before it all but the last token, and so on.
        """
        logits_MV = self._ban_repeats(logits_MV, tokens)
        if not self.sample:
            return torch.zeros_like(logits_MV, dtype=torch.float32).scatter_(
                -1, logits_MV.argmax(-1, keepdim=True), 1.0
            )
        return self._distributions(logits_MV)

    def _distributions(self, logits_MV: Tensor) -> Tensor:
        """Return the distributions of sampled tokens by logits without banned tokens."""
        logits_MV = logits_MV.float() / self.temperature
        if self.top_k:
            logits_MV = _keep_top_k(logits_MV, self.top_k)
        probs_MV = logits_MV.softmax(-1)
        return _keep_top_p(probs_MV, self.top_p) if self.top_p < 1 else probs_MV

    def _ban_repeats(self, logits_MV: Tensor, tokens: list[int]) -> Tensor:
        if self.no_repeat_ngram_size is None:
            return logits_MV
        logits_MV = logits_MV.clone()
        unread = logits_MV.shape[0] - 1
        for row_V in logits_MV:
            banned = repeated_ngram_ends(tokens[: len(tokens) - unread], self.no_repeat_ngram_size)
            row_V[banned] = -torch.inf
            unread -= 1
        return logits_MV


def repeated_ngram_ends(tokens: list[int], size: int) -> list[int]:
    """Return the tokens that would complete an n-gram of `size` that `tokens` contains."""
    prefix_size = size - 1
    if len(tokens) < size:
        return []
    prefix = tokens[len(tokens) - prefix_size :]
    starts = range(len(tokens) - prefix_size)
    return [tokens[i + prefix_size] for i in starts if tokens[i : i + prefix_size] == prefix]


def accept(
    draft_tokens_K: Tensor,
    draft_probs_KV: Tensor,
    target_probs_MV: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Return the number of accepted drafts and the token that follows them, together as (2,).

    The result stays on the device of the probabilities, so that the host does not wait.

    Drafted token x is accepted with probability min(1, p(x) / q(x)); the first rejected token is
    replaced by a draw from the normalised max(0, p - q); if all are accepted, one more token is
    drawn from p. The output is then distributed as the verifier's p, whatever the drafter's q
    (Leviathan et al. 2023, arXiv 2211.17192). `draft_probs_KV` is q; `target_probs_MV` is p, with
    M = K + 1 rows.
    """
    count = len(draft_tokens_K)
    index_K1 = draft_tokens_K[:, None]
    p_K = target_probs_MV[:count].gather(1, index_K1)[:, 0]
    q_K = draft_probs_KV.gather(1, index_K1)[:, 0]
    threshold_K = torch.rand(count, generator=generator, device=p_K.device)
    accepted_1 = (threshold_K * q_K < p_K).cumprod(0).sum(0, keepdim=True)

    (probs_V,) = target_probs_MV.index_select(0, accepted_1)
    rejected_1 = accepted_1.clamp(max=count - 1)
    residual_V = _residual(probs_V, draft_probs_KV.index_select(0, rejected_1)[0])
    probs_V = torch.where(accepted_1 < count, residual_V, probs_V)
    return torch.cat([accepted_1, _draw(probs_V, generator)])


def agreeing(draft_tokens: list[int], chosen: list[int]) -> int:
    """Return how many drafts from the first on are the tokens that the verifier chose itself."""
    pairs = enumerate(zip(draft_tokens, chosen, strict=False))
    return next((place for place, (one, other) in pairs if one != other), len(draft_tokens))


def seeded_generator(
    device: torch.device, seed: int, example_id: str, purpose: str
) -> torch.Generator:
    """Return a generator that depends on its arguments alone: no example shifts another's draws."""
    digest = hashlib.sha256(repr((seed, example_id, purpose)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _draw(weights_V: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a token, (1,), by weights that need not sum to one.

    torch.multinomial draws the same tokens by the same race of exponentials, but its checks make
    the host wait.
    """
    return (weights_V / _times(weights_V, generator)).argmax(0, keepdim=True)


def _times(like_V: Tensor, generator: torch.Generator) -> Tensor:
    """Return a row of noise, exponentially distributed: each token's time in the race."""
    return torch.empty_like(like_V).exponential_(1, generator=generator)


def _residual(p_V: Tensor, q_V: Tensor) -> Tensor:
    """Return max(0, p - q), not normalised, or p if that is empty numerically."""
    residual_V = (p_V - q_V).clamp(min=0)
    return torch.where(residual_V.sum() > 0, residual_V, p_V)


def _keep_top_k(logits_MV: Tensor, k: int) -> Tensor:
    kth_M1 = logits_MV.topk(min(k, logits_MV.shape[-1])).values[:, -1:]
    return logits_MV.masked_fill(logits_MV < kth_M1, -torch.inf)


def _keep_top_p(probs_MV: Tensor, p: float) -> Tensor:
    sorted_MV, order_MV = probs_MV.sort(descending=True, stable=True)
    dropped_MV = sorted_MV.cumsum(-1) - sorted_MV >= p
    dropped_MV[:, 0] = False
    kept_MV = sorted_MV.masked_fill(dropped_MV, 0.0)
    kept_MV /= kept_MV.sum(-1, keepdim=True)
    return torch.zeros_like(probs_MV).scatter_(-1, order_MV, kept_MV)
