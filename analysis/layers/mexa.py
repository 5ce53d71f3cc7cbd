"""MEXA: how well a model aligns pieces of text of two languages, layer by layer (arXiv 2410.05873, 2506.01074).

With c_ij the cosine of embedding i of the pivot and embedding j of the other language, n ids and one layer,

    score = 1/n Σ_i 1[ c_ii > c_ij  and  c_ii > c_ji  for all j ≠ i ]

Both inequalities are strict and two cosines that differ by less than 1e-12 are equal: a text that occurs twice in a
language is never aligned, not even with itself, while the last bit of a product may differ with its place in a
matrix. Turning pivot and language round turns the matrix round, so score(p, q) = score(q, p), and half of the pairs
of languages are computed.

Cosines are those of float64. With m the mean of all unit vectors of a layer, u = m + a and v = m + b,

    u·v = m·u + m·v − m·m + a·b

where only a·b, the one matrix product, is taken in float32, and only its error, bounded by a multiple of |a||b|, is
in doubt. The comparisons that it leaves open are decided by products of the unit vectors in float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neurotally.analysis.overlap import safe_divide
from neurotally.analysis.result import model_key
from neurotally.profiler import store
from neurotally.profiler.errors import InputError

Pooling = Literal["weighted", "last"]

TIE = 1e-12
"""Cosines closer than this are equal."""
_BLOCK = 256
"""Products are summed in blocks of so many dimensions, which bounds their error in float32."""


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of C languages x n ids as they lie in a store: N distinct texts, L layers."""

    languages: tuple[str, ...]
    ids: tuple[str, ...]
    vector_LND: np.ndarray
    """float32."""
    text_Cn: np.ndarray
    """int64: number of the text that a language has for an id."""
    pooling: Pooling
    attributes: Mapping[str, Any]
    """Of the group in the store."""
    model: Mapping[str, Any] | None
    """As `model_key` gives it."""


def read_embeddings(path: Path, name: str, pooling: Pooling = "weighted") -> TextEmbeddings:
    """Read embeddings that `neurotally embed` left in a store."""
    group = f"embeddings/{name}"
    arrays = store.read_group(path, group, [pooling, "text", "id"])
    attributes = store.group_attributes(path, group)
    if not np.isfinite(arrays[pooling].sum(axis=2, dtype=np.float64)).all():
        raise InputError(f"{group} of {path} has {pooling} embeddings that aren't finite: the model overflows")
    return TextEmbeddings(
        languages=tuple(attributes["languages"]),
        ids=tuple(arrays["id"].tolist()),
        vector_LND=arrays[pooling],
        text_Cn=arrays["text"].astype(np.int64),
        pooling=pooling,
        attributes=attributes,
        model=model_key(store.store_attributes(path)["model"]),
    )


def mexa(vector_LND: np.ndarray, text_Cn: np.ndarray) -> np.ndarray:
    """bool [L, C, C, n]: whether two languages' texts are aligned, the pivot first.

    From finite vectors of distinct texts, and who has which. A zero vector's cosines are 0.
    """
    num_languages, num_ids = text_Cn.shape
    if num_ids < 2:
        raise InputError(f"expected 2 ids or more, found {num_ids}: a text is aligned if it is closer than the others")
    aligned_LCCn = np.empty((len(vector_LND), num_languages, num_languages, num_ids), bool)
    for layer, vector_ND in enumerate(vector_LND):
        cosines = _Cosines(vector_ND, text_Cn)
        for pivot in range(num_languages):
            for other in range(pivot, num_languages):
                aligned_n = cosines.aligned(pivot, other)
                aligned_LCCn[layer, pivot, other] = aligned_LCCn[layer, other, pivot] = aligned_n
    return aligned_LCCn


def pair_errors(share_CCn: np.ndarray, counted_CCn: np.ndarray) -> np.ndarray:
    """float64 [C, C]: the standard error over ids of the mean of `share_CCn` over those counted; NaN below two."""
    number_CC = counted_CCn.sum(axis=2)
    mean_CC = safe_divide((share_CCn * counted_CCn).sum(axis=2), number_CC)
    square_CC = (((share_CCn - mean_CC[:, :, None]) * counted_CCn) ** 2).sum(axis=2)
    error_CC: np.ndarray = np.sqrt(safe_divide(safe_divide(square_CC, number_CC - 1), number_CC))
    return error_CC


def mean_errors(share_LCCn: np.ndarray, counted_CCn: np.ndarray, member_CC: np.ndarray) -> np.ndarray:
    """float64 [L, C]: the standard error over ids of each pivot's mean over its member languages; NaN without any.

    By a jackknife: an id is taken out of all languages at once, and what the others are compared with held fixed. A
    pair counts where two ids or more do.
    """
    number_CC = counted_CCn.sum(axis=2)
    in_mean_CC = member_CC & (number_CC > 1)
    num_ids = counted_CCn.shape[2]
    error_LC = np.full(share_LCCn.shape[:2], np.nan)
    for layer, share_CCn in enumerate(share_LCCn):
        hit_CCn = share_CCn * counted_CCn
        for pivot in np.flatnonzero(in_mean_CC.any(axis=1)):
            used = in_mean_CC[pivot]
            hit_Cn, counted_Cn = hit_CCn[pivot, used], counted_CCn[pivot, used]
            left_Cn = hit_Cn.sum(axis=1, keepdims=True) - hit_Cn
            without_n = (left_Cn / (counted_Cn.sum(axis=1, keepdims=True) - counted_Cn)).mean(axis=0)
            error_LC[layer, pivot] = np.sqrt((num_ids - 1) * without_n.var())
    return error_LC


