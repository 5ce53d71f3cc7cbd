"""The reference of the tallies: the formulas of `tally`, spelled out in PyTorch, for any device and dtype."""

import torch
from torch import Tensor

from neurotally.kernels.layer_tally import PAD, SPECIAL, TOKEN, LayerTally, RowMaxima, Statistics
from neurotally.kernels.routing import Routing


def tally_reference(
    pre_BTF: Tensor,
    activation_BTF: Tensor,
    coefficient_BTF: Tensor,
    kind_BT: Tensor,
    tally: LayerTally,
    statistics: Statistics = Statistics.EVERYTHING,
) -> RowMaxima:
    """Add a batch to `tally`, and return its row maxima."""
    special_BT, counted_BT = kind_BT == SPECIAL, kind_BT != PAD
    tally["active"].add_((pre_BTF[counted_BT] > 0).sum(0))
    tally["active_special"].add_((pre_BTF[special_BT] > 0).sum(0))
    coefficient_NF = coefficient_BTF[counted_BT]
    if statistics >= Statistics.MOMENTS and len(coefficient_NF):
        tally["activation_sum"].add_(column_sums(activation_BTF[counted_BT]))
        tally["coefficient_sum"].add_(column_sums(coefficient_NF))
        tally["coefficient_sum_absolute"].add_(column_sums(coefficient_NF.abs()))
        tally["coefficient_sum_squares"].add_(column_sums(coefficient_NF.double().square()))
        number_NF = coefficient_NF.float()
        is_nan_NF = number_NF.isnan()
        max_F, min_F = tally["coefficient_max"], tally["coefficient_min"]
        max_F.copy_(torch.maximum(max_F, number_NF.masked_fill(is_nan_NF, -torch.inf).amax(0)))
        min_F.copy_(torch.minimum(min_F, number_NF.masked_fill(is_nan_NF, torch.inf).amin(0)))
    if statistics < Statistics.EVERYTHING:
        return RowMaxima.none(len(pre_BTF), pre_BTF.shape[2], pre_BTF.device)
    candidate_BTF = coefficient_BTF.float()
    eligible_BTF = (candidate_BTF > 0) & (kind_BT == TOKEN)[:, :, None]
    value_BF, position_BF = torch.where(eligible_BTF, candidate_BTF, 0.0).max(dim=1)
    return RowMaxima(value_BF, position_BF.int())


def tally_routed_reference(
    pre_SF: Tensor,
    activation_SF: Tensor,
    coefficient_SF: Tensor,
    kind_S: Tensor,
    tally: LayerTally,
    statistics: Statistics,
    routing: Routing,
) -> RowMaxima:
    """Add the rows of an experts' product to `tally`, expert by expert, and return the runs' maxima.

    `kind_S` goes by the tokens as `routing` sorts them.
    """
    width = pre_SF.shape[1]
    pre_SF, activation_SF, coefficient_SF = (x[routing.row_S] for x in (pre_SF, activation_SF, coefficient_SF))
    expert_E, rows_E = torch.unique_consecutive(routing.expert_S, return_counts=True)
    first = 0
    for expert, rows in zip(expert_E.tolist(), rows_E.tolist(), strict=True):
        part = slice(first, first + rows)
        of_expert = tally.of_expert(expert, width)
        tally_reference(
            pre_SF[None, part], activation_SF[None, part], coefficient_SF[None, part], kind_S[None, part],
            of_expert, min(statistics, Statistics.MOMENTS),
        )  # fmt: skip
        if statistics >= Statistics.MOMENTS:
            weighted_SF = coefficient_SF[part].double() * routing.weight_S[part, None].double()
            weighted_SF = weighted_SF[kind_S[part] != PAD]
            if len(weighted_SF):
                of_expert["weighted_coefficient_sum"].add_(column_sums(weighted_SF))
        first += rows
    value_RF, position_RF = maxima = RowMaxima.none(len(routing.runs.tokens_R), width, pre_SF.device)
    if statistics < Statistics.EVERYTHING or not len(pre_SF):
        return maxima
    tokens_R = routing.runs.tokens_R.to(pre_SF.device)
    run_S = torch.repeat_interleave(torch.arange(len(tokens_R), device=pre_SF.device), tokens_R)
    at_S = torch.arange(len(pre_SF), device=pre_SF.device) - routing.runs.first_R.to(pre_SF.device)[run_S]
    number_SF = coefficient_SF.float()
    candidate_SF = torch.where((number_SF > 0) & (kind_S == TOKEN)[:, None], number_SF, 0.0)
    run_SF = run_S[:, None].expand_as(candidate_SF)
    value_RF.scatter_reduce_(0, run_SF, candidate_SF, "amax")
    is_best_SF = (candidate_SF == value_RF[run_S]) & (candidate_SF > 0)
    best_at_SF = torch.where(is_best_SF, at_S[:, None], len(pre_SF)).int()
    position_RF.fill_(len(pre_SF)).scatter_reduce_(0, run_SF, best_at_SF, "amin")
    return RowMaxima(value_RF, torch.where(value_RF > 0, position_RF, 0))


def column_sums(x_NF: Tensor) -> Tensor:
    """Sum over tokens in float64, one addition after the other: the same bits for any number of threads."""
    # A running sum keeps its order whatever the threads; `sum(0)` splits columns by thread and vector width.
    return x_NF.double().cumsum(0)[-1]
