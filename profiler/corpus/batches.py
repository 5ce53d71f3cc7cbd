"""Rows and rectangles: how the tokens of a unit are laid out for the model.

Layout `documents` starts every document in a row of its own; one longer than a row goes on in a row that
starts afresh. Layout `concat` runs the documents of a unit together and cuts every `row_tokens`, the last shorter row
kept. The papers run a whole corpus together and drop the remainder: here a row starts afresh at every unit, a few more
rows than theirs (`analysis.concat_rows` counts them). In both every token is in exactly one row, once.

Rows become right-padded rectangles: in a causal model pads on the right cannot reach a real token, so no
attention mask is needed. `kind` tells pads from tokens (`kernels.tally`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neurotally.kernels.layer_tally import PAD, REPEAT, SPECIAL, TOKEN

LAYOUTS = ("documents", "concat")
MIN_RECTANGLE_TOKENS = 64
"""Below about this many token rows, fp32 matrix products depend on the number of CPU threads (see `threads`)."""


@dataclass(frozen=True)
class TokenRows:
    """The tokens of a unit, in corpus order, and where its rows begin and end. N tokens, R rows."""

    ids_N: np.ndarray
    """int64."""
    kind_N: np.ndarray
    """uint8: TOKEN, SPECIAL or REPEAT."""
    document_N: np.ndarray
    """int32: number of the document in its corpus."""
    position_N: np.ndarray
    """int32: counted from the document's first token."""
    bounds_R2: np.ndarray
    """int64 [R, 2]: first token of each row, and one past its last."""


@dataclass(frozen=True)
class Batch:
    """One rectangle of B rows by T tokens; every table is [B, T], C-contiguous."""

    ids_BT: np.ndarray
    kind_BT: np.ndarray
    document_BT: np.ndarray
    position_BT: np.ndarray


def lay_out(
    documents: Sequence[tuple[int, Sequence[int]]], special_ids: frozenset[int], layout: str, row_tokens: int,
    repeats: Sequence[int] = (),
) -> TokenRows:  # fmt: skip
    """Lay out documents, given as (number in the corpus, token ids) in corpus order; one of LAYOUTS.

    `repeats`: the numbers of those that are counted but trigger nothing.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    lengths = np.array([len(ids) for _, ids in documents], dtype=np.int64)
    flat = [np.asarray(ids, dtype=np.int64) for _, ids in documents]
    ids_N = np.concatenate(flat) if flat else np.empty(0, np.int64)
    numbers = np.array([number for number, _ in documents], dtype=np.int32)
    starts = np.cumsum(lengths) - lengths
    is_special_N = np.isin(ids_N, np.fromiter(special_ids, np.int64, len(special_ids)))
    if layout == "documents":
        spans = list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))
    else:
        spans = [(0, len(ids_N))]
    bounds = [(first, min(first + row_tokens, end)) for start, end in spans for first in range(start, end, row_tokens)]
    document_N = np.repeat(numbers, lengths)
    kind_N = np.where(np.isin(document_N, repeats), REPEAT, TOKEN)
    return TokenRows(
        ids_N=ids_N,
        kind_N=np.where(is_special_N, SPECIAL, kind_N).astype(np.uint8),
        document_N=document_N,
        position_N=(np.arange(len(ids_N)) - np.repeat(starts, lengths)).astype(np.int32),
        bounds_R2=np.array(bounds, dtype=np.int64).reshape(-1, 2),
    )


def rectangles(rows: TokenRows, token_budget: int, attention_budget: int | None = None) -> Iterator[Batch]:
    """Cut rows, longest first, into rectangles of at most `token_budget` cells (one row at least).

    `attention_budget` bounds rows x width², for models whose attention takes that much memory.
    A rectangle has at least 64 cells, filled up with pads.
    """
    lengths_R = rows.bounds_R2[:, 1] - rows.bounds_R2[:, 0]
    order = np.argsort(-lengths_R, kind="stable")
    first = 0
    while first < len(order):
        width = int(lengths_R[order[first]])
        height = max(1, token_budget // width)
        if attention_budget is not None:
            height = max(1, min(height, attention_budget // (width * width)))
        chosen = order[first : first + height]
        first += len(chosen)
        yield _rectangle(rows, chosen, max(width, -(-MIN_RECTANGLE_TOKENS // len(chosen))))


def _rectangle(rows: TokenRows, chosen: np.ndarray, width: int) -> Batch:
    start_B1 = rows.bounds_R2[chosen, 0][:, None]
    end_B1 = rows.bounds_R2[chosen, 1][:, None]
    index_BT = start_B1 + np.arange(width)[None, :]
    is_token_BT = index_BT < end_B1
    index_BT = np.where(is_token_BT, index_BT, start_B1)

    def table(values_N: np.ndarray, pad: int) -> np.ndarray:
        return np.where(is_token_BT, values_N[index_BT], np.array(pad, values_N.dtype))

    # Pads are token 0: any id does, no real token sees them.
    return Batch(
        ids_BT=table(rows.ids_N, 0),
        kind_BT=table(rows.kind_N, PAD),
        document_BT=table(rows.document_N, 0),
        position_BT=table(rows.position_N, 0),
    )
