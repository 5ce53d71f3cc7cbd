"""Error bars from the groups: how far activation probabilities and LAPE's entropies would move with other text.

A corpus is an i.i.d. sample of units, dealt into G groups; n[g] tokens of group g, x[g] of them active, N and X
their sums. A probability is a ratio, and without group g it is

    p(-g) = (X - x[g]) / (N - n[g])                      p = X / N

Groups differ in tokens, and one that holds more of them counts more, so the jackknife is weighted (Wu, Annals of
Statistics 14, 1986, with the ratio as a regression through 0 in which group g has leverage n[g]/N):

    variance of p = Σ_g (1 - n[g]/N) · (p(-g) - p)²

For groups of one size this is the usual (G-1)/G · Σ (p(-g) - p)². Where the variance of a group's own ratio goes
with 1/n[g] it is unbiased whatever the sizes (the unweighted one is too large by (G-1)/G · Σ n[g]/(N-n[g])), and
nearly so where it doesn't.

The entropy depends on all corpora, which are samples apart: group g of one has nothing to do with group g of
another. So groups are left out one at a time, C·G in all, and the corpora's variances add:

    entropy(-c,g) = the entropy with p[c] replaced by p[c](-g)
    variance of the entropy = Σ_c Σ_g (1 - n[c,g]/N[c]) · (entropy(-c,g) - entropy)²
    bias of the entropy     = Σ_c Σ_g (1 - n[c,g]/N[c]) · (entropy(-c,g) - entropy)

One change of p[c] moves S = Σ_c p and T = Σ_c p ln p by one term each, and entropy = ln S - T/S: two logarithms
for each (corpus, group, neuron).

Intervals are ± t standard errors, cut to what is possible (0 to 1, 0 to ln C), t from Student's distribution with
G-1 degrees of freedom; for the entropy G is that of the corpus with the fewest groups. As several corpora
contribute, its variance is known better than that: its intervals are on the safe side, as
`tests/bench/bench_error_bars.py` measures. They can't be trusted, and are flagged, where

    few hits   fewer than 20 tokens active, or fewer than 20 inactive, also in effect: (p / standard error)² is
               the number of independent hits that would scatter as much, and hits come in bursts
    at an end  the entropy is within 0.01 of 0 or of ln C, which it can't cross
    biased     the entropy's bias is more than half its standard error: noise in p lowers the entropy, near ln C most

Of an entropy this holds where the corpora with few hits matter to it: where -Σ q ln q over them exceeds half a
standard error, each taken with no fewer than 3 hits, which is what 0 hits leave possible at 95 %.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.languages.counts import GroupCounts
from neurotally.profiler.whole_files import whole_file

FEW_HITS = 20
END_NATS = 0.01
TOLERATED = 0.5
"""Standard errors that bias, or corpora with few hits, may shift an entropy by: it costs 95 % intervals 3 points."""
_POSSIBLE_HITS = 3

_BLOCK = 2**13
"""So many neurons at a time: 10 groups of them are 0.7 MB, which stays in the cache."""
_NUM_THREADS = 2


@dataclass(frozen=True, eq=False)
class ErrorBars:
    """Every activation probability and every entropy with its standard error. C corpora, L layers, F neurons."""

    corpora: tuple[str, ...]
    num_groups: Mapping[str, int]
    """Groups with tokens, by corpus."""
    num_empty: Mapping[str, int]
    """Groups without, by corpus; they play no part."""
    level: float
    """Of the intervals: 0.95 for 95 %."""
    p_CLF: np.ndarray
    p_error_CLF: np.ndarray
    """Standard errors of p."""
    has_few_hits_CLF: np.ndarray
    """bool: p's interval can't be trusted."""
    entropy_has_few_hits_LF: np.ndarray
    """bool: and this matters to the entropy."""
    entropy_LF: np.ndarray
    """Nats, of every neuron that is active in some corpus, above the threshold or not; NaN for one that never is."""
    entropy_error_LF: np.ndarray
    entropy_bias_LF: np.ndarray
    """The jackknife's estimate; not subtracted from anything."""

    @property
    def entropy_t(self) -> float:
        """Half of an entropy's interval, in standard errors."""
        return _t_quantile(self.level, min(self.num_groups.values()) - 1)

    def p_t_C(self) -> np.ndarray:
        """Half of an interval of p, in standard errors, by corpus."""
        return np.array([_t_quantile(self.level, self.num_groups[name] - 1) for name in self.corpora])

    def p_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high ends [C, L, F]."""
        half_CLF = self.p_t_C()[:, None, None] * self.p_error_CLF
        return np.maximum(self.p_CLF - half_CLF, 0), np.minimum(self.p_CLF + half_CLF, 1)

    def entropy_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high ends [L, F]."""
        half_LF = self.entropy_t * self.entropy_error_LF
        most = math.log(len(self.corpora))
        return np.maximum(self.entropy_LF - half_LF, 0), np.minimum(self.entropy_LF + half_LF, most)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it by name, with the intervals' ends and the flags: of p [C, L, F], of the entropy [L, F]."""
        p_low_CLF, p_high_CLF = self.p_interval()
        low_LF, high_LF = self.entropy_interval()
        flags = {f"entropy_{flag.replace(' ', '_')}": is_LF for flag, is_LF in self.entropy_flags().items()}
        return {
            "p": self.p_CLF,
            "p_standard_error": self.p_error_CLF,
            "p_low": p_low_CLF,
            "p_high": p_high_CLF,
            "p_few_hits": self.has_few_hits_CLF,
            "entropy": self.entropy_LF,
            "entropy_standard_error": self.entropy_error_LF,
            "entropy_low": low_LF,
            "entropy_high": high_LF,
            "entropy_bias": self.entropy_bias_LF,
            **flags,
        }

    def entropy_flags(self) -> dict[str, np.ndarray]:
        """bool [L, F] for each reason not to trust an entropy's interval."""
        at_zero_LF = self.entropy_LF < END_NATS
        at_most_LF = self.entropy_LF > math.log(len(self.corpora)) - END_NATS
        return {
            "few hits": self.entropy_has_few_hits_LF,
            "at an end": at_zero_LF | at_most_LF,
            "biased": np.abs(self.entropy_bias_LF) > TOLERATED * self.entropy_error_LF,
        }


