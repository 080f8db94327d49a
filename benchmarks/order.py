"""The order of sides that take turns."""

from typing import TypeVar

Item = TypeVar("Item")


def in_turn(sides: list[Item], turn: int, turns: int) -> list[Item]:
    """Return the sides in the order of this turn.

    Over all turns, each side is first, last and between others as evenly as their numbers allow.
    Every other turn runs backwards, so that no side always follows the same one.
    """
    start = turn // 2 * 2 * len(sides) // turns
    return (sides[start:] + sides[:start])[:: -1 if turn % 2 else 1]
