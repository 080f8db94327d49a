"""Whether sampled outputs are distributed as the verifier says.

The joint law of generated tokens 2 to 4, given the first, which belongs to the prefill: drawn many
times over by speculation, and computed from the verifier's probabilities token by token.

Shapes: V vocabulary.
"""

from collections import Counter
from dataclasses import dataclass

import torch

from self_speculation.generator_base import GenerationStrategy, Output

LENGTH = 3
LEAST_EXPECTED = 5  # draws in a bin, for chi-square to hold
ALPHA = 0.001

Sequence = tuple[int, ...]


@dataclass(frozen=True)
class ChiSquare:
    """Pearson's test of draws against expected counts; `p_value` None where there is no choice."""

    statistic: float
    degrees_of_freedom: int
    p_value: float | None


def sampled_law(
    strategy: GenerationStrategy, prompt_ids: list[int], generator: torch.Generator, draws: int
) -> tuple[Counter[Sequence], dict[Sequence, float]]:
    """What speculation drew, and the verifier's probability of every sequence that is likely.

    Likely is what is expected at least `LEAST_EXPECTED` times. A sequence is shorter than `LENGTH`
    where a stop ends it; both are empty where the first token is one. The prompt is read once.
    """
    engine, sampling = strategy.engine, strategy.config.sampling
    strategy.begin(generator)
    logits_1V = engine.forward(strategy.column(prompt_ids))
    first_token, _ = sampling.pick(logits_1V, prompt_ids, generator)
    first = int(first_token)
    if strategy.stop_rule.reason([first]):
        return Counter(), {}
    observed = Counter(_draw(strategy, prompt_ids, first) for _ in range(draws))
    law: dict[Sequence, float] = {}
    _enumerate(strategy, prompt_ids, [first], 1.0, LEAST_EXPECTED / draws, law)
    return observed, law


def chi_square(observed: Counter[Sequence], law: dict[Sequence, float]) -> ChiSquare:
    """Compares counts with a law whose unlikely sequences, left out of it, share one bin.

    Where even together they are expected less than `LEAST_EXPECTED` times, they join the rarest
    of the others.
    """
    draws = observed.total()
    counts = [observed[sequence] for sequence in law]
    expected = [draws * probability for probability in law.values()]
    counts.append(draws - sum(counts))
    expected.append(draws - sum(expected))
    if expected[-1] < LEAST_EXPECTED and len(expected) > 1:
        rarest = min(range(len(expected) - 1), key=expected.__getitem__)
        counts[rarest] += counts.pop()
        expected[rarest] += expected.pop()
    freedom = len(counts) - 1
    statistic = sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True))
    if freedom == 0:
        return ChiSquare(statistic, 0, None)
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return ChiSquare(statistic, freedom, float(torch.special.gammaincc(half[0], half[1])))


def needed_tokens(num_speculations: int) -> int:
    """Tokens that an output must have room for, so that no round is cut short."""
    return 1 + LENGTH + num_speculations


def _draw(strategy: GenerationStrategy, prompt_ids: list[int], first: int) -> Sequence:
    """The tokens after the first, by as many whole rounds as they take."""
    strategy.engine.rollback(len(prompt_ids))
    limit = needed_tokens(strategy.config.num_speculations)
    output = Output(prompt_ids, limit, strategy.stop_rule)
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
    if len(output_ids) > LENGTH or strategy.stop_rule.reason(output_ids):
        law[tuple(output_ids[1:])] = probability
        return
    engine = strategy.engine
    engine.rollback(len(prompt_ids) + len(output_ids) - 1)
    logits_1V = engine.forward(strategy.column(output_ids[-1:]))
    (probs_V,) = strategy.config.sampling.probabilities(logits_1V, prompt_ids + output_ids)
    joint_V = probs_V.double() * probability
    for token in (joint_V >= least).nonzero()[:, 0].tolist():
        _enumerate(strategy, prompt_ids, [*output_ids, token], float(joint_V[token]), least, law)