def error_bars(groups: GroupCounts, level: float = 0.95) -> ErrorBars:
    """The jackknife over groups, for all neurons. InputError where a corpus has fewer than two groups with tokens."""
    groups.need_groups("error bars")
    by_layer = next(iter(groups.by_corpus.values())).active_GLF.shape[1:]
    num_neurons, num_corpora = math.prod(by_layer), len(groups.corpora)
    active = [of.active_GLF.reshape(-1, num_neurons) for of in groups.by_corpus.values()]
    p_CN, p_error_CN = np.empty((2, num_corpora, num_neurons))
    has_few_hits_CN = np.empty((num_corpora, num_neurons), np.bool_)
    entropy_3N = np.empty((3, num_neurons))
    entropy_has_few_N = np.empty(num_neurons, np.bool_)

    def fill(start: int) -> None:
        block = slice(start, start + _BLOCK)
        x = [active_GN[:, block].astype(np.float64) for active_GN in active]
        tokens = _tokens(groups, block)
        for c, (x_GB, n_GX) in enumerate(zip(x, tokens, strict=True)):
            p_CN[c, block], p_error_CN[c, block], has_few_hits_CN[c, block] = _probability(x_GB, n_GX)
        entropy_3N[:, block] = _entropy(x, tokens, p_CN[:, block])
        possible_CX = np.array([_POSSIBLE_HITS / np.maximum(n_GX.sum(axis=0), 1) for n_GX in tokens])
        weak_CB = np.where(has_few_hits_CN[:, block], np.maximum(p_CN[:, block], possible_CX), 0)
        entropy_has_few_N[block] = _matters(weak_CB, p_CN[:, block], entropy_3N[1, block])

    with ThreadPoolExecutor(_NUM_THREADS) as pool:  # NumPy lets go of the interpreter in its loops
        list(pool.map(fill, range(0, num_neurons, _BLOCK)))
    entropy_LF, entropy_error_LF, entropy_bias_LF = entropy_3N.reshape(3, *by_layer)
    return ErrorBars(
        corpora=groups.corpora,
        num_groups=groups.num_groups,
        num_empty=groups.num_empty,
        level=level,
        p_CLF=p_CN.reshape(-1, *by_layer),
        p_error_CLF=p_error_CN.reshape(-1, *by_layer),
        has_few_hits_CLF=has_few_hits_CN.reshape(-1, *by_layer),
        entropy_has_few_hits_LF=entropy_has_few_N.reshape(by_layer),
        entropy_LF=entropy_LF,
        entropy_error_LF=entropy_error_LF,
        entropy_bias_LF=entropy_bias_LF,
    )


def save_error_bars(bars: ErrorBars, path: Path) -> None:
    """Write all of it as one NumPy archive (.npz): arrays by corpus, layer and neuron, and the interval's ends."""
    arrays: dict[str, Any] = {
        "corpora": np.array(bars.corpora),
        "level": np.array(bars.level),
        "groups": np.array([bars.num_groups[name] for name in bars.corpora]),
        **bars.arrays(),
    }
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _tokens(groups: GroupCounts, block: slice) -> list[np.ndarray]:
    """By corpus, float64: the groups' tokens [G, 1], or in a mixture those that reached each neuron, [G, B]."""
    by_corpus = []
    for tokens_G, _, sites, _ in groups.by_corpus.values():
        tokens_GX = tokens_G[:, None]
        if sites is not None:
            number_B = sites.number_LF.ravel()[block]
            tokens_GX = np.where(number_B >= 0, sites.tokens_XS[:, number_B], 0)
        by_corpus.append(tokens_GX.astype(np.float64))
    return by_corpus


