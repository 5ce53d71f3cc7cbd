"""The GPU path of tally.py: one read of gate (and up) writes what the down projection reads and tallies its neurons.

Formulas, shapes and letters as in tally.py. Two stages, each in a fixed order and without atomics, so that the same
batch gives the same bits every time:

1. A program takes a chunk of tokens of one row by a block of neurons and walks it in tiles of a few tokens. The
   accumulators, one for each element of the tile, stay in registers; at the end they become one partial a neuron:
   int32 counts, fp32 sums handed on as float64, extremes, and the largest coefficient with its first position.
2. Partials are added to the tally in float64 and int64, chunk by chunk, and the chunks' maxima become the rows'.

A neuron's fp32 sum in a chunk takes `chunk_tokens / tile_tokens` additions, so it is off by at most about that many
times 2^-24 of the sum of |x|. A block whose fp32 sums left the range of float is read again and summed in float64.

Activation and product are each rounded to the model's dtype, from fp32, as PyTorch's own kernels do. A launch
switches contraction off: act·up is rounded before it is added to a sum. Division is exact: by the hardware's, off by
two units of fp32, three bf16 inputs of SiLU would round otherwise than PyTorch's. 16-bit dtypes take the hardware's
2^x, off by two units at most; fp32 takes an exponential that is good to exact division.

Of a mixture's experts (ROUTED) a program takes a run instead, whose tokens lie anywhere in the product,
and the partials of an expert's runs become the sums of its neurons.
In the body of a kernel: `o_` offsets, `m_` mask, `p_` pointers.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from neurotally.kernels.layer_tally import LayerTally, RowMaxima, Statistics
from neurotally.kernels.routing import Routing


class Tiling(NamedTuple):
    """How a batch is cut. Compiled for sm_90 by Triton 3.9, everything takes 96 to 128 registers in 16-bit dtypes, 155
    in fp32, and spills nothing; 128 leave room for four programs a multiprocessor. No GPU has timed them."""

    chunk_tokens: int = 1024
    """Of one row, by program; below 2^15, so that two counts fit in an int32."""
    tile_tokens: int = 4
    """One warp's worth each: 256 neurons of 16 bits are 32 loads of 16 bytes."""
    block_neurons: int = 256
    merge_partials: int = 16
    merge_neurons: int = 64


SMALL_CHUNK_TOKENS = 512
ENOUGH_PROGRAMS = 1056
"""Chunks are halved below 8 programs for each of an H100's 132 multiprocessors. Never asked of the device: the same
batch has the same chunks, and so the same bits, on all."""

_NO_FUSION = {"enable_fp_fusion": False}


@triton.jit
def _exp(x, PRECISE: tl.constexpr):
    """e^x by the hardware's 2^x; PRECISE adds what rounding x·log2(e) to fp32 has lost."""
    LOG2_E: tl.constexpr = 1.4426950216293335
    LOG2_E_REST: tl.constexpr = 1.9259629911266175e-08
    LN_2: tl.constexpr = 0.6931471805599453
    y = x * LOG2_E
    e = tl.exp2(y)
    if PRECISE:
        lost = tl.fma(x, LOG2_E, -y) + x * LOG2_E_REST
        e = tl.where(tl.abs(y) < 128.0, tl.fma(e, lost * LN_2, e), e)
    return e


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr, PRECISE: tl.constexpr):
    """act(x) in fp32, by the formulas of PyTorch's CUDA kernels."""
    if ACTIVATION == "silu":
        return tl.math.div_rn(x, 1.0 + _exp(-x, PRECISE))
    elif ACTIVATION == "gelu":
        return x * 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * (x * x * x))
        # 1 + tanh through tanh itself: its rounding near -1 is the model's.
        tanh = tl.math.div_rn(2.0, 1.0 + _exp(-2.0 * inner, PRECISE)) - 1.0
        return 0.5 * x * (1.0 + tanh)
    else:
        tl.static_assert(ACTIVATION == "relu" or ACTIVATION == "relu2")
        positive = tl.where(x <= 0, 0.0, x)  # a NaN stays
        return positive * positive if ACTIVATION == "relu2" else positive


