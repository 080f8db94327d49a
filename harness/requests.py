"""Translates a harness task's generation arguments into the project's flags."""

import dataclasses
from typing import Any, NoReturn

from lm_eval.models.utils import normalize_gen_kwargs

from arguments.generation import GenerationArguments
from command_line.errors import UsageError

# Fields of GenerationArguments that tasks call by the same name, with their types.
_SAME_NAME = {"top_p": float, "top_k": int, "no_repeat_ngram_size": int}
# Arguments that change nothing at these values, and are refused at others.
_NEUTRAL = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1,),
    "typical_p": (1,),
    "min_p": (0,),
    "use_cache": (True, False),
}
_HANDLED = {"until", "max_gen_toks", "do_sample", "temperature"} | _SAME_NAME.keys()


def decoding_of(
    flags: GenerationArguments, asked: dict[str, Any], task: str
) -> tuple[GenerationArguments, tuple[str, ...]]:
    """Return the flags as a task's generation arguments change them, and its stop words.

    As in the harness, a temperature without `do_sample` decides whether to sample; temperature 0 is
    greedy. Raise `UsageError` for arguments that are not supported.
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    try:
        # It copies, and knows all names of `max_gen_toks`.
        values = normalize_gen_kwargs(asked, flags.max_steps)
        changes = _changes(flags, asked, values)
        changed = dataclasses.replace(flags, **changes)
        changed.check()
    except (TypeError, ValueError) as error:  # a UsageError is a ValueError
        _refuse(task, str(error))
    for name, value in values.items():
        if name not in _HANDLED and value not in _NEUTRAL.get(name, ()):
            known = f"only {_NEUTRAL[name][0]} is supported" if name in _NEUTRAL else "unknown"
            _refuse(task, f"{name} {value}: {known}")
    return changed, _stop_words(values["until"], task)


def _changes(
    flags: GenerationArguments, asked: dict[str, Any], values: dict[str, Any]
) -> dict[str, Any]:
    changes = {name: kind(asked[name]) for name, kind in _SAME_NAME.items() if name in asked}
    if changes.get("no_repeat_ngram_size") == 0:
        changes["no_repeat_ngram_size"] = None
    changes["max_steps"] = values["max_gen_toks"]
    temperature = float(asked.get("temperature", flags.temperature))
    if {"do_sample", "temperature"} & asked.keys():
        changes["sample"] = bool(values["do_sample"]) and temperature != 0
    if changes.get("sample", flags.sample):
        changes["temperature"] = temperature
    return changes


def _stop_words(until: list[Any], task: str) -> tuple[str, ...]:
    strange = [word for word in until if not isinstance(word, str)]
    if strange:
        _refuse(task, f"until {strange[0]!r}: must be texts")
    return tuple(word for word in until if word)


def _refuse(task: str, reason: str) -> NoReturn:
    raise UsageError(f"--tasks {task}: its generation arguments are not supported ({reason})")
