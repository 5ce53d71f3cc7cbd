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

A mixture of experts sends each token to k of E experts; every expert is a feed-forward network of F neurons. The
layer's product has a row for each pair of token and expert, S = N·k of them (`Routing` tells which). Sums are kept for
the E·F neurons of all experts, expert by expert, and are those above; beside them

    weighted_coefficient_sum   Σ_s w_s·c_s     w the routing weight by which the expert's output is multiplied

Triggers need the largest coefficient by expert and row of the batch: a *run* is the part of an expert's tokens that
come from one row of the batch, R of them. The kernels go from run to run, wherever its rows lie in the product.

`tally_layer` picks by device: on the CPU the compiled loop of `tally.cpp`, which reads the activation of a
16-bit dtype from a table made with the model's own module; on a GPU the Triton kernels of `triton_tally.py`; else the
formulas in PyTorch (`reference`).
"""

import functools
import logging

import torch
from torch import Tensor, nn

from neurotally.kernels.activations import activate, activation_name, activation_table
from neurotally.kernels.compiled import Job, addresses, library
from neurotally.kernels.layer_tally import LayerTally, RowMaxima, Statistics
from neurotally.kernels.reference import tally_reference, tally_routed_reference
from neurotally.kernels.routing import Routing

COMPILED_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_LONGEST_RUN = 2**15 - 1
"""Of the Triton kernels, which keep two counts of a run in an int32."""
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
    routing: Routing | None = None,
) -> tuple[Tensor, RowMaxima]:
    """Activate the neurons of a layer, multiply by `up` unless it is None (a plain FFN), and tally them.

    Returns the coefficients [B, T, F] in the dtype of `pre_BTF`, and the row maxima. `pre_BTF` and `up_BTF` may be the
    two halves of one tensor. `routing`: of a mixture's experts. Then the rows of `pre_BTF`, `up_BTF` and the
    coefficients are those of the product, [S, F]; the kinds [S] go by the tokens as the routing sorts them; `tally` is
    that of the E·F neurons, and the maxima are those of each run, [R, F], with positions counted from its first token.
    """
    if routing is None:
        _check_shapes(pre_BTF, up_BTF, kind_BT, tally)
    kernels = kernels_for_these(pre_BTF, up_BTF)
    if kernels == "triton" and routing is not None and _longest_run(routing) > _LONGEST_RUN:
        kernels = "plain"
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
            given = (pre_BTF, activation_BTF, coefficient_BTF, kind_BT, tally, statistics)
            return coefficient_BTF, (
                tally_reference(*given) if routing is None else tally_routed_reference(*given, routing)
            )
        activation_BTF = activation_BTF.contiguous()
    pre_BTF = _with_unit_stride(pre_BTF)
    up_BTF = None if up_BTF is None else _with_unit_stride(up_BTF)
    kind_BT = kind_BT.to(torch.uint8).contiguous()
    if kernels == "compiled":
        return _tally_compiled(table, activation_BTF, pre_BTF, up_BTF, kind_BT, tally, statistics, routing)
    from neurotally.kernels import triton_tally

    formula = formula or "given"
    return triton_tally.tally(formula, activation_BTF, pre_BTF, up_BTF, kind_BT, tally, statistics, routing)


def kernels_for(device: torch.device, dtype: torch.dtype) -> str:
    """Which kernels tally a model of this dtype on this device: "compiled", "triton" or "plain" PyTorch.

    They add in different orders, so that sums differ in their last bits.
    """
    if dtype in COMPILED_DTYPES and device.type == "cpu" and library() is not None:
        return "compiled"
    if dtype in COMPILED_DTYPES and device.type == "cuda" and has_triton(device):
        return "triton"
    return "plain"


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


def _longest_run(routing: Routing) -> int:
    return int(routing.runs.tokens_R.max()) if len(routing.runs.tokens_R) else 0


def _tally_compiled(
    table: Tensor | None,
    activation_BTF: Tensor | None,
    pre_BTF: Tensor,
    up_BTF: Tensor | None,
    kind_BT: Tensor,
    tally: LayerTally,
    statistics: Statistics,
    routing: Routing | None,
) -> tuple[Tensor, RowMaxima]:
    """`tally_layer` by `tally.cpp`, of an activation that is computed already, or of a table to look it up in."""
    compiled = library()
    assert compiled is not None
    if activation_BTF is None or (up_BTF is not None and _share_memory(activation_BTF, pre_BTF, up_BTF)):
        coefficient_BTF = torch.empty(pre_BTF.shape, dtype=pre_BTF.dtype)
    else:  # The module's result is ours to overwrite.
        coefficient_BTF = activation_BTF
    num_rows, num_tokens, num_neurons = len(pre_BTF), pre_BTF.shape[-2], pre_BTF.shape[-1]
    by_run: dict[str, Tensor] = {}
    if routing is not None:
        first_R, tokens_R, expert_R = routing.runs
        num_rows = len(tokens_R)
        by_run = {
            "run_first": first_R, "run_tokens": tokens_R, "run_neuron": expert_R * num_neurons, "row": routing.row_S,
            "weight": routing.weight_S,
        }  # fmt: skip
    maxima = RowMaxima.none(num_rows, num_neurons)
    tensors = {
        "pre": pre_BTF, "up": up_BTF, "table": table, "activation": activation_BTF, "kind": kind_BT,
        "out": None if coefficient_BTF is activation_BTF and up_BTF is None else coefficient_BTF,
        "row_value": maxima.value_BF, "row_position": maxima.position_BF, **by_run, **tally,
    }  # fmt: skip
    job = Job(
        num_rows,
        num_tokens,
        num_neurons,
        pre_row=pre_BTF.stride(0),
        pre_token=pre_BTF.stride(-2),
        up_row=0 if up_BTF is None else up_BTF.stride(0),
        up_token=0 if up_BTF is None else up_BTF.stride(-2),
        dtype=COMPILED_DTYPES[pre_BTF.dtype],
        statistics=statistics,
        threads=torch.get_num_threads(),
        **addresses(tensors),
    )
    compiled.tally(job)
    return coefficient_BTF, maxima


def _with_unit_stride(x_BTF: Tensor) -> Tensor:
    """The same with neurons side by side in memory."""
    return x_BTF if x_BTF.stride(-1) == 1 else x_BTF.contiguous()


def _share_memory(x: Tensor, *others: Tensor) -> bool:
    return any(x.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in others)
