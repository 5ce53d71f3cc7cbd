"""What a key's triggers have in common: tokens, kinds of code, named patterns; and how much of it is chance.

A key's triggers are the K places where its coefficient is largest. Of those whose text was found, identical contexts
(the same lines with the token at the same place in them) count once; the statistics are counts among the rest:

    token, bigram, trigram    places that end in the most frequent token, last two, last three tokens
    keyword, name, ...        places of that kind (see `neurotally.analysis.keys.places`)
    a concept                 places with the regular expression in the lines around

Chance is the same statistic of made-up keys, whose triggers are positions drawn from the corpus at random; null keys
are those of an untrained model over the same corpus. A key is tested against the null keys for every statistic (see
`null_test`), and a layer's mean share against its null keys'. A key is *shallow* if its n-grams pass (Simes' p of the
three, corrected over the keys), *abstract* if kinds or concepts do and n-grams don't: definitions of ours, for what the
paper found by reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from neurotally.analysis.keys.null_test import (
    FEWEST_DRAWS,
    Difference,
    corrected,
    difference_from_draws,
    empirical_p,
    mean_difference,
    needed,
)
from neurotally.analysis.keys.places import KINDS, Places
from neurotally.analysis.keys.trigger_lists import TriggerLists, first_in_row
from neurotally.analysis.overlap import safe_divide

NGRAMS = ("token", "bigram", "trigram")
CHANCE_KEYS = 1000
"""Made-up keys for what chance gives: the mean share is then known to about a hundredth."""
_TESTED_KINDS = KINDS[:5]
_BLOCK = 2**16


class Statistic(NamedTuple):
    """What is counted: a name within a family."""

    family: str
    """`ngrams`, `kinds` or `concepts`."""
    name: str


@dataclass(frozen=True, eq=False)
class KeyCounts:
    """Counts among the triggers of keys; [...] is [L, F], or [N] for keys that are in no layer."""

    statistics: tuple[Statistic, ...]
    distinct: np.ndarray
    """int32 [...]: distinct contexts."""
    count_S: np.ndarray
    """int32 [S, ...]."""

    def share(self, statistic: int, min_contexts: int) -> np.ndarray:
        """float64 [...]: the share of a key's contexts; NaN with fewer than `min_contexts`."""
        return safe_divide(self.count_S[statistic], np.where(self.distinct >= min_contexts, self.distinct, 0))


@dataclass(frozen=True, eq=False)
class CorpusPatterns:
    """The patterns of all keys over one corpus."""

    corpus: str
    lexer: str | None
    """Pygments' name of the language; None where nothing lexes it."""
    counts: KeyCounts
    chance: KeyCounts
    """Of made-up keys [N]."""
    null: KeyCounts | None
    """Of null keys [L, M]: one layer's of all null stores beside each other."""
    min_contexts: int
    """Keys with fewer distinct contexts are in no curve and aren't tested."""
    alpha: float
    p_SLF: np.ndarray | None
    """float64: p-values, corrected over the keys; None without null keys."""
    shallow_LF: np.ndarray | None
    abstract_LF: np.ndarray | None
    needed: int | None
    """So many keys must be beyond every null key, for any to pass; None without null keys."""
    beyond_S: np.ndarray | None
    """int64: how many keys are, in each statistic."""
    num_nulls: int
    """Null stores."""
    num_triggers: int
    num_found: int
    """Triggers whose text was found."""
    num_copies: int
    missing: dict[str, str]

    @property
    def over_models(self) -> bool:
        """Whether there are null models enough to take the trained one for one more; else intervals are over keys."""
        return self.num_nulls >= FEWEST_DRAWS

    def over_null(self, statistic: int) -> list[Difference] | None:
        """By layer: the mean share less that of the layer's null keys; None without null keys."""
        if self.null is None:
            return None
        share_LF, null_LM = (counts.share(statistic, self.min_contexts) for counts in (self.counts, self.null))
        if self.over_models:
            null_LR = _means(null_LM.reshape(len(null_LM), self.num_nulls, -1))
            return [difference_from_draws(float(mean), null_R) for mean, null_R in zip(_means(share_LF), null_LR,
                                                                                        strict=True)]  # fmt: skip
        return [mean_difference(share_F, null_M) for share_F, null_M in zip(share_LF, null_LM, strict=True)]


