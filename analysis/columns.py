"""Columns of a table: how a row of raw numbers is shown to people, and in which formats."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas
from tabulate import tabulate

_STYLES = {"markdown": "pipe", "latex": "latex_booktabs"}
FORMATS = (*_STYLES, "csv", "json")
MISSING = "-"

Row = dict[str, Any]
Columns = dict[str, Callable[[Row], str]]  # headings, and how a row is shown under them


@dataclass(frozen=True)
class Shown:
    """Shows a row's number `name`; a page that sorts rows reads the raw number instead."""

    name: str
    show: Callable[[Row], str]

    def __call__(self, row: Row) -> str:
        return self.show(row)


@dataclass(frozen=True)
class Table:
    """`rows` hold raw numbers under the names of a CSV file's columns; None is missing."""

    name: str
    title: str
    rows: list[Row]
    columns: Columns

    def csv(self) -> str:
        return pandas.DataFrame(self.rows, dtype=object).to_csv(index=False)

    def text(self, form: str) -> str:
        """Return the columns to read as Markdown or LaTeX, or all raw numbers as CSV."""
        if form == "csv":
            return self.csv().rstrip("\n")
        cells = [[show(row) for show in self.columns.values()] for row in self.rows]
        return tabulate(cells, list(self.columns), tablefmt=_STYLES[form], disable_numparse=True)


def number(name: str, form: str, factor: float = 1) -> Shown:
    """Show a number, times the factor, and its bounds where the row has them."""

    def show(row: Row) -> str:
        value, low, high = (row.get(key) for key in (name, f"{name}_low", f"{name}_high"))
        if value is None:
            return MISSING
        bounds = "" if low is None else f" [{low:{form}}, {high:{form}}]"
        return format(value * factor, form) + bounds

    return Shown(name, show)


def spread(name: str, form: str) -> Shown:
    """Show a mean and its standard deviation."""

    def show(row: Row) -> str:
        mean, deviation = row[f"{name}_mean"], row[f"{name}_standard_deviation"]
        return MISSING if mean is None else f"{mean:{form}} ± {deviation:{form}}"

    return Shown(f"{name}_mean", show)
