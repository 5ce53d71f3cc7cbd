"""Tables as text, all in one look: the first column to the left, numbers to the right."""

from collections.abc import Sequence

from tabulate import tabulate


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows under their header, in plain columns; cells are taken as they are."""
    sides = ("left", *["right"] * (len(header) - 1))
    return tabulate(rows, header, tablefmt="plain", disable_numparse=True, colalign=sides if rows else None)


def percent(share: float | None) -> str:
    """A share as a whole percentage; a dash for None and NaN."""
    return "-" if share is None or share != share else f"{100 * share:.0f} %"
