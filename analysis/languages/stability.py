"""How stable LAPE's sets are: what other text of the same kind would have chosen, and how much text is enough.

The groups of every corpus are put in a random order, each corpus's on its own, and LAPE, its threshold included, is
run on the first k of them. Orders come in pairs, the second the first one backwards (complementary pairs, Shah and
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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from neurotally.analysis.languages.counts import CorpusCounts, GroupCounts
from neurotally.analysis.languages.lape import Rule, Selection, Sets, lape
from neurotally.analysis.overlap import agreement, is_member, jaccard, recovered, safe_divide
from neurotally.profiler.errors import InputError

Order = tuple[np.ndarray, ...]
"""By corpus: a permutation of its groups."""


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

    seed: int
    selection: Selection
    """From all groups."""
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
    curve: Curve

    @property
    def by_chance_C(self) -> np.ndarray:
        """The share that random candidates would give: specific over candidates."""
        size_C = np.array([len(neurons_n2) for neurons_n2 in self.selection.specific.values()])
        return safe_divide(size_C, np.array(list(self.selection.num_candidates.values())))


def stability(groups: GroupCounts, rule: Rule, num_samples: int = 20, num_orders: int = 6, seed: int = 0) -> Stability:
    """Choose neurons from half-samples and from ever more groups.

    Both numbers are even, since orders come in pairs. Runs LAPE num_samples + num_orders · (G - 2) times or so.
    Raises InputError where a corpus has fewer than two groups with tokens.
    """
    groups.need_groups("stability")
    for what, number in (("half-samples", num_samples), ("orders", num_orders)):
        if number < 2 or number % 2:
            raise InputError(f"{what}: expected an even number from 2, since they come in pairs, got {number!r}")
    total = groups.total()
    whole = lape(total, rule)
    orders = draw_orders(list(groups.num_groups.values()), max(num_samples, num_orders), seed)
    half_C = [number // 2 for number in groups.num_groups.values()]
    halves = [next(_choices(groups, total, order, rule, [half_C])) for order in orders[:num_samples]]
    specific = whole.specific
    times = {
        name: np.sum([is_member(neurons_n2, sample[name]) for sample in halves], axis=0)
        for name, neurons_n2 in specific.items()
    }
    return Stability(
        seed=seed,
        selection=whole,
        half_groups=dict(zip(groups.corpora, half_C, strict=True)),
        times_selected=times,
        core={name: neurons_n2[times[name] == num_samples] for name, neurons_n2 in specific.items()},
        again_SC=np.array([_by_corpus(recovered, specific, sample) for sample in halves]),
        halves_agree_PC=np.array(
            [_by_corpus(agreement, *pair) for pair in zip(halves[::2], halves[1::2], strict=True)]
        ),
        curve=_curve(groups, total, rule, specific, orders[:num_orders]),
    )


def draw_orders(num_groups: Sequence[int], number: int, seed: int) -> list[Order]:
    """An even number of orders; every second is the one before it, backwards."""
    rng = np.random.default_rng(seed)
    orders: list[Order] = []
    for _ in range(number // 2):
        order = tuple(rng.permutation(num) for num in num_groups)
        orders += [order, tuple(group_G[::-1] for group_G in order)]
    return orders


def _choices(
    groups: GroupCounts, total: CorpusCounts, order: Order, rule: Rule, steps: Sequence[Sequence[int]]
) -> Iterator[Sets]:
    """The specific neurons by an order's first groups: at each of the ascending `steps` so many of each corpus."""
    sites = total.sites and replace(total.sites, tokens_XS=np.zeros_like(total.sites.tokens_XS))
    tokens_C, active_CLF = np.zeros_like(total.tokens_C), np.zeros_like(total.active_CLF)
    used_C: Sequence[int] = [0] * len(order)
    for taken_C in steps:
        for c, (order_G, of) in enumerate(zip(order, groups.by_corpus.values(), strict=True)):
            for group in order_G[used_C[c] : taken_C[c]]:
                active_CLF[c] += of.active_GLF[group]
                tokens_C[c] += of.tokens_G[group]
                if sites is not None and of.sites is not None:
                    sites.tokens_XS[c] += of.sites.tokens_XS[group]
        used_C = taken_C
        yield lape(replace(total, tokens_C=tokens_C, active_CLF=active_CLF, sites=sites), rule).specific


def _curve(groups: GroupCounts, total: CorpusCounts, rule: Rule, whole: Sets, orders: Sequence[Order]) -> Curve:
    numbers = list(groups.num_groups.values())
    num_steps = max(numbers)
    # Of the others as large a share; up to half of them for up to half.
    steps = [[max(1, k * number // num_steps) for number in numbers] for k in range(1, num_steps + 1)]
    # Of all groups there is one selection, whatever the order.
    by_order = [[*_choices(groups, total, order, rule, steps[:-1]), whole] for order in orders]
    agreement_PKC = np.full((len(orders) // 2, num_steps, len(numbers)), np.nan)
    for pair, (ahead, back) in enumerate(zip(by_order[::2], by_order[1::2], strict=True)):
        for k in range(num_steps // 2):
            agreement_PKC[pair, k] = _by_corpus(agreement, ahead[k], back[k])
    groups_KC = np.array(steps, np.int64)
    return Curve(
        groups_KC=groups_KC,
        tokens_KC=_mean_used(orders, groups_KC, [of.tokens_G for of in groups.by_corpus.values()]),
        documents_KC=_mean_used(orders, groups_KC, [of.documents_G for of in groups.by_corpus.values()]),
        recovered_OKC=np.array([[_by_corpus(recovered, whole, sample) for sample in samples] for samples in by_order]),
        jaccard_OKC=np.array([[_by_corpus(jaccard, whole, sample) for sample in samples] for samples in by_order]),
        agreement_PKC=agreement_PKC,
    )


def _mean_used(orders: Sequence[Order], groups_KC: np.ndarray, amounts: Sequence[np.ndarray | None]) -> np.ndarray:
    """float64 [K, C]: the amount in each corpus's first groups, mean over the orders; NaN where it isn't known."""
    mean_KC = np.full(groups_KC.shape, np.nan)
    for c, amount_G in enumerate(amounts):
        if amount_G is not None:
            used_OG = np.cumsum([amount_G[order[c]].astype(np.float64) for order in orders], axis=1)
            mean_KC[:, c] = used_OG[:, groups_KC[:, c] - 1].mean(axis=0)
    return mean_KC


def _by_corpus(measure: Callable[[np.ndarray, np.ndarray], float], one: Sets, other: Sets) -> list[float]:
    return [measure(one[name], other[name]) for name in one]
