"""The GPU path of triggers.py: the lists stay on the device, and one small kernel a batch lets candidates in.

A list's K entries are in no order; an entering candidate takes the place of its own document's entry, or else of
the last in the total order. So nothing is moved or sorted until the lists are read, and nothing waits for the device.
In the body of a kernel: `o_` offsets, `m_` mask.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_ROWS = 16
TILE_ENTRIES = 512
"""Neurons by triggers of one program, a warp of its own: 16 elements of each list in a lane."""


@triton.jit(do_not_specialize=["num_rows", "num_tokens"])
def _offer(
    row_value, row_position, document, position, threshold, value, list_document, list_position,
    num_rows, num_tokens, num_neurons,
    NUM_TRIGGERS: tl.constexpr, TILE_B: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A block of neurons: all rows in turn."""
    o_F = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    m_F = o_F < num_neurons
    o_K = tl.arange(0, BLOCK_K)
    m_FK = m_F[:, None] & (o_K < NUM_TRIGGERS)[None, :]
    o_FK = o_F.to(tl.int64)[:, None] * NUM_TRIGGERS + o_K[None, :]
    # Beyond K: no value is greater, and no document is before them among the unused.
    value_FK = tl.load(value + o_FK, mask=m_FK, other=float("inf"))
    document_FK = tl.load(list_document + o_FK, mask=m_FK, other=-2)
    position_FK = tl.load(list_position + o_FK, mask=m_FK, other=-2)
    threshold_F = tl.load(threshold + o_F, mask=m_F, other=float("inf"))
    last_F = tl.min(value_FK, 1)
    has_changed = 0
    for first in range(0, num_rows, TILE_B):
        o_B = first + tl.arange(0, TILE_B)
        o_BF = o_B.to(tl.int64)[:, None] * num_neurons + o_F[None, :]
        tile_BF = tl.load(row_value + o_BF, mask=(o_B < num_rows)[:, None] & m_F[None, :], other=0.0)
        # An equal value may come from an earlier document.
        may_enter_BF = (tile_BF > 0) & (tile_BF >= threshold_F[None, :]) & (tile_BF >= last_F[None, :])
        if tl.max(tl.max(may_enter_BF.to(tl.int32), 1), 0) != 0:
            has_changed = 1
            for row in range(first, tl.minimum(first + TILE_B, num_rows)):
                row_64 = tl.full((BLOCK_F,), 0, tl.int64) + row
                o_row = row_64 * num_neurons + o_F
                new_value = tl.load(row_value + o_row, mask=m_F, other=0.0)
                may_enter = (new_value > 0) & (new_value >= threshold_F) & (new_value >= last_F)
                if tl.max(may_enter.to(tl.int32), 0) != 0:
                    column = tl.load(row_position + o_row, mask=may_enter, other=0)
                    cell = row_64 * num_tokens + column
                    new_document = tl.load(document + cell, mask=may_enter, other=-1)
                    new_position = tl.load(position + cell, mask=may_enter, other=-1)

                    is_last = value_FK == last_F[:, None]
                    last_document = tl.max(tl.where(is_last, document_FK, -2), 1)
                    is_last = is_last & (document_FK == last_document[:, None])
                    own = tl.min(tl.where(document_FK == new_document[:, None], o_K[None, :], BLOCK_K), 1)
                    last = tl.min(tl.where(is_last, o_K[None, :], BLOCK_K), 1)
                    place = tl.where(own < BLOCK_K, own, last)
                    leaves_FK = o_K[None, :] == place[:, None]
                    old_value = tl.max(tl.where(leaves_FK, value_FK, 0.0), 1)
                    old_document = tl.max(tl.where(leaves_FK, document_FK, -2), 1)
                    old_position = tl.max(tl.where(leaves_FK, position_FK, -2), 1)
                    is_before = (new_document < old_document) | (
                        (new_document == old_document) & (new_position < old_position)
                    )
                    is_before = (new_value > old_value) | ((new_value == old_value) & is_before)
                    enters_FK = (may_enter & is_before)[:, None] & leaves_FK
                    value_FK = tl.where(enters_FK, new_value[:, None], value_FK)
                    document_FK = tl.where(enters_FK, new_document[:, None], document_FK)
                    position_FK = tl.where(enters_FK, new_position[:, None], position_FK)
                    last_F = tl.min(value_FK, 1)
    if has_changed != 0:
        tl.store(value + o_FK, value_FK, mask=m_FK)
        tl.store(list_document + o_FK, document_FK, mask=m_FK)
        tl.store(list_position + o_FK, position_FK, mask=m_FK)


def offer(
    value_BF: Tensor,
    position_BF: Tensor,
    document_BT: Tensor,
    position_BT: Tensor,
    threshold_F: Tensor,
    value_FK: Tensor,
    document_FK: Tensor,
    position_FK: Tensor,
) -> None:
    """Offer a batch's row maxima to the lists [F, K], which change in place.

    float32 and int32, contiguous, on one device. An unused entry has value 0 and document and position -1.
    """
    num_neurons, num_triggers = value_FK.shape
    if value_BF.numel() == 0 or num_triggers == 0:
        return
    block_triggers = triton.next_power_of_2(num_triggers)
    block_neurons = max(1, TILE_ENTRIES // block_triggers)
    with torch.cuda.device_of(value_FK):
        _offer[(triton.cdiv(num_neurons, block_neurons),)](
            value_BF, position_BF, document_BT, position_BT, threshold_F, value_FK, document_FK, position_FK,
            *document_BT.shape, num_neurons,
            NUM_TRIGGERS=num_triggers, TILE_B=TILE_ROWS, BLOCK_F=block_neurons, BLOCK_K=block_triggers, num_warps=1,
            enable_fp_fusion=False,
        )  # fmt: skip
