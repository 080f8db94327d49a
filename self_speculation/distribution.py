"""Whether sampled outputs are distributed as the verifier says.

The joint law of generated tokens 2 to 4, given the first, which belongs to the prefill: drawn many
times over by speculation, and computed from the verifier's probabilities token by token.

Shapes: V vocabulary.
"""

import dataclasses
import itertools
from collections import Counter
from dataclasses import dataclass

import torch

from self_speculation.generator_base import GenerationStrategy, Output

LENGTH = 3
LEAST_EXPECTED = 5  # draws in a bin, for chi-square to hold
ALPHA = 0.001
_ROUNDING = 1e-6  # what float32 probabilities may lack of one

Sequence = tuple[int, ...]


@dataclass(frozen=True)
class ChiSquare:
    """Pearson's test of draws against expected counts; `p_value` None where there is no choice.

    `rare_draws`, where the law is hardly expected to leave its likely sequences: how often it was
    left, which is tested by itself against `rare_expected`, and counts in `p_value` too.
    """

    statistic: float
    degrees_of_freedom: int
    p_value: float | None
    rare_draws: int | None = None
    rare_expected: float | None = None


def sampled_law(
    strategy: GenerationStrategy,
    prompt_ids: list[int],
    generator: torch.Generator,
    draws: int,
    judge: GenerationStrategy | None = None,
) -> tuple[Counter[Sequence], dict[Sequence, float]]:
    """What speculation drew, and the verifier's probability of every sequence that is likely.

    Likely is what is expected at least `LEAST_EXPECTED` times. A sequence is shorter than `LENGTH`
    where a stop ends it; both are empty where the first token is one. The prompt is read once.

    Every other output has room for `LENGTH` tokens after the first and no more, so that fewer are
    drafted and the token that follows a draft which stands as a whole is among those compared.
    `judge` decodes by the same rules, and says what the verifier's probabilities are; None asks the
    strategy's own full steps.
    """
    judge = judge or strategy
    engine, sampling = strategy.engine, strategy.config.sampling
    strategy.begin(prompt_ids, generator)
    logits_1V = engine.forward(strategy.column(prompt_ids))
    first_token, _ = sampling.pick(logits_1V, prompt_ids, generator)
    first = int(first_token)
    if strategy.ending.reason([first]):
        return Counter(), {}
    limits = itertools.cycle((needed_tokens(strategy.config.num_speculations), 1 + LENGTH))
    drawn = (_draw(strategy, prompt_ids, first, limit) for limit in limits)
    observed = Counter(itertools.islice(drawn, draws))
    law: dict[Sequence, float] = {}
    if judge is not strategy:
        judge.begin(prompt_ids, generator)
        judge.engine.forward(judge.column(prompt_ids))
    _enumerate(judge, prompt_ids, [first], 1.0, LEAST_EXPECTED / draws, law)
    return observed, law


def chi_square(observed: Counter[Sequence], law: dict[Sequence, float]) -> ChiSquare:
    """Compares counts with a law whose unlikely sequences, left out of it, share one bin.

    Where even together they are expected less than `LEAST_EXPECTED` times, which is too few for
    chi-square, how many were drawn is tested by itself, and the others among themselves. Of both
    p-values the smaller counts, doubled.
    """
    draws = observed.total()
    counts = [observed[sequence] for sequence in law]
    probabilities = list(law.values())
    others = draws - sum(counts)
    remainder = 1 - sum(probabilities)
    if draws * remainder >= LEAST_EXPECTED:
        return _pearson([*counts, others], [*probabilities, remainder])
    found = _pearson(counts, [one / sum(probabilities) for one in probabilities])
    expected = draws * max(remainder, _ROUNDING)
    p_value: float | None = _at_least(others, expected)
    if found.p_value is not None:
        p_value = min(1.0, 2 * min(p_value, found.p_value))
    elif not others:
        p_value = None
    return dataclasses.replace(found, p_value=p_value, rare_draws=others, rare_expected=expected)


def _pearson(counts: list[int], probabilities: list[float]) -> ChiSquare:
    total = sum(counts)
    pairs = zip(counts, probabilities, strict=True)
    statistic = sum((c - total * p) ** 2 / (total * p) for c, p in pairs) if total else 0.0
    freedom = len(counts) - 1
    if freedom < 1:
        return ChiSquare(statistic, 0, None)
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return ChiSquare(statistic, freedom, float(torch.special.gammaincc(half[0], half[1])))


def _at_least(count: int, expected: float) -> float:
    """The probability of so many rare events or more (Poisson)."""
    if not count:
        return 1.0
    pair = torch.tensor([count, expected], dtype=torch.float64)
    return float(torch.special.gammainc(pair[0], pair[1]))


def needed_tokens(num_speculations: int) -> int:
    """Tokens that an output must have room for, so that no round is cut short."""
    return 1 + LENGTH + num_speculations


def _draw(strategy: GenerationStrategy, prompt_ids: list[int], first: int, limit: int) -> Sequence:
    """The tokens after the first, by the rounds of an output of at most `limit` tokens."""
    strategy.engine.rollback(len(prompt_ids))
    output = Output(prompt_ids, limit, strategy.ending)
    output.extend([first])
    while output.stop_reason is None and len(output.ids) <= LENGTH:
        output.extend(strategy.round(output))
    return tuple(output.ids[1 : LENGTH + 1])


def _enumerate(
    strategy: GenerationStrategy,
    prompt_ids: list[int],
    output_ids: list[int],
    probability: float,
    least: float,
    law: dict[Sequence, float],
) -> None:
    """Walks all continuations of at least this probability, by full-depth steps."""
    if len(output_ids) > LENGTH or strategy.ending.reason(output_ids):
        law[tuple(output_ids[1:])] = probability
        return
    engine = strategy.engine
    engine.rollback(len(prompt_ids) + len(output_ids) - 1)
    logits_1V = engine.forward(strategy.column(output_ids[-1:]))
    (probs_V,) = strategy.config.sampling.probabilities(logits_1V, prompt_ids + output_ids)
    joint_V = probs_V.double() * probability
    for token in (joint_V >= least).nonzero()[:, 0].tolist():
        _enumerate(strategy, prompt_ids, [*output_ids, token], float(joint_V[token]), least, law)
