"""Tally the neurons of one layer while their activation is computed.

Given a batch of pre-activations, write what the down projection reads and add up, by neuron:

    active                  Σ_t 1[pre_t > 0]
    activation_sum          Σ_t act(pre_t)
    coefficient_sum         Σ_t c_t         c = act(gate)·up in a gated FFN, act(fc1) in a plain one
    coefficient_sum_squares Σ_t c_t²
    coefficient_max, _min   extremes of c_t (a NaN is passed over here; the sums carry it)

and, for every row of the batch, the largest positive coefficient with its first position: the candidates
for triggers. `act` and the product are each rounded to the model's dtype, as the model computes them.
Counts are int64 and sums float64, whatever the model's dtype: fp32 counters stall at 2^24, bf16 sums at 256.

Shapes: B rows, T tokens a row, F neurons of a layer. `kind_BT` tells what each cell of the batch is:
0 pad (never counted, whatever it holds), 1 token, 2 special token (counted, also apart, never a trigger).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

PAD, TOKEN, SPECIAL = 0, 1, 2


class LayerTally(NamedTuple):
    """The sums of one layer, all of shape [F], on the layer's device; ops add to them in place."""

    active_F: Tensor
    """int64: tokens with pre-activation > 0."""
    active_special_F: Tensor
    """int64: the share of special tokens in `active_F`."""
    activation_sum_F: Tensor
    """float64."""
    coefficient_sum_F: Tensor
    """float64."""
    coefficient_sum_squares_F: Tensor
    """float64."""
    coefficient_max_F: Tensor
    """float32; -inf before the first token."""
    coefficient_min_F: Tensor
    """float32; +inf before the first token."""

    @classmethod
    def empty(cls, num_neurons: int, device: torch.device | str = "cpu") -> "LayerTally":
        """A tally of no tokens."""

        def full(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((num_neurons,), value, dtype=dtype, device=device)

        return cls(
            *(full(0, torch.int64) for _ in range(2)),
            *(full(0, torch.float64) for _ in range(3)),
            full(-torch.inf, torch.float32),
            full(torch.inf, torch.float32),
        )


class RowMaxima(NamedTuple):
    """The largest positive coefficient of every row, over its tokens of kind `TOKEN`."""

    value_BF: Tensor
    """float32; 0 where no coefficient is positive."""
    position_BF: Tensor
    """int32: the first column with that value; 0 where there is none."""


def plain(act: nn.Module, fc_BTF: Tensor, kind_BT: Tensor, tally: LayerTally) -> tuple[Tensor, RowMaxima]:
    """Activate a plain FFN's neurons and tally them.

    Returns act(fc) [B, T, F] in the dtype of `fc_BTF`, and the row maxima. The coefficient is the activation.
    """
    activation_BTF = act(fc_BTF)
    return activation_BTF, tally_reference(fc_BTF, activation_BTF, activation_BTF, kind_BT, tally)


def gated(
    act: nn.Module, gate_BTF: Tensor, up_BTF: Tensor, kind_BT: Tensor, tally: LayerTally
) -> tuple[Tensor, RowMaxima]:
    """Activate a gated FFN's neurons, multiply by `up`, and tally them.

    Returns act(gate)·up [B, T, F] in the dtype of `gate_BTF`, and the row maxima. `gate_BTF` and `up_BTF` may
    be the two halves of one tensor.
    """
    activation_BTF = act(gate_BTF)
    coefficient_BTF = activation_BTF * up_BTF
    return coefficient_BTF, tally_reference(gate_BTF, activation_BTF, coefficient_BTF, kind_BT, tally)


def tally_reference(
    pre_BTF: Tensor, activation_BTF: Tensor, coefficient_BTF: Tensor, kind_BT: Tensor, tally: LayerTally
) -> RowMaxima:
    """Add a batch to `tally` in plain PyTorch, and return its row maxima: the formulas of this file, spelled out."""
    special_BT = kind_BT == SPECIAL
    counted_BT = (kind_BT == TOKEN) | special_BT
    tally.active_F.add_((pre_BTF[counted_BT] > 0).sum(0))
    tally.active_special_F.add_((pre_BTF[special_BT] > 0).sum(0))
    tally.activation_sum_F.add_(_column_sums(activation_BTF[counted_BT]))
    coefficient_NF = coefficient_BTF[counted_BT]
    tally.coefficient_sum_F.add_(_column_sums(coefficient_NF))
    tally.coefficient_sum_squares_F.add_(_column_sums(coefficient_NF.double().square()))
    if len(coefficient_NF):
        number_NF = coefficient_NF.float()
        is_nan_NF = number_NF.isnan()
        tally.coefficient_max_F.copy_(
            torch.maximum(tally.coefficient_max_F, number_NF.masked_fill(is_nan_NF, -torch.inf).amax(0))
        )
        tally.coefficient_min_F.copy_(
            torch.minimum(tally.coefficient_min_F, number_NF.masked_fill(is_nan_NF, torch.inf).amin(0))
        )
    candidate_BTF = coefficient_BTF.float()
    eligible_BTF = (candidate_BTF > 0) & (kind_BT == TOKEN)[:, :, None]
    value_BF, position_BF = torch.where(eligible_BTF, candidate_BTF, 0.0).max(dim=1)
    return RowMaxima(value_BF, position_BF.int())


def _column_sums(x_NF: Tensor) -> Tensor:
    """Sum over tokens in float64, one addition after the other: the same bits for any number of threads."""
    # A running sum keeps its order whatever the threads; `sum(0)` splits columns by thread and vector width.
    return x_NF.double().cumsum(0)[-1] if len(x_NF) else x_NF.new_zeros(x_NF.shape[1], dtype=torch.float64)
