"""Tables as text, all in one look: the first column to the left, numbers to the right."""

from collections.abc import Sequence

import numpy as np
from tabulate import tabulate


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows under their header, in plain columns; cells are taken as they are."""
    sides = ("left", *["right"] * (len(header) - 1))
    return tabulate(rows, header, tablefmt="plain", disable_numparse=True, colalign=sides if rows else None)


def layer_runs(num_layers: int, most: int) -> dict[str, np.ndarray]:
    """The layers in up to `most` runs of nearly one length, from the first, by what a column calls them."""
    runs = np.array_split(np.arange(num_layers), min(most, num_layers))
    return {f"layers {run[0]}-{run[-1]}" if len(run) > 1 else f"layer {run[0]}": run for run in runs}


def decimals(value: float, number: int) -> str:
    """A value with so many decimals; a dash for NaN."""
    return "-" if np.isnan(value) else f"{value:.{number}f}"


def percent(share: float | None) -> str:
    """A share as a whole percentage; a dash for None and NaN."""
    return "-" if share is None or share != share else f"{100 * share:.0f} %"


def signed(value: float | None, number: int = 3) -> str:
    """A value with its sign and so many decimals; a dash for None."""
    return "-" if value is None else f"{value:+.{number}f}"
