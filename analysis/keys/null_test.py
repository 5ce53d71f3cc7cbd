"""Is a key's count more than chance? Against the keys of an untrained model, corrected for the number of keys.

The places where a neuron's coefficient is largest are no random sample of a text, in an untrained model either: a
test against the corpus's base rate alone passes 2 to 4 % of an untrained model's keys. So the null distribution is
measured: the same statistic, of the same architecture freshly initialised, over the same corpus. With N null keys,

    p = (1 + #null keys that reach the key) / (1 + N)

A key has a count x among n distinct contexts. A null key reaches it if its count or its share is at least as large:
neither few contexts nor many make a key look better than it is. Over all keys the p-values are corrected by
Benjamini and Hochberg. No p is below 1 / (1 + N): with few null keys only many keys can pass together (`needed`).
"""

import math

import numpy as np
from scipy.stats import false_discovery_control


def empirical_p(
    count_N: np.ndarray, distinct_N: np.ndarray, null_M: np.ndarray, null_distinct_M: np.ndarray
) -> np.ndarray:
    """float64 [N]: p of each key's count among its distinct contexts, against M null keys'. No context: p is 1."""
    pair_U2, which_N = np.unique(np.stack([count_N, distinct_N], axis=1), axis=0, return_inverse=True)
    null_share_M = _share(null_M, null_distinct_M)
    p_U = np.empty(len(pair_U2))
    for count in np.unique(pair_U2[:, 0]):
        at = np.flatnonzero(pair_U2[:, 0] == count)
        below = np.sort(null_share_M[null_M < count])  # the others reach the key by their count
        num_short = np.searchsorted(below, _share(pair_U2[at, 0], pair_U2[at, 1]), side="left")
        p_U[at] = (1 + len(null_M) - num_short) / (1 + len(null_M))
    p_U[pair_U2[:, 1] == 0] = 1.0
    p_N: np.ndarray = p_U[which_N.ravel()]
    return p_N


def corrected(p_N: np.ndarray) -> np.ndarray:
    """float64, of any shape: p-values after Benjamini and Hochberg's correction over all of them."""
    if not p_N.size:
        return p_N
    adjusted: np.ndarray = false_discovery_control(p_N.ravel(), method="bh").reshape(p_N.shape)
    return adjusted


def needed(num_keys: int, num_null: int, alpha: float) -> int:
    """So many of `num_keys` keys must have the smallest p there is, 1 / (1 + num_null), for any to pass."""
    return max(1, math.ceil(num_keys / (alpha * (1 + num_null)) - 1e-9))


def _share(count: np.ndarray, of: np.ndarray) -> np.ndarray:
    share: np.ndarray = np.divide(count, of, out=np.zeros(count.shape), where=of > 0)
    return share
