"""Examples with the tokens of their prompts."""

from dataclasses import dataclass

from command_line.errors import UsageError
from command_line.messages import warn
from prompts.examples import EvaluationExample
from runs.definition import RunDefinition
from runs.prompt_encoding import fitted, longest_prompt
from self_speculation.llama_model_utils import position_limit


@dataclass
class EncodedExample:
    """An example with its prompt's tokens; None if they exceed the model's positions.

    `full_length` counts the prompt's tokens before the model's positions cut it. A plain text may
    have any length.
    """

    example: EvaluationExample
    full_length: int
    prompt_ids: list[int] | None


def encode_examples(definition: RunDefinition) -> list[EncodedExample]:
    """Return the examples with their prompts' tokens.

    `--truncate_prompt` keeps the tail of a prompt that leaves no room for `--max_steps`. Raises
    `UsageError` if every prompt exceeds the model's positions.
    """
    data, steps = definition.arguments.data, definition.arguments.generation.max_steps
    pairs = list(zip(definition.evaluated.examples, definition.prompt_ids, strict=True))
    if definition.arguments.is_plain_text:
        return [EncodedExample(one, len(ids), ids) for one, ids in pairs]
    limit = position_limit(definition.checkpoint.config)
    longest = longest_prompt(data, steps, limit)
    encoded = [EncodedExample(one, len(ids), fitted(data, ids, longest)) for one, ids in pairs]
    _warn_of_changing_factors(definition, encoded, limit)
    if all(item.prompt_ids is None for item in encoded):
        raise UsageError(
            f"--dataset {data.dataset}: every prompt exceeds the model's {limit} positions; "
            "--truncate_prompt true keeps their tails"
        )
    return encoded


def _warn_of_changing_factors(
    definition: RunDefinition, encoded: list[EncodedExample], limit: int
) -> None:
    """Warn of answers that end early because LongRoPE changes its factors there."""
    config, steps = definition.checkpoint.config, definition.arguments.generation.max_steps
    lengths = [len(item.prompt_ids) for item in encoded if item.prompt_ids]
    ends = [(position_limit(config, length), length + steps - 1) for length in lengths]
    earlier = [end for end, wanted in ends if end < min(wanted, limit)]
    if earlier:
        changes = f"at {earlier[0]} tokens, where the factors of LongRoPE change"
        warn(f"--max_steps {steps}: {len(earlier)} of {len(encoded)} answers end {changes}")
