"""The table of what is added up for every neuron: stated here, followed everywhere.

A device's tally, a unit's result, a corpus's sums, checkpoints and the store hold these under these names. To add one:
a line here, the formula in `reference.tally_reference`, and the loops of `tally.cpp` and `triton_tally.py`, which go by
name as well: `compiled` compares the names and types in `tally.cpp` with these. Loads no torch.
"""

import math
from dataclasses import dataclass
from typing import Literal

NO_DOCUMENT = 2**32 - 1
"""The document, and the position, of an unused trigger."""


@dataclass(frozen=True)
class Statistic:
    """One number a neuron."""

    name: str
    """Of the array in the store."""
    dtype: str
    """On the device."""
    merge: Literal["sum", "max", "min"]
    """How units become a corpus; float64 sums left to right by unit."""
    stored: str
    """The dtype in the store."""
    by_group: bool
    """Whether the store keeps it group by group."""

    @property
    def initial(self) -> float:
        """Its value before the first token."""
        return {"sum": 0.0, "max": -math.inf, "min": math.inf}[self.merge]

    @property
    def fill(self) -> float:
        """What the store holds where there is no neuron."""
        return 2**64 - 1 if self.stored == "uint64" else math.nan

    @property
    def shipped(self) -> str:
        """The dtype in a unit's result, as narrow as it can be: no unit has 2^32 tokens."""
        return "uint32" if self.stored == "uint64" else self.stored

    @property
    def axes(self) -> tuple[str, ...]:
        """In the store."""
        return ("group", "layer", "neuron") if self.by_group else ("layer", "neuron")


STATISTICS = (
    Statistic("active", "int64", "sum", "uint64", by_group=True),
    Statistic("active_special", "int64", "sum", "uint64", by_group=True),
    Statistic("activation_sum", "float64", "sum", "float64", by_group=False),
    Statistic("coefficient_sum", "float64", "sum", "float64", by_group=False),
    Statistic("coefficient_sum_absolute", "float64", "sum", "float64", by_group=False),
    Statistic("coefficient_sum_squares", "float64", "sum", "float64", by_group=False),
    Statistic("coefficient_max", "float32", "max", "float32", by_group=False),
    Statistic("coefficient_min", "float32", "min", "float32", by_group=False),
)
"""The formulas are those of `neurotally.kernels.tally`."""
ROUTED = (Statistic("weighted_coefficient_sum", "float64", "sum", "float64", by_group=False),)
"""Beside them for experts: see `neurotally.kernels.tally`."""


def statistics_of(has_experts: bool) -> tuple[Statistic, ...]:
    """All that is added up for neurons, of experts or of others."""
    return STATISTICS + ROUTED if has_experts else STATISTICS
