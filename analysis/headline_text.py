"""The words of a report's headline, as plain values that its template shows."""

from typing import Any

from analysis.comparison import LESS_IS_BETTER, QUALITIES
from analysis.headline import Choice, Headline
from analysis.intervals import Interval
from analysis.report_data import run_name
from analysis.run_commands import command_of

_LOSSLESS = "Fastest lossless setting"
_LOSSY = "Fastest pruned plan within the loss"


def headline_content(headline: Headline, quality: str, most_loss: float) -> dict[str, Any]:
    """Return the two choices among comparable runs, each with its reasons."""
    less = " (less is better)" if quality in LESS_IS_BETTER else ""
    limit = f"loses at most {most_loss:g} of {QUALITIES[quality]}{less} on average"
    return {
        "title": headline.title.replace("\n", ", "),
        "runs": headline.runs,
        "choices": [_lossless(headline.lossless), _lossy(headline, limit, most_loss)],
    }


def _lossless(choice: Choice | None) -> dict[str, Any]:
    if choice is None:
        return {"title": _LOSSLESS, "reason": "No run of the unpruned model has a decoding speed."}
    facts = []
    if choice.run.strategy == "autoregressive":
        facts.append("No self-speculative run of the unpruned model is faster.")
    return _choice(_LOSSLESS, choice, [*facts, _competition(choice, "of the unpruned model")])


def _lossy(headline: Headline, limit: str, most_loss: float) -> dict[str, Any]:
    choice, lossless = headline.lossy, headline.lossless
    if choice is None or choice.loss is None:
        return {"title": _LOSSY, "reason": _why_none(headline, limit)}
    loss, measured = choice.loss, choice.measured
    other = measured if measured and measured.path != choice.run.path else None
    where = f", on {other.num_samples:g} prompts in run {other.record.run_id}" if other else ""
    facts = [
        f"Its loss is {loss.value:+.3f}{_bounds(loss, '+.3f')} against the unpruned model with the "
        f"same decoder{where}."
    ]
    if loss.high is not None and loss.high > most_loss:
        facts.append("The interval reaches beyond the limit: on other prompts it may lose more.")
    if lossless and (lossless.run.speed or 0) > (choice.run.speed or 0):
        facts.append("The fastest lossless setting is faster.")
    return _choice(_LOSSY, choice, [*facts, _competition(choice, f"whose plan {limit}")])


def _why_none(headline: Headline, limit: str) -> str:
    if headline.least_loss is None:
        return "No pruned run has a base run of the same decoder to compare its quality with."
    return (
        f"None of {headline.pruned} pruned run{_plural(headline.pruned)} {limit}; the smallest "
        f"loss is {headline.least_loss:.3f}."
    )


def _choice(title: str, choice: Choice, facts: list[str]) -> dict[str, Any]:
    run, equal = choice.run, choice.compared.equal_outputs
    if not choice.baselines and (run.strategy != "autoregressive" or run.method != "base"):
        facts = ["No autoregressive run of the unpruned model to compare its speed with.", *facts]
    if equal:
        facts = [
            f"{equal[0]} of {equal[1]} outputs equal those of autoregressive decoding of the same "
            "plan, token for token.",
            *facts,
        ]
    if run.record.model.get("plan_of_origin"):
        facts = ["The model that was loaded is itself a pruned checkpoint.", *facts]
    return {
        "title": title,
        "path": run.path.name,
        "id": run.record.run_id,
        "name": run_name(run),
        "prompts": f"{run.num_samples:g}",
        "speed": f"{run.speed:.1f}",
        "speedups": _speedups(choice),
        "facts": facts,
        "command": command_of(run),
    }


def _competition(choice: Choice, among: str) -> str:
    count = choice.candidates
    if count == 1:
        return f"The only run {among}."
    return f"The fastest of {count} runs {among}; the intervals do not allow for that choice."


def _speedups(choice: Choice) -> list[dict[str, Any]]:
    return [
        {
            "value": f"{one.speedup.value:.2f}×",
            "interval": _bounds(one.speedup, ".2f"),
            "baseline": f"{'the fastest, ' if one.is_best else ''}{one.kind}",
            "id": one.run.record.run_id,
            "path": one.run.path.name,
            "speed": f"{one.run.speed:.1f}",
        }
        for one in choice.baselines
        if one.speedup
    ]


def _bounds(interval: Interval, form: str) -> str:
    if interval.low is None or interval.high is None:
        return " (no interval)"
    return f" [{interval.low:{form}}, {interval.high:{form}}]"


def _plural(count: int) -> str:
    return "s" if count > 1 else ""