def statistics_of(places: Places) -> tuple[Statistic, ...]:
    """What can be counted of these places."""
    kinds = KINDS if places.has_kinds else ()
    return (
        *(Statistic("ngrams", name) for name in NGRAMS),
        *(Statistic("kinds", name) for name in kinds),
        *(Statistic("concepts", name) for name in places.concepts),
    )


def count_keys(places: Places, index: np.ndarray) -> KeyCounts:
    """Count over keys whose triggers are `index` [..., K] into `places`, -1 where there is none."""
    statistics = statistics_of(places)
    index_NK = index.reshape(-1, index.shape[-1])
    distinct_N = np.empty(len(index_NK), np.int32)
    count_SN = np.empty((len(statistics), len(index_NK)), np.int32)
    for first in range(0, len(index_NK), _BLOCK):
        block = slice(first, first + _BLOCK)
        distinct_N[block], count_SN[:, block] = _count_block(places, index_NK[block])
    shape = index.shape[:-1]
    return KeyCounts(statistics, distinct_N.reshape(shape), count_SN.reshape(-1, *shape))


def chance_keys(places: Places, sampled: np.ndarray, num_triggers: int, seed: int) -> np.ndarray:
    """int64 [N, K]: made-up keys; `sampled` are the indices of places drawn from the corpus at random."""
    sampled = sampled[places.found_P[sampled]]
    if not len(sampled):
        return np.full((CHANCE_KEYS, num_triggers), -1, np.int64)
    drawn = np.random.default_rng(seed).integers(len(sampled), size=(CHANCE_KEYS, num_triggers))
    return np.asarray(sampled[drawn], np.int64)


def corpus_patterns(
    triggers: TriggerLists,
    places: Places,
    sampled: np.ndarray,
    nulls: Sequence[TriggerLists],
    lexer: str | None,
    alpha: float,
    seed: int,
    by_layer: bool = False,
) -> CorpusPatterns:
    """The patterns of one corpus. `sampled`: indices of places drawn at random; `nulls`: null stores' lists.

    `by_layer`: test a key against its own layer's null keys alone.
    """
    index_LFK = key_index(triggers, places)
    counts = count_keys(places, index_LFK)
    chance = count_keys(places, chance_keys(places, sampled, index_LFK.shape[-1], seed))
    null = count_keys(places, np.concatenate([key_index(one, places) for one in nulls], axis=1)) if nulls else None
    min_contexts = fewest_contexts(index_LFK.shape[-1])
    raw_SLF = None if null is None else key_p(counts, null, min_contexts, by_layer)
    num_needed, beyond_S = None, None
    if null is not None and raw_SLF is not None:
        null_L1 = _num_tested(null, min_contexts, by_layer)
        num_needed = needed(counts.distinct.size, int(null_L1.min()), alpha)
        beyond_S = np.count_nonzero(raw_SLF * (1 + null_L1) < 1.5, axis=(1, 2))  # the smallest p there is, 1 / (1 + M)
    shallow, abstract = (None, None) if raw_SLF is None else _shallow_and_abstract(counts.statistics, raw_SLF, alpha)
    return CorpusPatterns(
        corpus=triggers.corpus,
        lexer=lexer,
        counts=counts,
        chance=chance,
        null=null,
        min_contexts=min_contexts,
        alpha=alpha,
        p_SLF=None if raw_SLF is None else np.stack([corrected(raw_LF) for raw_LF in raw_SLF]),
        shallow_LF=shallow,
        abstract_LF=abstract,
        needed=num_needed,
        beyond_S=beyond_S,
        num_nulls=len(nulls),
        num_triggers=int(triggers.used_LFK.sum()),
        num_found=int((index_LFK >= 0).sum()),
        num_copies=triggers.num_copies,
        missing=dict(places.missing),
    )


def key_index(triggers: TriggerLists, places: Places) -> np.ndarray:
    """int64 [L, F, K]: the places of all triggers; -1 where unused, or without a text."""
    index_LFK = places.index(triggers.document_LFK, triggers.position_LFK)
    return np.where(triggers.used_LFK, index_LFK, -1)


