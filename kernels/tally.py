"""Tally the neurons of one layer while their activation is computed.

Given a batch of pre-activations, write what the down projection reads and add up, by neuron (see `statistics`):

    active                   Σ_t 1[pre_t > 0]
    activation_sum           Σ_t act(pre_t)
    coefficient_sum          Σ_t c_t       c = act(gate)·up in a gated FFN, act(fc1) in a plain one
    coefficient_sum_absolute Σ_t |c_t|     times the norm of its value vector: how much the neuron adds to the stream
    coefficient_sum_squares  Σ_t c_t²
    coefficient_max, _min    extremes of c_t (a NaN is passed over here; the sums carry it)

and, for every row of the batch, the largest positive coefficient with its first position: the candidates
for triggers. `act` and the product are each rounded to the model's dtype, as the model computes them.
Counts are int64 and sums float64, whatever the model's dtype: fp32 counters stall at 2^24, bf16 sums at 256.

Shapes: B rows, T tokens a row, F neurons of a layer. `kind_BT` tells what each cell of the batch is:
0 pad (never counted, whatever it holds), 1 token, 2 special token (counted, also apart, never a trigger),
3 token of a document that repeats an earlier one (counted, never a trigger).

`tally_layer` picks by device: on the CPU the compiled loop of `tally.cpp`, which reads the activation of a
16-bit dtype from a table made with the model's own module; on a GPU the Triton kernels of `triton_tally.py`; else
`tally_reference`, the formulas in PyTorch.
"""

import functools
import logging

import torch
from torch import Tensor, nn

from neurotally.kernels.activations import activate, activation_name, activation_table
from neurotally.kernels.compiled import Job, library
from neurotally.kernels.layer_tally import PAD, SPECIAL, TOKEN, LayerTally, RowMaxima, Statistics, no_maxima

COMPILED_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_OLDEST_GPU = (8, 0)
"""Compute capability that Triton compiles for."""

_log = logging.getLogger(__name__)


def tally_layer(
    act: nn.Module,
    pre_BTF: Tensor,
    up_BTF: Tensor | None,
    kind_BT: Tensor,
    tally: LayerTally,
    statistics: Statistics = Statistics.EVERYTHING,
) -> tuple[Tensor, RowMaxima]:
    """Activate the neurons of a layer, multiply by `up` unless it is None (a plain FFN), and tally them.

    Returns the coefficients [B, T, F] in the dtype of `pre_BTF`, and the row maxima. `pre_BTF` and `up_BTF` may be the
    two halves of one tensor.
    """
    _check_shapes(pre_BTF, up_BTF, kind_BT, tally)
    kernels = kernels_for_these(pre_BTF, up_BTF)
    table, formula = None, None  # what the kernels compute the activation by; without either the module itself runs
    if kernels == "compiled" and pre_BTF.dtype.itemsize == 2 and pre_BTF.stride(-1) == 1:
        table = activation_table(act, pre_BTF.dtype, pre_BTF.is_contiguous())
    elif kernels == "triton":
        formula = activation_name(act)
    activation_BTF = activate(act, pre_BTF) if table is None and formula is None else None
    if activation_BTF is not None:
        is_alike = activation_BTF.dtype == pre_BTF.dtype and activation_BTF.shape == pre_BTF.shape
        if kernels == "plain" or not is_alike:
            coefficient_BTF = activation_BTF if up_BTF is None else activation_BTF * up_BTF
            maxima = tally_reference(pre_BTF, activation_BTF, coefficient_BTF, kind_BT, tally, statistics)
            return coefficient_BTF, maxima
        activation_BTF = activation_BTF.contiguous()
    pre_BTF = with_unit_stride(pre_BTF)
    up_BTF = None if up_BTF is None else with_unit_stride(up_BTF)
    kind_BT = kind_BT.to(torch.uint8).contiguous()
    if kernels == "compiled":
        return _tally_compiled(table, activation_BTF, pre_BTF, up_BTF, kind_BT, tally, statistics)
    from neurotally.kernels import triton_tally

    return triton_tally.tally(formula or "given", activation_BTF, pre_BTF, up_BTF, kind_BT, tally, statistics)


def kernels_for(device: torch.device, dtype: torch.dtype) -> str:
    """Which kernels tally a model of this dtype on this device: "compiled", "triton" or "plain" PyTorch.

    They add in different orders, so that sums differ in their last bits.
    """
    if dtype in COMPILED_DTYPES and device.type == "cpu" and library() is not None:
        return "compiled"
    if dtype in COMPILED_DTYPES and device.type == "cuda" and has_triton(device):
        return "triton"
    return "plain"


