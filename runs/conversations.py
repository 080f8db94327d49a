"""The turns of an example: each prompt after the first holds the model's own earlier answers.

A `Conversation` asks for one prompt at a time and is given the answer, so that whoever decodes may
advance one conversation, or many side by side.
"""

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from runs.copied_tokens import copied_tokens
from runs.definition import RunDefinition
from runs.encoding import EncodedExample
from runs.prompt_encoding import encode, fitted, longest_prompt
from self_speculation.drafters import DRAFTERS
from self_speculation.generator_base import Generation
from self_speculation.llama_model_utils import position_limit

TOO_LONG = "prompt_too_long"
# An answer's text may have more tokens than the answer: a byte that is no character becomes the
# replacement character, which is three bytes.
_TOKENS_OF_A_TOKEN = 3
_ANY_ANSWER = "Hello"


@dataclass(frozen=True)
class Request:
    """A prompt to decode; the run's seed and `name` draw its tokens."""

    prompt_ids: list[int]
    name: str


@dataclass(frozen=True)
class Answer:
    """A decoded prompt, and the full steps timed after it, if any."""

    request: Request
    made: Generation
    full_step: dict[str, float] | None = None

    @property
    def copied_tokens(self) -> int:
        return copied_tokens(self.request.prompt_ids, self.made.output_ids)


class Conversation:
    """An example whose prompts are decoded one after another.

    `request` is the prompt to decode next; None after the last turn. A turn whose prompt exceeds
    the model's positions ends the conversation, unless `--truncate_prompt` keeps the tail.
    `is_answered`: no prompt was left without an answer.
    """

    is_answered = True

    def __init__(self, definition: RunDefinition, item: EncodedExample) -> None:
        assert item.prompt_ids is not None
        self._definition, self._example = definition, item.example
        self._answers: list[Answer] = []
        self._too_long: int | None = None
        self.request: Request | None = Request(item.prompt_ids, item.example.example_id)

    def receive(self, answer: Answer | None) -> None:
        """Take the answer to `request`, and go on to the next turn; None ends the conversation."""
        if answer is None:
            self.request, self.is_answered = None, False
            return
        self._answers.append(answer)
        self.request = self._next()

    def values(self, is_timed: bool = True) -> dict[str, Any]:
        """Return the fields of the example's record that decoding determines, summed over turns.

        `is_timed`: the answers' seconds are their own, and not those of a batch.
        """
        made = [answer.made for answer in self._answers]
        return {
            "prompt_tokens": sum(one.prompt_tokens for one in made),
            "prediction": "\n\n".join(one.text for one in made),
            "output_ids": [token for one in made for token in one.output_ids],
            "stop_reason": made[-1].stop_reason,
            "prefill_seconds": sum(one.prefill_seconds for one in made) if is_timed else None,
            "decode_seconds": sum(one.decode_seconds for one in made) if is_timed else None,
            "steps": _summed_steps(made),
            "full_step": _summed([one.full_step for one in self._answers if one.full_step]),
            "rounds": [pair for one in made for pair in one.rounds],
            "drafters": self._drafters(),
            "switches": [dataclasses.asdict(switch) for one in made for switch in one.switches],
            "earlier_answers": made[0].earlier_answers,
            "turns": self._turns(is_timed) if self._example.turns else [],
            "copied_tokens": sum(answer.copied_tokens for answer in self._answers),
        }

    def _drafters(self) -> list[str]:
        """Return the drafter of each round of a hybrid; no other run needs to name them."""
        if not DRAFTERS[self._definition.arguments.draft.drafter].combines:
            return []
        return [name for answer in self._answers for name in answer.made.drafters]

    def _next(self) -> Request | None:
        asked = len(self._answers)
        if asked > len(self._example.turns):
            return None
        texts = [answer.made.text for answer in self._answers]
        ids = _later_prompt(self._definition, self._example.prompt, texts, self._example.turns)
        fitting = fitted(self._definition.arguments.data, ids, _longest(self._definition))
        if fitting is None:
            self._too_long = len(ids)
            return None
        return Request(fitting, f"{self._example.example_id} turn {asked + 1}")

    def _turns(self, is_timed: bool) -> list[dict[str, Any]]:
        """Return an entry for each turn, also for those that the conversation did not come to."""
        turns = [_turn(answer.made, is_timed) for answer in self._answers]
        missing = 1 + len(self._example.turns) - len(turns)
        lengths = [self._too_long, *[None] * missing][:missing]
        return turns + [_unanswered(length) for length in lengths]


def needed_prompt(definition: RunDefinition, item: EncodedExample) -> int:
    """Return the most tokens that a prompt of the example can have: the last of its turns."""
    assert item.prompt_ids is not None
    example = item.example
    if not example.turns:
        return len(item.prompt_ids)
    answers = [_ANY_ANSWER] * len(example.turns)
    ids = _later_prompt(definition, example.prompt, answers, example.turns)
    most = definition.arguments.generation.max_steps * _TOKENS_OF_A_TOKEN
    longest = _longest(definition)
    kept = definition.arguments.data.max_prompt_tokens or longest
    return min(len(ids) + len(answers) * most, kept, longest)


def _later_prompt(
    definition: RunDefinition, prompt: str, answers: list[str], turns: tuple[str, ...]
) -> list[int]:
    later = list(zip(answers, turns, strict=False))
    return encode(definition.arguments.data, definition.checkpoint, prompt, later)


def _longest(definition: RunDefinition) -> int:
    arguments, limit = definition.arguments, position_limit(definition.checkpoint.config)
    return longest_prompt(arguments.data, arguments.generation.max_steps, limit)


def _turn(made: Generation, is_timed: bool) -> dict[str, Any]:
    return {
        "prompt_tokens": made.prompt_tokens,
        "generated_tokens": len(made.output_ids),
        "drafted": made.drafted_tokens,
        "accepted": made.accepted_tokens,
        "prefill_seconds": made.prefill_seconds if is_timed else None,
        "decode_seconds": made.decode_seconds if is_timed else None,
        "stop_reason": made.stop_reason,
    }


def _unanswered(prompt_tokens: int | None) -> dict[str, Any]:
    names = ("drafted", "accepted", "prefill_seconds", "decode_seconds")
    facts = {"prompt_tokens": prompt_tokens, "generated_tokens": 0, "stop_reason": TOO_LONG}
    return dict.fromkeys(names) | facts


def _summed_steps(made: list[Generation]) -> dict[str, dict[str, float]]:
    steps: dict[str, list[dict[str, float]]] = defaultdict(list)
    for one in made:
        for name, step in one.steps.items():
            steps[name].append(dataclasses.asdict(step))
    return {name: _sum_of(found) for name, found in steps.items()}


def _summed(steps: list[dict[str, float]]) -> dict[str, float] | None:
    return _sum_of(steps) if steps else None


def _sum_of(steps: list[dict[str, float]]) -> dict[str, float]:
    return {key: sum(step[key] for step in steps) for key in ("calls", "seconds")}
