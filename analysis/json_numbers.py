"""Numbers as they stand in a JSON document, which knows no NaN."""

from collections.abc import Iterable

import numpy as np


def number(value: float) -> float | None:
    """The number, or None where there is none: NaN or infinite."""
    return float(value) if np.isfinite(value) else None


def numbers(values: Iterable[float]) -> list[float | None]:
    """A list of them."""
    return [number(value) for value in values]
