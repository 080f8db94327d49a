"""Test whether speculation samples from the verifier's distribution.

The joint distribution of generated tokens 2 to 4, given the first, which the prefill yields, is
sampled by speculation and computed from the verifier's probabilities token by token.

Shapes: V vocabulary.
"""

import itertools
from collections import Counter
from dataclasses import dataclass

import torch

from self_speculation.generator_base import GenerationStrategy, Output

LENGTH = 3
LEAST_EXPECTED = 5  # draws per bin that chi-square needs
ALPHA = 0.001
_ROUNDING = 1e-6  # by which a sum of float32 probabilities may differ from 1

Sequence = tuple[int, ...]


@dataclass(frozen=True)
class ChiSquare:
    """Pearson's test of draws against expected counts; `p_value` is None for a single bin.

    If the unlikely sequences are too rare for a bin, their number `rare_draws` is tested separately
    against `rare_expected`, and `p_value` covers both tests; otherwise both are None.
    """

    statistic: float
    degrees_of_freedom: int
    p_value: float | None
    rare_draws: int | None = None
    rare_expected: float | None = None


def sample_sequences(
    strategy: GenerationStrategy,
    prompt_ids: list[int],
    generator: torch.Generator,
    draws: int,
    judge: GenerationStrategy | None = None,
) -> tuple[Counter[Sequence], dict[Sequence, float]]:
    """Return the counts of the drawn sequences and the probabilities of the likely ones.

    A likely sequence is expected at least `LEAST_EXPECTED` times. A stop makes a sequence shorter
    than `LENGTH`; if the first token is a stop, both results are empty. The prompt runs once.

    Every other output has room for only `LENGTH` tokens after the first. Then fewer are drafted,
    and the comparison includes the token that follows an entirely accepted draft. `judge`, of the
    same configuration, computes the verifier's probabilities (default: the strategy's full steps).
    """
    judge = judge or strategy
    engine, sampling = strategy.engine, strategy.config.sampling
    strategy.begin(prompt_ids, generator)
    logits_1V = engine.prefill(strategy.column(prompt_ids))
    first_token, _ = sampling.pick(logits_1V, prompt_ids, generator)
    first = int(first_token)
    if strategy.ending.reason([first]):
        return Counter(), {}
    limits = itertools.cycle((needed_tokens(strategy.config.num_speculations), 1 + LENGTH))
    drawn = (_draw(strategy, prompt_ids, first, limit) for limit in limits)
    observed = Counter(itertools.islice(drawn, draws))
    expected: dict[Sequence, float] = {}
    if judge is not strategy:
        judge.begin(prompt_ids, generator)
        judge.engine.forward(judge.column(prompt_ids))
    _enumerate(judge, prompt_ids, [first], 1.0, LEAST_EXPECTED / draws, expected)
    return observed, expected


def chi_square(observed: Counter[Sequence], expected: dict[Sequence, float]) -> ChiSquare:
    """Test counts against the probabilities of likely sequences; all others share one bin.

    If the others together are expected fewer than `LEAST_EXPECTED` times, too few for chi-square,
    their number is tested separately, and the p-value is twice the smaller of both.
    """
    draws = observed.total()
    counts = [observed[sequence] for sequence in expected]
    probabilities = list(expected.values())
    others = draws - sum(counts)
    remainder = 1 - sum(probabilities)
    if draws * remainder >= LEAST_EXPECTED:
        return _pearson([*counts, others], [*probabilities, remainder])
    found = _pearson(counts, [one / sum(probabilities) for one in probabilities])
    rare_expected = draws * max(remainder, _ROUNDING)
    rare_p_value = _at_least(others, rare_expected)
    if found.p_value is None:
        p_value = rare_p_value if others else None
    else:
        p_value = min(1.0, 2 * min(rare_p_value, found.p_value))
    return ChiSquare(found.statistic, found.degrees_of_freedom, p_value, others, rare_expected)


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
    """Return the probability of `count` rare events or more (Poisson)."""
    if not count:
        return 1.0
    pair = torch.tensor([count, expected], dtype=torch.float64)
    return float(torch.special.gammainc(pair[0], pair[1]))


def needed_tokens(num_speculations: int) -> int:
    """Return the tokens that an output needs room for, so that no draft is shortened."""
    return 1 + LENGTH + num_speculations


def _draw(strategy: GenerationStrategy, prompt_ids: list[int], first: int, limit: int) -> Sequence:
    """Return the tokens after the first, from the rounds of an output of at most `limit` tokens."""
    strategy.engine.rollback(len(prompt_ids))
    strategy.begin_output(prompt_ids)
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
    found: dict[Sequence, float],
) -> None:
    """Add all continuations of at least this probability, by full-depth steps."""
    if len(output_ids) > LENGTH or strategy.ending.reason(output_ids):
        found[tuple(output_ids[1:])] = probability
        return
    engine = strategy.engine
    engine.rollback(len(prompt_ids) + len(output_ids) - 1)
    logits_1V = engine.forward(strategy.column(output_ids[-1:]))
    (probs_V,) = strategy.config.sampling.probabilities(logits_1V, prompt_ids + output_ids)
    joint_V = probs_V.double() * probability
    for token in (joint_V >= least).nonzero()[:, 0].tolist():
        _enumerate(strategy, prompt_ids, [*output_ids, token], float(joint_V[token]), least, found)
