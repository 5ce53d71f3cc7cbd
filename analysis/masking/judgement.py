"""Does a set of neurons cost more than a control? One number, z, that counts both the draws and the documents.

Two things have to hold, each with a two-sided p-value; z is the normal deviate of the larger, with the sign of the
difference. So |z| ≥ 1.96 in at most 5 % of cases where one of them doesn't hold (an intersection-union test).

*The set is no further draw of the control.* If it were one, its cost c would lie about the mean of the n draws' costs
r_1 ... r_n as they lie about it, with s² their variance, on the documents at hand:

    t = (c - mean r) / (s · √(g + 1/n))        n-1 degrees of freedom

g is 1 where the draws come from all neurons that the set may have come from, its own among them. Where each takes m
of the M others only, they are more alike than the set is to them, and g = (M + m) / (M - m): of sums without
replacement the variance is m·S²·(1 - m/M) between draws, and m·S²·(1 + m/M) of the set about the others' mean. Of
several layers the largest g counts. The sums' distribution is taken as normal: n draws alone could not say of the most
extreme of n+1 that it is rarer than 1 in n+1.

*Other documents would show a difference.* R = Σ d_i / Σ n_i as in `losses`, with its jackknife error over documents:

    t = R / √((m-1)/m · Σ (R - R_without_i)²)        1/Σ w_i² - 1 degrees of freedom, w_i = n_i / Σ n_i

1/Σ w_i² is how many documents of one length would do as much (Kish): m of one length, few where few hold most tokens.

How often either finds what isn't there: `tests/bench/bench_masking.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtr

MIN_DOCUMENTS = 5
"""With scored tokens; with fewer there is neither an error nor a z."""
MIN_DRAWS = 3
"""With fewer there is no z."""
_LEAST_P = 1e-300


class Judgement(NamedTuple):
    """How sure it is that a set costs more than a control."""

    z: float
    """Positive where the set costs more; NaN where it can't be judged."""
    not_judged: str
    """Why not; "" where it is."""


def judge(
    cost: float, draws: Sequence[float], difference_D: np.ndarray, tokens_D: np.ndarray, factor: float = 1.0
) -> Judgement:
    """A set's cost beside those of the draws, in nats per token.

    `difference_D`: nats by document beyond the mean of the draws, of `tokens_D` tokens. `factor`: g.
    """
    if len(draws) < MIN_DRAWS:
        return Judgement(np.nan, f"fewer than {MIN_DRAWS} draws")
    if np.count_nonzero(tokens_D) < MIN_DOCUMENTS:
        return Judgement(np.nan, f"fewer than {MIN_DOCUMENTS} documents")
    if np.ptp(draws) == 0:
        return Judgement(np.nan, "all draws cost the same")
    p = max(p_of_draws(cost, draws, factor), p_of_documents(difference_D, tokens_D), _LEAST_P)
    return Judgement(float(np.copysign(ndtri(p / 2), cost - np.mean(draws))), "")


def p_of_draws(cost: float, draws: Sequence[float], factor: float = 1.0) -> float:
    """Two-sided, of the set being one more draw."""
    number = len(draws)
    deviate = (cost - np.mean(draws)) / (np.std(draws, ddof=1) * np.sqrt(factor + 1 / number))
    return float(2 * stdtr(number - 1, -abs(deviate)))


def p_of_documents(difference_D: np.ndarray, tokens_D: np.ndarray) -> float:
    """Two-sided, of no difference in other documents; at least two have tokens."""
    difference_m, tokens_m = difference_D[tokens_D > 0], tokens_D[tokens_D > 0]
    number, total = len(tokens_m), tokens_m.sum()
    value = difference_m.sum() / total
    without_m = (difference_m.sum() - difference_m) / (total - tokens_m)
    error = np.sqrt((number - 1) / number * ((value - without_m) ** 2).sum())
    if error == 0:
        return float(value == 0)
    return float(2 * stdtr(1 / ((tokens_m / total) ** 2).sum() - 1, -abs(value) / error))


def exclusive_factor(number: int, others: int) -> float:
    """g of draws that take `number` neurons of `others` more than these, none of them the set's."""
    return (others + number) / (others - number)
