"""Sums of teacher-forced passes, and what a run's metrics make of them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from command_line.errors import UsageError


@dataclass(frozen=True)
class Sums:
    """Sums over the predicted tokens of one or several passages.

    `nats`: negative log-likelihood. `kl_nats`: KL(unpruned || measured) at each position.
    `agreeing`: positions at which both models find the same token likeliest. The last two are None
    without an unpruned model to compare with.
    """

    tokens: int
    nats: float
    kl_nats: float | None = None
    agreeing: int | None = None

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.nats + (self.kl_nats or 0))

    def to_dict(self, text_bytes: int) -> dict[str, float]:
        """Return the sums as a line of the log holds them, without those that are None."""
        values = {"tokens": self.tokens, "bytes": text_bytes, "nats": self.nats}
        compared = {"kl_nats": self.kl_nats, "agreeing": self.agreeing}
        return values | {name: value for name, value in compared.items() if value is not None}


def total(parts: list[Sums]) -> Sums:
    """Return the sums over all parts, of which there is at least one."""
    tokens, nats = sum(one.tokens for one in parts), math.fsum(one.nats for one in parts)
    kl_nats = [one.kl_nats for one in parts if one.kl_nats is not None]
    agreeing = [one.agreeing for one in parts if one.agreeing is not None]
    if len(kl_nats) < len(parts):
        return Sums(tokens, nats)
    return Sums(tokens, nats, math.fsum(kl_nats), sum(agreeing))


def check_finite(model: str, lines: Iterable[dict[str, float]]) -> None:
    """Raise `UsageError` if a value of these lines of `Sums` is not finite."""
    if not all(math.isfinite(value) for line in lines for value in line.values()):
        raise not_finite(model)


def not_finite(model: str) -> UsageError:
    return UsageError(f"--model {model}: log-likelihoods are not finite; try another --dtype")


def likelihood(lines: Iterable[dict[str, float] | None]) -> dict[str, Any]:
    """Return a run's `teacher_forced` metrics from those of its lines; docs/perplexity.md.

    Lines that are None, because nothing was measured, are left out. KL and agreement are None
    unless all others have them.
    """
    measured = [line for line in lines if line]

    def summed(name: str) -> float | None:
        values = [line[name] for line in measured if name in line]
        return math.fsum(values) if values and len(values) == len(measured) else None

    tokens, text_bytes, nats = summed("tokens"), summed("bytes"), summed("nats")
    nats_per_token = _ratio(nats, tokens)
    bits = None if nats is None else nats / math.log(2)
    return {
        "perplexity": None if nats_per_token is None else _exponential(nats_per_token),
        "bits_per_byte": _ratio(bits, text_bytes),
        "nats_per_token": nats_per_token,
        "kl": _ratio(summed("kl_nats"), tokens),
        "agreement": _ratio(summed("agreeing"), tokens),
        "tokens": int(tokens or 0),
        "bytes": int(text_bytes or 0),
        "prompts": len(measured),
    }


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


def _exponential(value: float) -> float | None:
    try:
        return math.exp(value)
    except OverflowError:
        return None  # JSON has no infinity
