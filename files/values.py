"""Dataclasses from the values in a JSON file."""

import functools
import types
import typing
from typing import Any


def made_of(record: type, values: Any, **others: Any) -> Any:
    """Return a `record` with these values. Raise ValueError for missing, unknown or wrong ones."""
    try:
        made = record(**values, **others)
    except TypeError as error:
        what = str(error).removeprefix(f"{record.__name__}.__init__() ")
        raise ValueError(f"holds no {record.__name__} ({what})") from error
    check_kinds(made)
    return made


def check_kinds(record: object) -> None:
    """Raise ValueError for a field whose value is not of the annotated type."""
    # mypy 1.x takes a class's own __hash__ for that of its instances.
    for name, kinds in _kinds(type(record)).items():  # type: ignore[arg-type]
        if not isinstance(getattr(record, name), kinds):
            raise ValueError(f"has {kind_of(getattr(record, name))} for {name}")


def kind_of(value: Any) -> str:
    """Return JSON's word for the value's type, or the value itself if it is short."""
    names = {list: "a list", dict: "an object", str: "a text", type(None): "null"}
    return names.get(type(value), repr(value))


@functools.cache
def _kinds(record: type) -> dict[str, tuple[type, ...]]:
    """Return the Python types that JSON may hold for each field of a dataclass."""
    found = {}
    for name, hint in typing.get_type_hints(record).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds = tuple(typing.get_origin(option) or option for option in options)
        found[name] = (*kinds, int) if float in kinds else kinds
    return found
