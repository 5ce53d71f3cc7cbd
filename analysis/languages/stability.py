"""How stable LAPE's sets are: what other text of the same kind would have chosen, and how much text is enough.

The groups of every corpus are put in a random order, each corpus's on its own, and LAPE, its bar included, is run
on the first k of them. Orders come in pairs, the second the first one backwards (complementary pairs, Shah and
Samworth, JRSS B 75, 2013): for k up to half the groups the two have no text in common, and every group is used
equally often.

Half-samples: k = half the groups, 20 orders. Leaving out one group of ten would move the data three times too
little: a delete-one sample differs from the whole by 1/(G-1) of the whole's own variance, a half-sample by all of
it.

    selected again   the share of a corpus's neurons (chosen from all groups) that a half-sample chooses again
    core             the neurons that all half-samples choose
    halves agree     2 |A ∩ B| / (|A| + |B|) of the two halves of a pair: two studies of half the size each

The curve: k = 1 to G groups, some of the orders.

    recovered        the share of the whole's neurons that k groups choose; it is 1 at k = G because it is the same
                     text, so late rises say little
    agreement        of the two samples of a pair, which have no text in common, for k up to G/2: the honest curve

Where corpora differ in their number of groups, k counts those of the corpus with the most, and the others take the
same share of theirs, rounded down, but at least one. Where a corpus has no specific neuron its shares are NaN.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from neurotally.analysis.languages.counts import CorpusCounts, GroupCounts
from neurotally.analysis.languages.lape import Selection
from neurotally.analysis.languages.rule import Rule
from neurotally.analysis.overlap import agreement, is_member, jaccard
from neurotally.profiler.errors import InputError

_T = TypeVar("_T")
Order = tuple[np.ndarray, ...]
"""By corpus: a permutation of its groups."""
Sets = Mapping[str, np.ndarray]
"""By corpus: int64 [n, 2] of (layer, neuron)."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Overlaps against the number of groups used. Shapes: O orders, K = 1..G of the most groups, C corpora."""

    groups_KC: np.ndarray
    """int64: groups of each corpus."""
    tokens_KC: np.ndarray
    """Mean over the orders."""
    documents_KC: np.ndarray
    """Mean over the orders; NaN where the store doesn't say."""
    recovered_OKC: np.ndarray
    jaccard_OKC: np.ndarray
    """With the whole's set."""
    agreement_PKC: np.ndarray
    """Of the two samples of each of O/2 pairs; NaN beyond half the groups."""


@dataclass(frozen=True, eq=False)
class Stability:
    """What half-samples and the curve say of one selection. Shapes: S half-samples, C corpora."""

    rule: Rule
    seed: int
    selection: Selection
    """From all groups."""
    num_groups: Mapping[str, int]
    half_groups: Mapping[str, int]
    """Groups in a half-sample."""
    times_selected: Mapping[str, np.ndarray]
    """int64 [n], beside `selection.specific`: in how many half-samples the neuron was chosen."""
    core: Mapping[str, np.ndarray]
    """int64 [n, 2]: the part of `selection.specific` that every half-sample chose."""
    again_SC: np.ndarray
    """The share selected again."""
    halves_agree_PC: np.ndarray
    """By pair."""
    by_chance_C: np.ndarray
    """The share that random candidates would give: specific over candidates."""
    curve: Curve