def _probability(x_GB: np.ndarray, n_GX: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, its standard error, and whether hits are few, of one corpus.

    Where no group but one has tokens (of an expert) the error can't be told: it is 1, the whole range, and flagged.
    """
    hits_B, tokens_X = x_GB.sum(axis=0), n_GX.sum(axis=0)
    some_X = np.maximum(tokens_X, 1)
    p_B = hits_B / some_X
    # (1 - n/N) (p(-g) - p)² with p(-g) - p = (n p - x) / (N - n), which cancels less.
    residual_GB = x_GB - n_GX * p_B
    others_GX = tokens_X - n_GX
    error_B = np.sqrt(((residual_GB**2) / (some_X * np.maximum(others_GX, 1))).sum(axis=0))
    error_B = np.where((others_GX == 0).any(axis=0), 1.0, error_B)
    rarer_B = np.minimum(hits_B, tokens_X - hits_B)
    is_few_B = (rarer_B < FEW_HITS) | ((rarer_B / some_X) ** 2 < FEW_HITS * error_B**2)
    return p_B, error_B, is_few_B


def _entropy(x: Sequence[np.ndarray], tokens: Sequence[np.ndarray], p_CB: np.ndarray) -> np.ndarray:
    """[3, B]: the entropy, its standard error and its bias."""
    term_CB = _p_log_p(p_CB)
    sum_B, terms_B = p_CB.sum(axis=0), term_CB.sum(axis=0)
    entropy_B = _entropy_of(sum_B, terms_B)
    variance_B, bias_B = np.zeros((2, len(sum_B)))
    for x_GB, n_GX, p_B, term_B in zip(x, tokens, p_CB, term_CB, strict=True):
        tokens_X = n_GX.sum(axis=0)
        weight_GX = 1 - n_GX / np.maximum(tokens_X, 1)
        without_GB = (x_GB.sum(axis=0) - x_GB) / np.maximum(tokens_X - n_GX, 1)
        rest_B = np.maximum(sum_B - p_B, 0)
        replaced_GB = _entropy_of(rest_B + without_GB, (terms_B - term_B) + _p_log_p(without_GB))
        change_GB = replaced_GB - entropy_B
        variance_B += _weighted(weight_GX, change_GB**2)
        bias_B += _weighted(weight_GX, change_GB)
    is_dead_B = sum_B == 0
    return np.where(is_dead_B, np.nan, np.stack([np.maximum(entropy_B, 0), np.sqrt(variance_B), bias_B]))


def _weighted(weight_GX: np.ndarray, of_GB: np.ndarray) -> np.ndarray:
    """Σ_g weight[g] · of[g], [B]."""
    weighted_B: np.ndarray
    weighted_B = weight_GX[:, 0] @ of_GB if weight_GX.shape[1] == 1 else (weight_GX * of_GB).sum(axis=0)
    return weighted_B


def _matters(weak_CB: np.ndarray, p_CB: np.ndarray, error_B: np.ndarray) -> np.ndarray:
    """Whether the probabilities `weak_CB`, 0 where p is well known, hold too much of the entropy."""
    sum_B = p_CB.sum(axis=0)
    q_CB = np.minimum(weak_CB / np.where(sum_B > 0, sum_B, 1), 1)
    is_shaky_B: np.ndarray = -_p_log_p(q_CB).sum(axis=0) > TOLERATED * error_B
    is_shaky_B |= sum_B == 0
    return is_shaky_B


def _entropy_of(sum_XB: np.ndarray, terms_XB: np.ndarray) -> np.ndarray:
    """ln S - T/S; 0 where all hits are gone."""
    # T/S goes with S where S is the smallest float: no hits, no term.
    safe_XB = np.maximum(sum_XB, np.finfo(np.float64).tiny)
    return np.where(sum_XB > 0, np.log(safe_XB) - terms_XB / safe_XB, 0)


def _p_log_p(p_XB: np.ndarray) -> np.ndarray:
    """p ln p, 0 where p is."""
    term_XB: np.ndarray = p_XB * np.log(np.maximum(p_XB, np.finfo(np.float64).tiny))
    return term_XB


def _t_quantile(level: float, degrees: int) -> float:
    """The t that |T| stays below with probability `level`: 2.262 for 0.95 and 9."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, degrees))
