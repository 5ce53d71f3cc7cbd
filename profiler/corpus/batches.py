"""Rows and padded batches: how the tokens of a unit are laid out for the model.

Layout `documents` starts every document in a row of its own; one longer than a row goes on in a row that
starts afresh. Layout `concat` runs the documents of a unit together and cuts every `row_tokens`, the last shorter row
kept. The papers run a whole corpus together and drop the remainder: here a row starts afresh at every unit, a few more
rows than theirs (`analysis.concat_rows` counts them). In both every token is in exactly one row, once.

Rows become right-padded batches: in a causal model pads on the right cannot reach a real token, so no
attention mask is needed; where attention sees later tokens a batch with pads gets one, or holds rows of one length.
`kind` tells pads from tokens (`kernels.tally`).

The decoder of an encoder-decoder is teacher-forced on a part of each row (`TeacherForcing`), in a batch of its own
that goes beside the encoder's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from neurotally.kernels.layer_tally import PAD, REPEAT, SPECIAL, TOKEN

LAYOUTS = ("documents", "concat")
DECODER_READS = ("second-half", "all")
MIN_BATCH_TOKENS = 64
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
    """One padded batch of B rows by T tokens; every table is [B, T], C-contiguous."""

    ids_BT: np.ndarray
    kind_BT: np.ndarray
    document_BT: np.ndarray
    position_BT: np.ndarray
    decoder: "Batch | None" = None
    """What the decoder of an encoder-decoder reads, row by row beside what its encoder reads."""

    @property
    def mask_BT(self) -> np.ndarray | None:
        """bool: which cells are tokens, in a row that has none all of them; None where all are."""
        is_token_BT: np.ndarray = self.kind_BT != PAD
        is_token_BT |= ~is_token_BT.any(axis=1, keepdims=True)
        return None if is_token_BT.all() else is_token_BT


@dataclass(frozen=True)
class TeacherForcing:
    """What the decoder of an encoder-decoder reads: a start token, then a part of each row.

    `second-half` (the default): the encoder reads the first half of a row, the middle token with it, and the decoder
    goes on with the other half, as if it completed the row; every token is read once, by one of the two. `all`: both
    read all of it. The start token belongs to no document: it is read and counts as a pad.
    """

    start_id: int
    reads: str
    """One of DECODER_READS."""

    def parts(self, bounds_R2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds [R, 2] of what the encoder and what the decoder read of rows."""
        if self.reads == "all":
            return bounds_R2, bounds_R2
        first_R, end_R = bounds_R2.T
        middle_R = first_R + (end_R - first_R + 1) // 2
        return np.stack([first_R, middle_R], axis=1), np.stack([middle_R, end_R], axis=1)

    def cells(self, length: int) -> int:
        """Tokens that encoder and decoder read of a row of so many, with the start token."""
        return (2 * length if self.reads == "all" else length) + 1

    def started(self, batch: Batch) -> Batch:
        """A batch of the decoder's parts with the start token before each row."""

        def before(table_BT: np.ndarray, value: int) -> np.ndarray:
            return np.insert(table_BT, 0, np.array(value, table_BT.dtype), axis=1)

        return Batch(
            ids_BT=before(batch.ids_BT, self.start_id),
            kind_BT=before(batch.kind_BT, PAD),
            document_BT=before(batch.document_BT, 0),
            position_BT=before(batch.position_BT, 0),
        )


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


def padded_batches(
    rows: TokenRows, token_budget: int, attention_budget: int | None = None, forcing: TeacherForcing | None = None,
    one_length: bool = False,
) -> Iterator[Batch]:  # fmt: skip
    """Cut rows, longest first, into batches of at most `token_budget` cells (one row at least).

    `attention_budget` bounds rows x width², for models whose attention takes that much memory.
    A batch has at least 64 cells, filled up with pads. `forcing`: of an encoder-decoder; both parts count.
    `one_length`: all rows of a batch have as many tokens, and pads are rows of their own, so that no row has any.
    """
    lengths_R = rows.bounds_R2[:, 1] - rows.bounds_R2[:, 0]
    order = np.argsort(-lengths_R, kind="stable")
    first = 0
    while first < len(order):
        width = int(lengths_R[order[first]])
        if forcing is not None:
            width = forcing.cells(width)
        height = max(1, token_budget // width)
        if attention_budget is not None:
            height = max(1, min(height, attention_budget // (width * width)))
        if one_length:
            height = min(height, int(np.count_nonzero(lengths_R[order[first:]] == lengths_R[order[first]])))
        chosen = order[first : first + height]
        first += len(chosen)
        bounds_B2 = rows.bounds_R2[chosen]
        if one_length:
            bounds_B2 = _filled_up(bounds_B2, 1 if forcing is None else 2)
        least_width = 0 if one_length else -(-MIN_BATCH_TOKENS // len(bounds_B2))
        if forcing is None:
            yield _padded_batch(rows, bounds_B2, least_width)
        else:
            encoder, decoder = (_padded_batch(rows, part_B2, least_width) for part_B2 in forcing.parts(bounds_B2))
            yield replace(encoder, decoder=forcing.started(decoder))


def _filled_up(bounds_B2: np.ndarray, parts: int) -> np.ndarray:
    """Rows of one length, and empty ones after them where each of so many parts would have too few cells."""
    width = max(1, int(bounds_B2[0, 1] - bounds_B2[0, 0]) // parts)
    lacking = max(0, -(-MIN_BATCH_TOKENS // width) - len(bounds_B2))
    return np.concatenate([bounds_B2, np.zeros((lacking, 2), np.int64)])


def _padded_batch(rows: TokenRows, bounds_B2: np.ndarray, least_width: int) -> Batch:
    """As wide as the longest of these rows, or wider."""
    width = max(int((bounds_B2[:, 1] - bounds_B2[:, 0]).max()), least_width)
    start_B1, end_B1 = bounds_B2[:, :1], bounds_B2[:, 1:]
    index_BT = start_B1 + np.arange(width)[None, :]
    is_token_BT = index_BT < end_B1
    index_BT = np.where(is_token_BT, index_BT, 0)

    def table(values_N: np.ndarray, pad: int) -> np.ndarray:
        return np.where(is_token_BT, values_N[index_BT], np.array(pad, values_N.dtype))

    # Pads are token 0: any id does, no real token sees them.
    return Batch(
        ids_BT=table(rows.ids_N, 0),
        kind_BT=table(rows.kind_N, PAD),
        document_BT=table(rows.document_N, 0),
        position_BT=table(rows.position_N, 0),
    )