def stability(groups: GroupCounts, rule: Rule, num_samples: int = 20, num_orders: int = 6, seed: int = 0) -> Stability:
    """Choose neurons from half-samples and from ever more groups.

    Both numbers are even, since orders come in pairs. Runs LAPE num_samples + num_orders · (G - 2) times or so.
    Raises InputError where a corpus has fewer than two groups with tokens.
    """
    groups.need_groups("stability")
    for what, number in (("half-samples", num_samples), ("orders", num_orders)):
        if number < 2 or number % 2:
            raise InputError(f"{what}: expected an even number from 2, since they come in pairs, got {number!r}")
    whole = rule.choose(groups.total())
    orders = draw_orders(list(groups.num_groups.values()), max(num_samples, num_orders), seed)
    half_C = [number // 2 for number in groups.num_groups.values()]
    halves = [next(_choices(groups, order, rule, [half_C])) for order in orders[:num_samples]]
    times = {
        name: np.sum([is_member(neurons_n2, sample[name]) for sample in halves], axis=0)
        for name, neurons_n2 in whole.specific.items()
    }
    return Stability(
        rule=rule,
        seed=seed,
        selection=whole,
        num_groups=groups.num_groups,
        half_groups=dict(zip(groups.corpora, half_C, strict=True)),
        times_selected=times,
        core={name: whole.specific[name][times[name] == num_samples] for name in groups.corpora},
        again_SC=np.array([_recovered(whole.specific, sample) for sample in halves]),
        halves_agree_PC=np.array([_agreements(*pair) for pair in _pairs(halves)]),
        by_chance_C=_by_chance(whole),
        curve=_curve(groups, rule, whole.specific, orders[:num_orders]),
    )


def draw_orders(num_groups: Sequence[int], number: int, seed: int) -> list[Order]:
    """An even number of orders; every second is the one before it, backwards."""
    rng = np.random.default_rng(seed)
    orders: list[Order] = []
    for _ in range(number // 2):
        order = tuple(rng.permutation(num) for num in num_groups)
        orders += [order, tuple(group_G[::-1] for group_G in order)]
    return orders


def _taken(groups: GroupCounts, k: int) -> list[int]:
    """By corpus: how many groups stand for k of the corpus with the most; up to half of them for up to half."""
    numbers = groups.num_groups.values()
    return [max(1, k * number // max(numbers)) for number in numbers]


def _prefixes(groups: GroupCounts, order: Order, steps: Sequence[Sequence[int]]) -> Iterator[CorpusCounts]:
    """The counts of an order's first groups: at each of the ascending `steps` so many of each corpus.

    All share their arrays: each is valid until the next.
    """
    whole_LF = groups.active[0].shape[1:]
    active_CLF = np.zeros((len(groups.corpora), *whole_LF), np.uint64)
    tokens_C = np.zeros(len(groups.corpora), np.uint64)
    used = [0] * len(groups.corpora)
    for taken_C in steps:
        for c, number in enumerate(taken_C):
            for group in order[c][used[c] : number]:
                active_CLF[c] += groups.active[c][group]
                tokens_C[c] += groups.tokens[c][group]
            used[c] = number
        yield CorpusCounts(groups.model, groups.corpora, tokens_C, active_CLF, groups.left_out)


def _choices(groups: GroupCounts, order: Order, rule: Rule, steps: Sequence[Sequence[int]]) -> Iterator[Sets]:
    """The specific neurons of each prefix."""
    return (rule.choose(counts).specific for counts in _prefixes(groups, order, steps))


def _curve(groups: GroupCounts, rule: Rule, whole: Sets, orders: Sequence[Order]) -> Curve:
    num_steps = max(groups.num_groups.values())
    steps = [_taken(groups, k) for k in range(1, num_steps)]
    # Of all groups there is one selection, whatever the order.
    by_order = [[*_choices(groups, order, rule, steps), whole] for order in orders]
    agreement_PKC = np.full((len(orders) // 2, num_steps, len(groups.corpora)), np.nan)
    for pair, (ahead, back) in enumerate(_pairs(by_order)):
        for k in range(num_steps // 2):
            agreement_PKC[pair, k] = _agreements(ahead[k], back[k])
    return Curve(
        groups_KC=np.array([*steps, list(groups.num_groups.values())], np.int64),
        tokens_KC=_mean_used(groups, orders, groups.tokens),
        documents_KC=_mean_used(groups, orders, groups.documents),
        recovered_OKC=np.array([[_recovered(whole, sample) for sample in samples] for samples in by_order]),
        jaccard_OKC=np.array([[_jaccards(whole, sample) for sample in samples] for samples in by_order]),
        agreement_PKC=agreement_PKC,
    )


def _mean_used(groups: GroupCounts, orders: Sequence[Order], amounts: Sequence[np.ndarray | None]) -> np.ndarray:
    """float64 [K, C]: the amount in the first k groups, mean over the orders; NaN where it isn't known."""
    num_steps = max(groups.num_groups.values())
    mean_KC = np.full((num_steps, len(groups.corpora)), np.nan)
    for c, amount_G in enumerate(amounts):
        if amount_G is not None:
            used_OG = np.cumsum([amount_G[order[c]].astype(np.float64) for order in orders], axis=1)
            taken_K = np.array([_taken(groups, k)[c] for k in range(1, num_steps + 1)])
            mean_KC[:, c] = used_OG[:, taken_K - 1].mean(axis=0)
    return mean_KC


def _recovered(whole: Sets, sample: Sets) -> list[float]:
    """By corpus."""
    return [
        float(is_member(neurons_n2, sample[name]).mean()) if len(neurons_n2) else np.nan
        for name, neurons_n2 in whole.items()
    ]


def _agreements(one: Sets, other: Sets) -> list[float]:
    return [agreement(one[name], other[name]) for name in one]


def _jaccards(one: Sets, other: Sets) -> list[float]:
    return [jaccard(one[name], other[name]) for name in one]


def _by_chance(whole: Selection) -> np.ndarray:
    sizes = [(len(whole.specific[name]), whole.num_candidates[name]) for name in whole.corpora]
    return np.array([size / candidates if candidates else np.nan for size, candidates in sizes])


def _pairs(samples: Sequence[_T]) -> list[tuple[_T, _T]]:
    return list(zip(samples[::2], samples[1::2], strict=True))
