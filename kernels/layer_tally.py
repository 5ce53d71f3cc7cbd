"""What a layer's tally is made of: the kinds of cells, the sums, and the largest coefficients of a batch's rows."""

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from neurotally.kernels.statistics import statistics_of

PAD, TOKEN, SPECIAL, REPEAT = 0, 1, 2, 3
"""Of a cell of a batch; see `neurotally.kernels.tally`."""


class Statistics(IntEnum):
    """How much is tallied; what isn't keeps its value in the tally, and the row maxima are 0."""

    COUNTS = 1
    """`active` and `active_special`."""
    MOMENTS = 2
    """And the sums and extremes."""
    EVERYTHING = 3
    """And the row maxima."""


class LayerTally(dict[str, Tensor]):
    """A layer's sums by their names in `statistics_of`, [F] each, on the layer's device; ops add to them in place."""

    @classmethod
    def empty(cls, num_neurons: int, device: torch.device | str = "cpu", has_experts: bool = False) -> "LayerTally":
        """A tally of no tokens."""
        return cls(
            (one.name, torch.full((num_neurons,), one.initial, dtype=getattr(torch, one.dtype), device=device))
            for one in statistics_of(has_experts)
        )

    def of_expert(self, expert: int, num_neurons: int) -> "LayerTally":
        """An expert's part, in the same memory; each has so many neurons."""
        neurons = slice(expert * num_neurons, (expert + 1) * num_neurons)
        return LayerTally((name, sums_F[neurons]) for name, sums_F in self.items())

    def of(self, index_n: Tensor) -> "LayerTally":
        """A copy of some neurons' part."""
        return LayerTally((name, sums_F[index_n]) for name, sums_F in self.items())


class RowMaxima(NamedTuple):
    """The largest positive coefficient of every row, over its tokens of kind `TOKEN`."""

    value_BF: Tensor
    """float32; 0 where no coefficient is positive."""
    position_BF: Tensor
    """int32: the first column with that value; 0 where there is none."""

    @classmethod
    def none(cls, num_rows: int, num_neurons: int, device: torch.device | str = "cpu") -> "RowMaxima":
        """Those of rows without candidates."""
        zero_BF = torch.zeros((num_rows, num_neurons), device=device)
        return cls(zero_BF, zero_BF.int())
