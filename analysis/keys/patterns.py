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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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

FAMILIES = ("ngrams", "kinds", "concepts")
NGRAMS = ("token", "bigram", "trigram")
CHANCE_KEYS = 1000
"""Made-up keys for what chance gives: the mean share is then known to about a hundredth."""
_TESTED_KINDS = KINDS[:5]
_BLOCK = 2**16


class Statistic(NamedTuple):
    """What is counted: a name within a family."""

    family: str
    """One of `FAMILIES`."""
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
    num_nulls: int
    """Null stores."""
    min_contexts: int
    """Keys with fewer distinct contexts are in no curve and aren't tested."""
    alpha: float
    by_layer: bool
    """A key is tested against its own layer's null keys alone."""
    num_triggers: int
    num_found: int
    """Triggers whose text was found."""
    num_copies: int
    missing: Mapping[str, str]

    @cached_property
    def raw_SLF(self) -> np.ndarray | None:
        """float64: the p of every key and statistic; None without null keys."""
        return None if self.null is None else key_p(self.counts, self.null, self.min_contexts, self.by_layer)

    @cached_property
    def p_SLF(self) -> np.ndarray | None:
        """The same, corrected over the keys."""
        return None if self.raw_SLF is None else np.stack([corrected(raw_LF) for raw_LF in self.raw_SLF])

    @cached_property
    def num_tested_L1(self) -> np.ndarray:
        """int64: how many null keys a key of each layer is tested against."""
        assert self.null is not None
        enough_L1 = (self.null.distinct >= self.min_contexts).sum(axis=1, keepdims=True)
        return enough_L1 if self.by_layer else np.full_like(enough_L1, enough_L1.sum())

    @property
    def needed(self) -> int:
        """So many keys must be beyond every null key together, for any to pass."""
        return needed(self.counts.distinct.size, int(self.num_tested_L1.min()), self.alpha)

    def num_beyond(self, statistic: int) -> int:
        """How many keys are beyond every null key: have the smallest p there is, 1 / (1 + M)."""
        assert self.raw_SLF is not None
        return int(np.count_nonzero(self.raw_SLF[statistic] * (1 + self.num_tested_L1) < 1.5))

    @property
    def over_models(self) -> bool:
        """Whether there are null models enough to take the trained one for one more; else intervals are over keys."""
        return self.num_nulls >= FEWEST_DRAWS

    def over_null(self, statistic: int) -> list[Difference]:
        """By layer: the mean share less that of the layer's null keys."""
        assert self.null is not None
        share_LF, null_LM = (counts.share(statistic, self.min_contexts) for counts in (self.counts, self.null))
        if self.over_models:
            mean_L = known_means(share_LF).tolist()
            null_LR = known_means(null_LM.reshape(len(null_LM), self.num_nulls, -1))
            return [difference_from_draws(mean, null_R) for mean, null_R in zip(mean_L, null_LR, strict=True)]
        return [mean_difference(share_F, null_M) for share_F, null_M in zip(share_LF, null_LM, strict=True)]

    def shallow_and_abstract(self) -> tuple[np.ndarray, np.ndarray]:
        """bool [L, F] each: Simes over the statistics, then Benjamini and Hochberg over the keys."""
        assert self.raw_SLF is not None
        families = np.array([statistic.family for statistic in self.counts.statistics])
        is_tested_kind = np.array([statistic.name in _TESTED_KINDS for statistic in self.counts.statistics])
        passes = []
        for chosen in (families == "ngrams", (families == "concepts") | (families == "kinds") & is_tested_kind):
            number = int(chosen.sum())
            rank_S11 = np.arange(1, number + 1)[:, None, None]
            simes_LF = (np.sort(self.raw_SLF[chosen], axis=0) * number / rank_S11).min(axis=0, initial=1.0)
            passes.append(corrected(simes_LF) <= self.alpha)
        shallow_LF, abstract_LF = passes
        return shallow_LF, abstract_LF & ~shallow_LF


def count_keys(places: Places, index: np.ndarray) -> KeyCounts:
    """Count over keys whose triggers are `index` [..., K] into `places`, -1 where there is none."""
    names = (NGRAMS, KINDS if places.has_kinds else (), places.concepts)
    statistics = tuple(Statistic(family, name) for family, of in zip(FAMILIES, names, strict=True) for name in of)
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
    index_LFK, *null_indices = (_key_index(one, places) for one in (triggers, *nulls))
    num_triggers = index_LFK.shape[-1]
    return CorpusPatterns(
        corpus=triggers.corpus,
        lexer=lexer,
        counts=count_keys(places, index_LFK),
        chance=count_keys(places, chance_keys(places, sampled, num_triggers, seed)),
        null=count_keys(places, np.concatenate(null_indices, axis=1)) if nulls else None,
        num_nulls=len(nulls),
        min_contexts=max(2, num_triggers // 4),  # a share of one is always 1
        alpha=alpha,
        by_layer=by_layer,
        num_triggers=int(triggers.used_LFK.sum()),
        num_found=int((index_LFK >= 0).sum()),
        num_copies=triggers.num_copies,
        missing=places.missing,
    )


def _key_index(triggers: TriggerLists, places: Places) -> np.ndarray:
    """int64 [L, F, K]: the places of all triggers; -1 where unused, or without a text."""
    index_LFK = places.index(triggers.document_LFK, triggers.position_LFK)
    return np.where(triggers.used_LFK, index_LFK, -1)


def key_p(counts: KeyCounts, null: KeyCounts, min_contexts: int, by_layer: bool = False) -> np.ndarray:
    """float64 [S, L, F]: p of every key and statistic against all null keys, or those of its own layer alone.

    1 for keys with too few contexts.
    """
    p_SLF = np.ones(counts.count_S.shape)
    for layers in range(len(counts.distinct)) if by_layer else (slice(None),):
        distinct, null_distinct = counts.distinct[layers], null.distinct[layers]
        enough, null_enough = distinct >= min_contexts, null_distinct >= min_contexts
        for p_LF, count_LF, null_LM in zip(p_SLF, counts.count_S, null.count_S, strict=True):
            count, null_count = count_LF[layers][enough], null_LM[layers][null_enough]
            p_LF[layers][enough] = empirical_p(count, distinct[enough], null_count, null_distinct[null_enough])
    return p_SLF


def known_means(share: np.ndarray) -> np.ndarray:
    """The mean over the last axis, NaNs left out; NaN where there is nothing else."""
    is_known = np.isfinite(share)
    return safe_divide(np.where(is_known, share, 0).sum(axis=-1), is_known.sum(axis=-1))


def strongest(count: np.ndarray, number: int = 10) -> list[tuple[int, ...]]:
    """Where the largest counts above 0 are, equal ones in order."""
    order = np.argsort(-count, axis=None, kind="stable")[:number]
    places = zip(*(axis.tolist() for axis in np.unravel_index(order, count.shape)), strict=True)
    return [at for at in places if count[at]]


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
    run_N, best_N = np.zeros((2, len(value_NK)), np.int64)
    before_N = np.full(len(value_NK), -1)
    for value_N in ascending_NK.T:
        run_N = np.where(value_N < 0, 0, np.where(value_N == before_N, run_N + 1, 1))
        best_N = np.maximum(best_N, run_N)
        before_N = value_N
    return best_N