def fewest_contexts(num_triggers: int) -> int:
    """A quarter of K, two at least: a share of one is always 1."""
    return max(2, num_triggers // 4)


def key_p(counts: KeyCounts, null: KeyCounts, min_contexts: int, by_layer: bool = False) -> np.ndarray:
    """float64 [S, L, F]: p of every key and statistic against all null keys, or those of its own layer alone.

    1 for keys with too few contexts.
    """
    if by_layer:
        layers = range(len(counts.distinct))
        return np.concatenate(
            [key_p(_layer(counts, layer), _layer(null, layer), min_contexts) for layer in layers], axis=1
        )
    enough = (counts.distinct >= min_contexts).ravel()
    null_enough = (null.distinct >= min_contexts).ravel()
    distinct, null_distinct = counts.distinct.ravel()[enough], null.distinct.ravel()[null_enough]
    p_SN = np.ones((len(counts.statistics), counts.distinct.size))
    for statistic, (count, null_count) in enumerate(zip(counts.count_S, null.count_S, strict=True)):
        p_SN[statistic, enough] = empirical_p(
            count.ravel()[enough], distinct, null_count.ravel()[null_enough], null_distinct
        )
    return p_SN.reshape(counts.count_S.shape)


def _num_tested(null: KeyCounts, min_contexts: int, by_layer: bool) -> np.ndarray:
    """int64 [L, 1]: how many null keys a key of each layer is tested against."""
    enough_L1 = (null.distinct >= min_contexts).sum(axis=1, keepdims=True)
    return enough_L1 if by_layer else np.full_like(enough_L1, enough_L1.sum())


def _means(share: np.ndarray) -> np.ndarray:
    """The mean over the last axis, NaNs left out; NaN where there is nothing else."""
    is_known = np.isfinite(share)
    return safe_divide(np.where(is_known, share, 0).sum(axis=-1), is_known.sum(axis=-1))


def _layer(counts: KeyCounts, layer: int) -> KeyCounts:
    """One layer's counts."""
    one = slice(layer, layer + 1)
    return KeyCounts(counts.statistics, counts.distinct[one], counts.count_S[:, one])


def _shallow_and_abstract(
    statistics: Sequence[Statistic], raw_SLF: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """bool [L, F] each: Simes over the statistics, then Benjamini and Hochberg over the keys."""
    is_ngram = np.array([statistic.family == "ngrams" for statistic in statistics])
    is_abstract = np.array([one.family == "concepts" or one.name in _TESTED_KINDS for one in statistics]) & ~is_ngram
    passes = []
    for chosen in (is_ngram, is_abstract):
        number = int(chosen.sum())
        rank_S11 = np.arange(1, number + 1)[:, None, None]
        simes_LF = (np.sort(raw_SLF[chosen], axis=0) * number / rank_S11).min(axis=0, initial=1.0)
        passes.append(corrected(simes_LF) <= alpha)
    shallow_LF, abstract_LF = passes
    return shallow_LF, abstract_LF & ~shallow_LF


def _count_block(places: Places, index_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    valid_NK = index_NK >= 0
    at_NK = np.maximum(index_NK, 0)
    counted_NK = first_in_row(places.context_P[at_NK].view(np.int64), valid_NK)
    rows = [_most_frequent(of_P[at_NK], counted_NK) for of_P in (places.token_P, places.bigram_P, places.trigram_P)]
    if places.has_kinds:
        kind_NK = places.kind_P[at_NK]
        rows += [((kind_NK == kind) & counted_NK).sum(axis=1) for kind in range(len(KINDS))]
    rows += [(match_P[at_NK] & counted_NK).sum(axis=1) for match_P in places.match_PC.T]
    return counted_NK.sum(axis=1), np.stack(rows)


def _most_frequent(value_NK: np.ndarray, counted_NK: np.ndarray) -> np.ndarray:
    """int64 [N]: how often the most frequent value, other than -1, is among the counted entries."""
    ascending_NK = np.sort(np.where(counted_NK, value_NK, -1), axis=1)
    run_N = np.zeros(len(value_NK), np.int64)
    best_N = np.zeros(len(value_NK), np.int64)
    for column in range(ascending_NK.shape[1]):
        value_N = ascending_NK[:, column]
        same_N = value_N == ascending_NK[:, column - 1] if column else np.zeros(len(value_NK), bool)
        run_N = np.where(value_N < 0, 0, np.where(same_N, run_N + 1, 1))
        best_N = np.maximum(best_N, run_N)
    return best_N