def cosines(vector_LND: np.ndarray, text_Cn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 [L, C, C]: the mean cosine of parallel texts that differ (NaN where none do), and of other ids' texts."""
    num_languages, num_ids = text_Cn.shape
    shape = len(vector_LND), num_languages, num_languages
    parallel_LCC, other_LCC = np.full(shape, np.nan), np.empty(shape)
    for layer, vector_ND in enumerate(vector_LND):
        unit_CnD = _unit(vector_ND)[text_Cn]
        sum_CD = unit_CnD.sum(axis=1)
        for pivot, other in np.ndindex(num_languages, num_languages):
            own_n = np.einsum("nd,nd->n", unit_CnD[pivot], unit_CnD[other])
            differs_n = text_Cn[pivot] != text_Cn[other]
            if differs_n.any():
                parallel_LCC[layer, pivot, other] = own_n[differs_n].mean()
            rest = sum_CD[pivot] @ sum_CD[other] - own_n.sum()
            other_LCC[layer, pivot, other] = rest / (num_ids * (num_ids - 1))
    return parallel_LCC, other_LCC


class _Cosines:
    """Compares the cosines of one layer."""

    def __init__(self, vector_ND: np.ndarray, text_Cn: np.ndarray):
        self._text_Cn = text_Cn
        # A text with a twin in its own language ties with it, by construction.
        self._has_twin_Cn = np.stack([np.bincount(text_n)[text_n] > 1 for text_n in text_Cn])
        self._unit_ND = _unit(vector_ND)
        mean_D = self._unit_ND.mean(axis=0)
        along_N = self._unit_ND @ mean_D
        rest_ND = self._unit_ND - mean_D
        rest_N = np.sqrt(np.einsum("nd,nd->n", rest_ND, rest_ND))
        self._along_Cn, self._mean_square = along_N[text_Cn], float(mean_D @ mean_D)
        self._rest_CnD, self._rest_C = rest_ND.astype(np.float32)[text_Cn], rest_N[text_Cn].max(axis=1)

    def aligned(self, pivot: int, other: int) -> np.ndarray:
        """bool [n]."""
        cosine_nn = _products(self._rest_CnD[pivot], self._rest_CnD[other]).astype(np.float64)
        cosine_nn += self._along_Cn[pivot][:, None]
        cosine_nn += self._along_Cn[other] - self._mean_square
        own_n = cosine_nn.diagonal().copy()
        np.fill_diagonal(cosine_nn, -np.inf)
        lead_n = own_n - np.maximum(cosine_nn.max(axis=1), cosine_nn.max(axis=0))
        lead_n[self._has_twin_Cn[pivot] | self._has_twin_Cn[other]] = -np.inf
        margin = 2 * (_product_error(self._unit_ND.shape[1]) * self._rest_C[pivot] * self._rest_C[other] + TIE)
        close = np.flatnonzero(np.abs(lead_n) <= margin)
        if len(close):
            lead_n[close] = self._exact_leads(pivot, other, close)
        aligned_n: np.ndarray = lead_n >= TIE
        return aligned_n

    def _exact_leads(self, pivot: int, other: int, close: np.ndarray) -> np.ndarray:
        """float64: c_ii less the largest other cosine of row and column i, for each i of `close`."""
        pivot_nD, other_nD = (self._unit_ND[self._text_Cn[language]] for language in (pivot, other))
        if 2 * len(close) > len(pivot_nD):
            cosine_nn = pivot_nD @ other_nD.T
            row_in, column_in = cosine_nn[close], cosine_nn[:, close].T.copy()
        else:
            row_in, column_in = pivot_nD[close] @ other_nD.T, other_nD[close] @ pivot_nD.T
        place = np.arange(len(close)), close
        own_i = row_in[place].copy()
        row_in[place] = column_in[place] = -np.inf
        lead_i: np.ndarray = own_i - np.maximum(row_in.max(axis=1), column_in.max(axis=1))
        return lead_i


def _unit(vector_ND: np.ndarray) -> np.ndarray:
    """float64: each row over its length; a zero row stays."""
    wide_ND = vector_ND.astype(np.float64)
    length_N1 = np.linalg.norm(wide_ND, axis=1, keepdims=True)
    np.divide(wide_ND, length_N1, out=wide_ND, where=length_N1 > 0)
    return wide_ND


def _products(one_nD: np.ndarray, other_nD: np.ndarray) -> np.ndarray:
    """float32 [n, n]: all products of rows, summed in blocks."""
    product_nn = np.zeros((len(one_nD), len(other_nD)), np.float32)
    for first in range(0, one_nD.shape[1], _BLOCK):
        block = np.s_[:, first : first + _BLOCK]
        product_nn += one_nD[block] @ other_nD[block].T
    return product_nn


def _product_error(width: int) -> float:
    """Bound of `_products`' error, times the lengths of both rows.

    A sum of k products, in any order, is off by at most k·u/(1 − k·u) times Σ|a||b| (u = 2^-24); here k counts the
    terms of a block, the blocks, and the rounding of the two factors.
    """
    rounding = (_BLOCK + -(-width // _BLOCK) + 3) * 2.0**-24
    return rounding / (1 - rounding)
