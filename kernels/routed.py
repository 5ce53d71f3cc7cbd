"""Tally the neurons of a mixture's experts: as `tally`, each of the tokens that are routed to its expert.

A mixture sends each token to k of E experts; every expert is a feed-forward network of F neurons. The layer's product
has a row for each pair of token and expert, S = N·k of them (`Routing` tells which). Sums are kept for the
E·F neurons of all experts, expert by expert, and are those of `tally`; beside them

    weighted_coefficient_sum   Σ_s w_s·c_s     w the routing weight by which the expert's output is multiplied

Triggers need the largest coefficient by expert and row of the batch: a *run* is the part of an expert's tokens that
come from one row of the batch, R of them. The compiled loop on the CPU and the Triton kernels on a GPU go from run to
run, wherever its rows lie in the product; elsewhere, and for experts whose coefficients follow a formula of their own,
`tally_routed_reference` does.
"""

import torch
from torch import Tensor, nn

from neurotally.kernels.activations import activate, activation_name, activation_table
from neurotally.kernels.compiled import Job, library
from neurotally.kernels.layer_tally import PAD, TOKEN, LayerTally, RowMaxima, Statistics
from neurotally.kernels.routing import Routing, Runs
from neurotally.kernels.tally import (
    COMPILED_DTYPES,
    column_sums,
    kernels_for_these,
    tally_reference,
    with_unit_stride,
)

LONGEST_RUN = 2**15 - 1
"""Of the Triton kernels, which keep two counts of a run in an int32."""


def tally_routed(
    act: nn.Module,
    pre_SF: Tensor,
    up_SF: Tensor | None,
    kind_S: Tensor,
    routing: Routing,
    tally: LayerTally,
    statistics: Statistics = Statistics.EVERYTHING,
) -> tuple[Tensor, RowMaxima]:
    """Activate the neurons of a layer's experts, multiply by `up` unless it is None, and tally them.

    Rows are those of the layer's product; `kind_S` goes by them, too. `tally` is that of the E·F neurons. Returns the
    coefficients [S, F], and the largest of each run, [R, F], with their positions counted from the run's first token.
    """
    kernels = kernels_for_these(pre_SF, up_SF)
    if kernels == "plain" or (kernels == "triton" and _longest(routing.runs) > LONGEST_RUN):
        activation_SF = activate(act, pre_SF)
        coefficient_SF = activation_SF if up_SF is None else activation_SF * up_SF
        maxima = tally_routed_reference(pre_SF, activation_SF, coefficient_SF, kind_S, routing, tally, statistics)
        return coefficient_SF, maxima
    pre_SF = with_unit_stride(pre_SF)
    up_SF = None if up_SF is None else with_unit_stride(up_SF)
    kind_S = kind_S[routing.row_S].to(torch.uint8)
    if kernels == "triton":
        from neurotally.kernels import triton_tally

        formula = activation_name(act)
        given_SF = None if formula else activate(act, pre_SF).contiguous()
        return triton_tally.tally_experts(
            formula or "given", given_SF, pre_SF, up_SF, kind_S, routing, tally, statistics
        )  # fmt: skip
    table: Tensor | None = None
    if pre_SF.dtype.itemsize == 2:
        table = activation_table(act, pre_SF.dtype, pre_SF.is_contiguous())
    given_SF = activate(act, pre_SF).contiguous() if table is None else None
    return _tally_compiled(table, given_SF, pre_SF, up_SF, kind_S, routing, tally, statistics)


def _longest(runs: Runs) -> int:
    return int(runs.tokens_R.max()) if len(runs.tokens_R) else 0


def tally_routed_reference(
    pre_SF: Tensor,
    activation_SF: Tensor,
    coefficient_SF: Tensor,
    kind_S: Tensor,
    routing: Routing,
    tally: LayerTally,
    statistics: Statistics = Statistics.EVERYTHING,
) -> RowMaxima:
    """Add rows to `tally` in plain PyTorch, expert by expert, and return the runs' maxima."""
    width = pre_SF.shape[1]
    pre_SF, activation_SF, coefficient_SF, kind_S = (
        of_rows[routing.row_S] for of_rows in (pre_SF, activation_SF, coefficient_SF, kind_S)
    )
    expert_E, rows_E = torch.unique_consecutive(routing.expert_S, return_counts=True)
    first = 0
    for expert, rows in zip(expert_E.tolist(), rows_E.tolist(), strict=True):
        part = slice(first, first + rows)
        of_expert = tally.part(slice(expert * width, (expert + 1) * width))
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
    value_RF = torch.zeros(len(routing.runs.tokens_R), width, device=pre_SF.device)
    position_RF = value_RF.int()
    if statistics < Statistics.EVERYTHING or not len(pre_SF):
        return RowMaxima(value_RF, position_RF)
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


def _tally_compiled(
    table: Tensor | None,
    activation_SF: Tensor | None,
    pre_SF: Tensor,
    up_SF: Tensor | None,
    kind_S: Tensor,
    routing: Routing,
    tally: LayerTally,
    statistics: Statistics,
) -> tuple[Tensor, RowMaxima]:
    compiled = library()
    assert compiled is not None
    width = pre_SF.shape[1]
    coefficient_SF = torch.empty(pre_SF.shape, dtype=pre_SF.dtype)
    row_S, weight_S = routing.row_S, routing.weight_S
    first_R, tokens_R, expert_R = routing.runs
    neuron_R = expert_R * width
    value_RF = torch.zeros(len(tokens_R), width)
    maxima = RowMaxima(value_RF, value_RF.int())
    job = Job(
        rows=len(tokens_R),
        neurons=width,
        pre=pre_SF.data_ptr(),
        pre_token=pre_SF.stride(0),
        up=None if up_SF is None else up_SF.data_ptr(),
        up_token=0 if up_SF is None else up_SF.stride(0),
        table=None if table is None else table.data_ptr(),
        activation=None if activation_SF is None else activation_SF.data_ptr(),
        out=coefficient_SF.data_ptr(),
        kind=kind_S.data_ptr(),
        row_value=maxima.value_BF.data_ptr(),
        row_position=maxima.position_BF.data_ptr(),
        run_first=first_R.data_ptr(),
        run_tokens=tokens_R.data_ptr(),
        run_neuron=neuron_R.data_ptr(),
        row=row_S.data_ptr(),
        weight=weight_S.data_ptr(),
        dtype=COMPILED_DTYPES[pre_SF.dtype],
        statistics=statistics,
        threads=torch.get_num_threads(),
        **{name: sums_F.data_ptr() for name, sums_F in tally.items()},
    )
    compiled.tally(job)
    return coefficient_SF, maxima
