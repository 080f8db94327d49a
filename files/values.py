"""Dataclasses made of what a JSON file holds."""

import dataclasses
import functools
import types
import typing
from typing import Any


def made_of(record: type, values: Any, **others: Any) -> Any:
    """The record that has these values. Raises ValueError where they are not those of one."""
    if not isinstance(values, dict):
        raise ValueError("holds no object")
    known = {item.name: item for item in dataclasses.fields(record)}
    for name in values:
        if name not in known:
            raise ValueError(f"holds {name}, which no {record.__name__} has")
    for name, item in known.items():
        has_none = item.default is item.default_factory is dataclasses.MISSING
        if has_none and name not in values:
            raise ValueError(f"lacks {name}, a part of every {record.__name__}")
    made = record(**values, **others)
    check_kinds(made)
    return made


def check_kinds(record: Any) -> None:
    """Raises ValueError for a field of a log that holds another kind of value than it may."""
    for name, kinds in _kinds(type(record)).items():
        if not isinstance(getattr(record, name), kinds):
            raise ValueError(f"has {kind_of(getattr(record, name))} for {name}")


def kind_of(value: Any) -> str:
    """What JSON calls a value's kind."""
    names = {list: "a list", dict: "an object", str: "a text", type(None): "null"}
    return names.get(type(value), repr(value))


@functools.cache
def _kinds(record: type) -> dict[str, tuple[type, ...]]:
    """What a JSON file may hold in each field of a dataclass, in Python's types."""
    found = {}
    for name, hint in typing.get_type_hints(record).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds = tuple(typing.get_origin(option) or option for option in options)
        found[name] = (*kinds, int) if float in kinds else kinds
    return found