@triton.jit
def _read_tile(
    pre, up, activation, o_pre, o_up, o_activation, mask,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """(pre, act(pre), coefficient) of one tile in fp32, the last two rounded to the model's dtype."""
    stored = tl.load(pre + o_pre, mask=mask, other=0.0)
    x = stored.to(tl.float32)
    if ACTIVATION == "given":
        act = tl.load(activation + o_activation, mask=mask, other=0.0).to(tl.float32)
    else:
        act = _activate(x, ACTIVATION, PRECISE).to(stored.dtype).to(tl.float32)
    if GATED:
        y = tl.load(up + o_up, mask=mask, other=0.0).to(tl.float32)
        return x, act, (act * y).to(stored.dtype).to(tl.float32)
    else:
        return x, act, act


@triton.jit(do_not_specialize=["num_tokens", "num_chunks"])
def _tally_chunk(
    pre, up, activation, kind, out, place, weight, run_first, run_tokens,
    partial_count, partial_sum, partial_extreme, partial_value, partial_position,
    num_tokens, num_neurons, num_blocks, num_chunks,
    pre_row, pre_token, up_row, up_token,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, STATISTICS: tl.constexpr, PRECISE: tl.constexpr,
    ROUTED: tl.constexpr, CHUNK: tl.constexpr, TILE_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Stage 1. Program: (row, chunk of the row, block of neurons), blocks fastest; `num_chunks` of a row.

    Partials are [row · chunk, F], `partial_sum` (Σ act, Σ c, Σ |c|, Σ c²) [row · chunk, 4, F] and `partial_extreme`
    (max, min) [row · chunk, 2, F]. ROUTED: a partial is a run, tokens `run_first` and on of the sorted ones, in row
    `place` of the product each; `partial_sum` has Σ w·c as a fifth.
    """
    SUMS: tl.constexpr = 5 if ROUTED else 4
    program = tl.program_id(0)
    block = program % num_blocks
    partial = program // num_blocks
    o_T = tl.arange(0, TILE_T)
    o_F = block * BLOCK_F + tl.arange(0, BLOCK_F)
    m_F = o_F < num_neurons
    if ROUTED:
        first = tl.load(run_first + partial)
        end = first + tl.load(run_tokens + partial)
    else:
        row = (partial // num_chunks).to(tl.int64)
        first = (partial % num_chunks) * CHUNK
        end = tl.minimum(first + CHUNK, num_tokens)
        pre += row * pre_row
        up += row * up_row
        kind += row * num_tokens
        activation += row * num_tokens * num_neurons
        out += row * num_tokens * num_neurons

    count = tl.full((TILE_T, BLOCK_F), 0, tl.int32)
    if STATISTICS >= 2:
        act_sum = tl.full((TILE_T, BLOCK_F), 0.0, tl.float32)
        sum = tl.full((TILE_T, BLOCK_F), 0.0, tl.float32)
        magnitudes = tl.full((TILE_T, BLOCK_F), 0.0, tl.float32)
        squares = tl.full((TILE_T, BLOCK_F), 0.0, tl.float32)
        max = tl.full((TILE_T, BLOCK_F), float("-inf"), tl.float32)
        min = tl.full((TILE_T, BLOCK_F), float("inf"), tl.float32)
        if ROUTED:
            weighted = tl.full((TILE_T, BLOCK_F), 0.0, tl.float32)
    if STATISTICS >= 3:
        best = tl.full((TILE_T, BLOCK_F), 0.0, tl.float32)
        where = tl.full((TILE_T, BLOCK_F), 0, tl.int32)

    for start in tl.range(first, end, TILE_T, num_stages=3):
        token = start + o_T
        m_T = token < end
        token_64 = (tl.load(place + token, mask=m_T, other=0) if ROUTED else token.to(tl.int64))[:, None]
        m_TF = m_T[:, None] & m_F[None, :]
        kind_T = tl.load(kind + token, mask=m_T, other=0)
        o_pre, o_up = token_64 * pre_token + o_F[None, :], token_64 * up_token + o_F[None, :]
        o_out = token_64 * num_neurons + o_F[None, :]
        pre_TF, act_TF, c_TF = _read_tile(
            pre, up, activation, o_pre, o_up, o_out, m_TF, ACTIVATION, GATED, PRECISE
        )  # fmt: skip
        if GATED or ACTIVATION != "given":
            tl.store(out + o_out, c_TF.to(out.dtype.element_ty), mask=m_TF)

        # Two counts in one: special tokens count in the upper half as well.
        weight_T = tl.where(kind_T == 2, 0x10001, (kind_T != 0).to(tl.int32))
        count += tl.where(pre_TF > 0, weight_T[:, None], 0)
        if STATISTICS >= 2:
            is_counted = (weight_T != 0)[:, None]
            counted = tl.where(is_counted, c_TF, 0.0)
            sum += counted
            magnitudes += tl.abs(counted)
            squares += counted * counted
            if ROUTED:
                weighted += counted * tl.load(weight + token, mask=m_T, other=0.0)[:, None]
            if GATED:
                act_sum += tl.where(is_counted, act_TF, 0.0)
            # The extreme of a number and a NaN is the number.
            or_nan = tl.where(is_counted, c_TF, float("nan"))
            max = tl.maximum(max, or_nan)
            min = tl.minimum(min, or_nan)
        if STATISTICS >= 3:
            is_better = (kind_T == 1)[:, None] & (c_TF > best)  # so the first of equals stays; false for a NaN
            best = tl.where(is_better, c_TF, best)
            where = tl.where(is_better, (token - first if ROUTED else token)[:, None], where)

    o_partial = partial.to(tl.int64) * num_neurons + o_F
    tl.store(partial_count + o_partial, tl.sum(count, 0), mask=m_F)
    if STATISTICS >= 2:
        o_extreme = partial.to(tl.int64) * (2 * num_neurons) + o_F
        tl.store(partial_extreme + o_extreme, tl.max(max, 0), mask=m_F)
        tl.store(partial_extreme + o_extreme + num_neurons, tl.min(min, 0), mask=m_F)
        sum_F, magnitudes_F, squares_F = tl.sum(sum, 0), tl.sum(magnitudes, 0), tl.sum(squares, 0)
        act_sum_F = tl.sum(act_sum, 0) if GATED else sum_F
        weighted_F = tl.sum(weighted, 0) if ROUTED else sum_F
        # Magnitudes leave the range of float only after squares.
        is_lost = (sum_F - sum_F) + (squares_F - squares_F) + (act_sum_F - act_sum_F) + (weighted_F - weighted_F) != 0.0
        wide_act_sum, wide_sum, wide_magnitudes, wide_squares, wide_weighted = (
            act_sum_F.to(tl.float64), sum_F.to(tl.float64), magnitudes_F.to(tl.float64), squares_F.to(tl.float64),
            weighted_F.to(tl.float64),
        )  # fmt: skip
        if tl.max(is_lost.to(tl.int32), 0) != 0:
            wide_act_sum, wide_sum, wide_magnitudes, wide_squares, wide_weighted = _sum_wide(
                pre, up, activation, kind, place, weight, first, end, o_F, m_F, num_neurons, pre_token, up_token,
                ACTIVATION, GATED, PRECISE, ROUTED, BLOCK_F,
            )  # fmt: skip
        o_sum = partial.to(tl.int64) * (SUMS * num_neurons) + o_F
        if ROUTED:
            tl.store(partial_sum + o_sum + 4 * num_neurons, wide_weighted, mask=m_F)
        if GATED:
            tl.store(partial_sum + o_sum, wide_act_sum, mask=m_F)
        tl.store(partial_sum + o_sum + num_neurons, wide_sum, mask=m_F)
        tl.store(partial_sum + o_sum + 2 * num_neurons, wide_magnitudes, mask=m_F)
        tl.store(partial_sum + o_sum + 3 * num_neurons, wide_squares, mask=m_F)
    if STATISTICS >= 3:
        best_F = tl.max(best, 0)
        where_F = tl.min(tl.where(best == best_F[None, :], where, 2147483647), 0)
        tl.store(partial_value + o_partial, best_F, mask=m_F)
        tl.store(partial_position + o_partial, where_F, mask=m_F)


@triton.jit
def _sum_wide(
    pre, up, activation, kind, place, weight, first, end, o_F, m_F, num_neurons, pre_token, up_token,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, PRECISE: tl.constexpr, ROUTED: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """The sums of a chunk again, in float64: where fp32 overflowed, or a real token has NaN or infinity.

    Token by token: in tiles it would take 27 more registers of every program.
    """
    act_sum = tl.full((BLOCK_F,), 0.0, tl.float64)
    sum = tl.full((BLOCK_F,), 0.0, tl.float64)
    magnitudes = tl.full((BLOCK_F,), 0.0, tl.float64)
    squares = tl.full((BLOCK_F,), 0.0, tl.float64)
    weighted = tl.full((BLOCK_F,), 0.0, tl.float64)
    for token in range(first, end):
        kind_0 = tl.load(kind + token)
        is_counted = kind_0 != 0
        token_64 = tl.full((BLOCK_F,), 0, tl.int64) + (tl.load(place + token) if ROUTED else token)
        _, act_F, c_F = _read_tile(
            pre, up, activation, token_64 * pre_token + o_F, token_64 * up_token + o_F, token_64 * num_neurons + o_F,
            m_F, ACTIVATION, GATED, PRECISE,
        )  # fmt: skip
        c = tl.where(is_counted, c_F.to(tl.float64), 0.0)
        sum += c
        magnitudes += tl.abs(c)
        squares += c * c
        act_sum += tl.where(is_counted, act_F.to(tl.float64), 0.0)
        if ROUTED:
            weighted += c * tl.load(weight + token).to(tl.float64)
    return act_sum, sum, magnitudes, squares, weighted


@triton.jit(do_not_specialize=["num_partials"])
def _add_partials(
    partial_count, partial_sum, partial_extreme, expert_first,
    active, active_special, activation_sum, coefficient_sum, coefficient_sum_absolute, coefficient_sum_squares,
    coefficient_max, coefficient_min, weighted_coefficient_sum,
    num_partials, num_neurons, num_blocks,
    GATED: tl.constexpr, STATISTICS: tl.constexpr, ROUTED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Stage 2: add the partials of a block of neurons, in order, to the tally.

    ROUTED: those of an expert, partials `expert_first` and on; its neurons are its part of the tally.
    """
    SUMS: tl.constexpr = 5 if ROUTED else 4
    o_F = tl.program_id(0) % num_blocks * BLOCK_F + tl.arange(0, BLOCK_F)
    m_F = o_F < num_neurons
    first = 0
    if ROUTED:
        expert = tl.program_id(0) // num_blocks
        first = tl.load(expert_first + expert)
        num_partials = tl.load(expert_first + expert + 1)
        offset = expert.to(tl.int64) * num_neurons
        active += offset
        active_special += offset
        activation_sum += offset
        coefficient_sum += offset
        coefficient_sum_absolute += offset
        coefficient_sum_squares += offset
        coefficient_max += offset
        coefficient_min += offset
        weighted_coefficient_sum += offset
        weighted = tl.full((BLOCK_C, BLOCK_F), 0.0, tl.float64)
    count = tl.full((BLOCK_C, BLOCK_F), 0, tl.int64)
    special = tl.full((BLOCK_C, BLOCK_F), 0, tl.int64)
    act_sum = tl.full((BLOCK_C, BLOCK_F), 0.0, tl.float64)
    sum = tl.full((BLOCK_C, BLOCK_F), 0.0, tl.float64)
    magnitudes = tl.full((BLOCK_C, BLOCK_F), 0.0, tl.float64)
    squares = tl.full((BLOCK_C, BLOCK_F), 0.0, tl.float64)
    max = tl.full((BLOCK_C, BLOCK_F), float("-inf"), tl.float32)
    min = tl.full((BLOCK_C, BLOCK_F), float("inf"), tl.float32)
    for start in range(first, num_partials, BLOCK_C):
        o_C = start + tl.arange(0, BLOCK_C)
        m_CF = (o_C < num_partials)[:, None] & m_F[None, :]
        partial = o_C.to(tl.int64)[:, None]
        both = tl.load(partial_count + partial * num_neurons + o_F[None, :], mask=m_CF, other=0)
        count += both & 0xFFFF
        special += both >> 16
        if STATISTICS >= 2:
            p_sum = partial_sum + partial * (SUMS * num_neurons) + o_F[None, :]
            p_extreme = partial_extreme + partial * (2 * num_neurons) + o_F[None, :]
            if GATED:
                act_sum += tl.load(p_sum, mask=m_CF, other=0.0)
            sum += tl.load(p_sum + num_neurons, mask=m_CF, other=0.0)
            magnitudes += tl.load(p_sum + 2 * num_neurons, mask=m_CF, other=0.0)
            squares += tl.load(p_sum + 3 * num_neurons, mask=m_CF, other=0.0)
            if ROUTED:
                weighted += tl.load(p_sum + 4 * num_neurons, mask=m_CF, other=0.0)
            max = tl.maximum(max, tl.load(p_extreme, mask=m_CF, other=float("-inf")))
            min = tl.minimum(min, tl.load(p_extreme + num_neurons, mask=m_CF, other=float("inf")))
    tl.store(active + o_F, tl.load(active + o_F, mask=m_F) + tl.sum(count, 0), mask=m_F)
    tl.store(active_special + o_F, tl.load(active_special + o_F, mask=m_F) + tl.sum(special, 0), mask=m_F)
    if STATISTICS >= 2:
        sum_F = tl.sum(sum, 0)
        act_sum_F = tl.sum(act_sum, 0) if GATED else sum_F
        tl.store(activation_sum + o_F, tl.load(activation_sum + o_F, mask=m_F) + act_sum_F, mask=m_F)
        tl.store(coefficient_sum + o_F, tl.load(coefficient_sum + o_F, mask=m_F) + sum_F, mask=m_F)
        magnitudes_F = tl.load(coefficient_sum_absolute + o_F, mask=m_F) + tl.sum(magnitudes, 0)
        tl.store(coefficient_sum_absolute + o_F, magnitudes_F, mask=m_F)
        squares_F = tl.load(coefficient_sum_squares + o_F, mask=m_F) + tl.sum(squares, 0)
        tl.store(coefficient_sum_squares + o_F, squares_F, mask=m_F)
        if ROUTED:
            weighted_F = tl.load(weighted_coefficient_sum + o_F, mask=m_F) + tl.sum(weighted, 0)
            tl.store(weighted_coefficient_sum + o_F, weighted_F, mask=m_F)
        max_F = tl.maximum(tl.load(coefficient_max + o_F, mask=m_F), tl.max(max, 0))
        min_F = tl.minimum(tl.load(coefficient_min + o_F, mask=m_F), tl.min(min, 0))
        tl.store(coefficient_max + o_F, max_F, mask=m_F)
        tl.store(coefficient_min + o_F, min_F, mask=m_F)


@triton.jit(do_not_specialize=["num_chunks"])
def _merge_row_maxima(
    partial_value, partial_position, value, position, num_neurons, num_blocks, num_chunks, BLOCK_F: tl.constexpr
):
    """Stage 2: the best of a row's chunks; of equals the first."""
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    o_F = tl.program_id(0) % num_blocks * BLOCK_F + tl.arange(0, BLOCK_F)
    m_F = o_F < num_neurons
    best = tl.full((BLOCK_F,), 0.0, tl.float32)
    where = tl.full((BLOCK_F,), 0, tl.int32)
    for chunk in range(0, num_chunks):
        o_partial = (row * num_chunks + chunk) * num_neurons + o_F
        value_F = tl.load(partial_value + o_partial, mask=m_F, other=0.0)
        position_F = tl.load(partial_position + o_partial, mask=m_F, other=0)
        where = tl.where(value_F > best, position_F, where)
        best = tl.maximum(best, value_F)
    tl.store(value + row * num_neurons + o_F, best, mask=m_F)
    tl.store(position + row * num_neurons + o_F, where, mask=m_F)


def tally(
    formula: str,
    activation_BTF: Tensor | None,
    pre_BTF: Tensor,
    up_BTF: Tensor | None,
    kind_BT: Tensor,
    into: LayerTally,
    statistics: Statistics,
    routing: Routing | None = None,
) -> tuple[Tensor, RowMaxima]:
    """`tally_layer` of tally.py by these kernels. Nothing waits for the device, but once where `routing` has the runs.

    All on one device, neurons side by side in memory. `formula`: one of `_activate`'s, or "given" where the activation
    is computed already.
    """
    num_neurons, num_experts, expert_first = pre_BTF.shape[-1], 1, None
    by_run: tuple[Tensor | None, ...] = (None, None, None, None)
    if routing is None:
        num_rows, num_tokens = kind_BT.shape
    else:
        num_rows, num_tokens = len(routing.runs.tokens_R), 1  # a chunk each, however long
        num_experts = len(into["active"]) // num_neurons
        first_R, tokens_R, expert_R = routing.runs
        expert_first = torch.searchsorted(expert_R, torch.arange(num_experts + 1))
        first_R, tokens_R, expert_first = (x.int().to(pre_BTF.device) for x in (first_R, tokens_R, expert_first))
        by_run = (routing.row_S, routing.weight_S, first_R, tokens_R)
    if pre_BTF.numel() == 0:
        none = RowMaxima.none(num_rows, num_neurons, pre_BTF.device)
        return torch.empty_like(pre_BTF, memory_format=torch.contiguous_format), none
    tiling = _tiling(num_rows, num_tokens, num_neurons)
    num_blocks = triton.cdiv(num_neurons, tiling.block_neurons)
    num_chunks = triton.cdiv(num_tokens, tiling.chunk_tokens)
    num_sums = 4 if routing is None else 5
    partials = _Partials.empty(num_rows * num_chunks, num_neurons, num_sums, statistics, pre_BTF.device)
    if activation_BTF is not None and up_BTF is None:
        out_BTF = activation_BTF  # only read
    else:
        out_BTF = torch.empty(pre_BTF.shape, dtype=pre_BTF.dtype, device=pre_BTF.device)
    up = pre_BTF if up_BTF is None else up_BTF
    with torch.cuda.device_of(pre_BTF):
        _tally_chunk[(num_blocks * num_rows * num_chunks,)](
            pre_BTF, up, out_BTF if activation_BTF is None else activation_BTF, kind_BT, out_BTF, *by_run, *partials,
            num_tokens, num_neurons, num_blocks, num_chunks,
            pre_BTF.stride(0), pre_BTF.stride(-2), up.stride(0), up.stride(-2),
            ACTIVATION=formula, GATED=up_BTF is not None, STATISTICS=int(statistics),
            PRECISE=pre_BTF.dtype == torch.float32, ROUTED=routing is not None,
            CHUNK=tiling.chunk_tokens, TILE_T=tiling.tile_tokens, BLOCK_F=tiling.block_neurons, num_warps=4,
            **_NO_FUSION,
        )  # fmt: skip
        _add(partials, expert_first, num_experts, into, up_BTF is not None, statistics, tiling)
        if statistics < Statistics.EVERYTHING:
            return out_BTF, RowMaxima.none(num_rows, num_neurons, pre_BTF.device)
        if num_chunks == 1:
            return out_BTF, RowMaxima(partials.values[:, 0], partials.positions[:, 0])
        maxima = RowMaxima(*(x.new_empty((num_rows, num_neurons)) for x in (partials.values, partials.positions)))
        _merge_row_maxima[(num_blocks * num_rows,)](
            partials.values, partials.positions, *maxima, num_neurons, num_blocks, num_chunks,
            BLOCK_F=tiling.block_neurons, num_warps=4, **_NO_FUSION,
        )  # fmt: skip
    return out_BTF, maxima


class _Partials(NamedTuple):
    """What stage 1 leaves to stage 2, [P, n, F] each."""

    counts: Tensor
    sums: Tensor
    extremes: Tensor
    values: Tensor
    positions: Tensor

    @classmethod
    def empty(
        cls, num_partials: int, num_neurons: int, num_sums: int, statistics: Statistics, device: torch.device
    ) -> "_Partials":
        has_moments, has_maxima = statistics >= Statistics.MOMENTS, statistics >= Statistics.EVERYTHING
        layout = (
            (1, torch.int32), (num_sums * has_moments, torch.float64), (2 * has_moments, torch.float32),
            (has_maxima, torch.float32), (has_maxima, torch.int32),
        )  # fmt: skip
        return cls(*(torch.empty((num_partials, n, num_neurons), dtype=dtype, device=device) for n, dtype in layout))


def _add(
    partials: _Partials, expert_first: Tensor | None, num_experts: int, into: LayerTally, is_gated: bool,
    statistics: Statistics, tiling: Tiling,
) -> None:  # fmt: skip
    """Stage 2 of the sums."""
    num_partials, _, num_neurons = partials.counts.shape
    num_blocks = triton.cdiv(num_neurons, tiling.merge_neurons)
    sums = {"weighted_coefficient_sum": None, **into}
    _add_partials[(num_blocks * num_experts,)](
        *partials[:3], expert_first, **sums, num_partials=num_partials, num_neurons=num_neurons, num_blocks=num_blocks,
        GATED=is_gated, STATISTICS=int(statistics), ROUTED=expert_first is not None, BLOCK_C=tiling.merge_partials,
        BLOCK_F=tiling.merge_neurons, num_warps=4, **_NO_FUSION,
    )  # fmt: skip


def _tiling(num_rows: int, num_tokens: int, num_neurons: int) -> Tiling:
    tiling = Tiling()
    num_blocks = triton.cdiv(num_neurons, tiling.block_neurons)
    if num_rows * num_blocks * triton.cdiv(num_tokens, tiling.chunk_tokens) < ENOUGH_PROGRAMS:
        return tiling._replace(chunk_tokens=SMALL_CHUNK_TOKENS)
    return tiling
