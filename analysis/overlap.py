"""How much two sets of neurons have in common.

    jaccard(A, B)     |A ∩ B| / |A ∪ B|
    contained(A, B)   |A ∩ B| / min(|A|, |B|)     1 where one holds the other: right for sets of unlike size
    recovered(A, B)   |A ∩ B| / |A|
    agreement(A, B)   2 |A ∩ B| / (|A| + |B|)     the share found again, where both are of one size

All are NaN where their denominator is 0. Sets are [n, 2] of (layer, neuron), each neuron once.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np


def num_common(neurons_a2: np.ndarray, neurons_b2: np.ndarray) -> int:
    """Neurons in both sets."""
    return len(np.intersect1d(_codes(neurons_a2), _codes(neurons_b2), assume_unique=True))


def jaccard(neurons_a2: np.ndarray, neurons_b2: np.ndarray) -> float:
    """The share of the union that is in both."""
    common = num_common(neurons_a2, neurons_b2)
    return _share(common, len(neurons_a2) + len(neurons_b2) - common)


def contained(neurons_a2: np.ndarray, neurons_b2: np.ndarray) -> float:
    """The share of the smaller set that the larger one holds."""
    return _share(num_common(neurons_a2, neurons_b2), min(len(neurons_a2), len(neurons_b2)))


def recovered(neurons_a2: np.ndarray, neurons_b2: np.ndarray) -> float:
    """The share of the first set that is in the second."""
    return _share(num_common(neurons_a2, neurons_b2), len(neurons_a2))


def agreement(neurons_a2: np.ndarray, neurons_b2: np.ndarray) -> float:
    """The share of their mean size that is in both."""
    return _share(2 * num_common(neurons_a2, neurons_b2), len(neurons_a2) + len(neurons_b2))


def is_member(neurons_n2: np.ndarray, of_m2: np.ndarray) -> np.ndarray:
    """bool [n]: which of the neurons are in the other set."""
    return np.isin(_codes(neurons_n2), _codes(of_m2), assume_unique=True)


def pairwise_common(sets: Mapping[str, np.ndarray]) -> np.ndarray:
    """int64 [S, S]: neurons in common of every two sets, in the mapping's order; the diagonal is their sizes."""
    return np.array([[num_common(one, other) for other in sets.values()] for one in sets.values()], np.int64)


def pairwise_jaccard(common_SS: np.ndarray) -> np.ndarray:
    """float64 [S, S] of what `pairwise_common` gives; NaN for two empty sets."""
    size_S = np.diag(common_SS)
    union_SS = size_S[:, None] + size_S - common_SS
    return safe_divide(common_SS, union_SS)


def without_diagonal(values: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """A matrix without what each has in common with itself."""
    return [[None if row == column else value for column, value in enumerate(of_row)]
            for row, of_row in enumerate(values)]  # fmt: skip


def safe_divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where the whole is 0; they broadcast."""
    shape = np.broadcast_shapes(part.shape, whole.shape)
    share: np.ndarray = np.divide(part, whole, out=np.full(shape, np.nan), where=whole > 0)
    return share


def _codes(neurons_n2: np.ndarray) -> np.ndarray:
    """One integer a neuron."""
    code_n: np.ndarray = neurons_n2[:, 0] * 2**32 + neurons_n2[:, 1]
    return code_n


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
