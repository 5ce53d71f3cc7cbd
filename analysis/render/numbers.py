"""How numbers look, in tables and figures alike."""

import math
from typing import Any

from neurotally.analysis.parts import Cell, Column, Value

NOTHING = "-"
"""Where there is no number."""


def number_text(value: Any, kind: str, digits: int | None = None) -> str:
    """A number as a column of this kind shows it; a dash for None and NaN."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if kind == "index":
        return str(value)
    if kind == "count":
        return f"{value:,}"
    if kind == "share":
        return f"{100 * value:.{digits or 0}f} %"
    sign = "+" if kind == "signed" else ""
    return format(value, f"{sign}.4g" if digits is None else f"{sign},.{digits}f")


def digits_of_three(largest: float) -> int:
    """How many digits after the point show three of the largest number: for numbers beside each other; at most 5."""
    return min(5, max(0, 2 - math.floor(math.log10(largest)))) if 0 < largest < math.inf else 2


def cell_text(column: Column, cell: Cell) -> str:
    """What stands in a table's cell: the value, ± its error, and its mark."""
    value, error, mark = cell if isinstance(cell, Value) else Value(cell)  # type: ignore[arg-type]
    if isinstance(value, str):
        return value + mark
    text = number_text(value, column.kind, column.digits)
    if text != NOTHING and error is not None and math.isfinite(error):
        text += f" ± {number_text(error, 'number' if column.kind == 'signed' else column.kind, column.digits)}"
    return text + mark