def tally_reference(
    pre_BTF: Tensor,
    activation_BTF: Tensor,
    coefficient_BTF: Tensor,
    kind_BT: Tensor,
    tally: LayerTally,
    statistics: Statistics = Statistics.EVERYTHING,
) -> RowMaxima:
    """Add a batch to `tally` in plain PyTorch, and return its row maxima: the formulas of this file, spelled out."""
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
        return no_maxima(pre_BTF)
    candidate_BTF = coefficient_BTF.float()
    eligible_BTF = (candidate_BTF > 0) & (kind_BT == TOKEN)[:, :, None]
    value_BF, position_BF = torch.where(eligible_BTF, candidate_BTF, 0.0).max(dim=1)
    return RowMaxima(value_BF, position_BF.int())


def column_sums(x_NF: Tensor) -> Tensor:
    """Sum over tokens in float64, one addition after the other: the same bits for any number of threads."""
    # A running sum keeps its order whatever the threads; `sum(0)` splits columns by thread and vector width.
    return x_NF.double().cumsum(0)[-1]


def _check_shapes(pre_BTF: Tensor, up_BTF: Tensor | None, kind_BT: Tensor, tally: LayerTally) -> None:
    num_neurons = len(tally["active"])
    if pre_BTF.dim() != 3 or pre_BTF.shape != (*kind_BT.shape, num_neurons):
        raise ValueError(
            f"expected pre-activations [B, T, F] with [B, T] = {list(kind_BT.shape)} (kind) and F = {num_neurons} "
            f"(tally), got {list(pre_BTF.shape)}"
        )
    if up_BTF is not None and up_BTF.shape != pre_BTF.shape:
        raise ValueError(f"expected gate and up of one shape, got {list(pre_BTF.shape)} and {list(up_BTF.shape)}")


def kernels_for_these(pre_BTF: Tensor, up_BTF: Tensor | None) -> str:
    """See `kernels_for`; plain ones, too, where not all is on one device and of one dtype, or a gradient is wanted."""
    given = [pre_BTF] if up_BTF is None else [pre_BTF, up_BTF]
    are_alike = all(x.device == pre_BTF.device and x.dtype == pre_BTF.dtype for x in given)
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    return kernels_for(pre_BTF.device, pre_BTF.dtype) if are_alike and not wants_gradient else "plain"


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run on this GPU; False, after one warning, where they don't."""
    reason = ""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        reason = str(error)
    if not torch.version.hip and torch.cuda.get_device_capability(device) < _OLDEST_GPU:
        reason = f"{torch.cuda.get_device_name(device)} is older than Triton compiles for"
    if reason:
        _log.warning("neurotally: the GPU kernels run in plain PyTorch, which is slower: %s", reason)
    return not reason


def _tally_compiled(
    table: Tensor | None,
    activation_BTF: Tensor | None,
    pre_BTF: Tensor,
    up_BTF: Tensor | None,
    kind_BT: Tensor,
    tally: LayerTally,
    statistics: Statistics,
) -> tuple[Tensor, RowMaxima]:
    """`tally_layer` by `tally.cpp`, of an activation that is computed already, or of a table to look it up in."""
    compiled = library()
    assert compiled is not None
    if activation_BTF is None or (up_BTF is not None and _share_memory(activation_BTF, pre_BTF, up_BTF)):
        coefficient_BTF = torch.empty(pre_BTF.shape, dtype=pre_BTF.dtype)
    else:  # The module's result is ours to overwrite.
        coefficient_BTF = activation_BTF
    maxima = no_maxima(pre_BTF)
    job = Job(
        *pre_BTF.shape,
        pre=pre_BTF.data_ptr(),
        pre_row=pre_BTF.stride(0),
        pre_token=pre_BTF.stride(1),
        up=None if up_BTF is None else up_BTF.data_ptr(),
        up_row=0 if up_BTF is None else up_BTF.stride(0),
        up_token=0 if up_BTF is None else up_BTF.stride(1),
        table=None if table is None else table.data_ptr(),
        activation=None if activation_BTF is None else activation_BTF.data_ptr(),
        out=None if coefficient_BTF is activation_BTF and up_BTF is None else coefficient_BTF.data_ptr(),
        kind=kind_BT.data_ptr(),
        row_value=maxima.value_BF.data_ptr(),
        row_position=maxima.position_BF.data_ptr(),
        dtype=COMPILED_DTYPES[pre_BTF.dtype],
        statistics=statistics,
        threads=torch.get_num_threads(),
        **{name: sums_F.data_ptr() for name, sums_F in tally.items()},
    )
    compiled.tally(job)
    return coefficient_BTF, maxima


def with_unit_stride(x_BTF: Tensor) -> Tensor:
    """The same with neurons side by side in memory."""
    return x_BTF if x_BTF.stride(-1) == 1 else x_BTF.contiguous()


def _share_memory(x: Tensor, *others: Tensor) -> bool:
    return any(x.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in others)
