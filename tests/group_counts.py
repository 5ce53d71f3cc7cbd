"""Counts by group, made up: neurons with rates of their own that corpora change, and groups that vary around them."""

from collections.abc import Sequence

import numpy as np

from neurotally.analysis.languages.counts import CorpusCounts, GroupCounts, Groups

NAMES = ("c", "english", "go", "html", "python", "rust")


def made_up_groups(
    num_groups: int | tuple[int, ...] = 10,
    num_corpora: int = 4,
    shape: tuple[int, int] = (4, 123),
    tokens: int = 5000,
    spread: float = 0.1,
    seed: int = 0,
) -> GroupCounts:
    """`spread`: by how much a group's odds vary (log standard deviation); groups are unequal in tokens."""
    rng = np.random.default_rng(seed)
    by_corpus = (num_groups,) * num_corpora if isinstance(num_groups, int) else num_groups
    odds_LF = rng.beta(0.3, 2, shape) + 1e-4
    names = NAMES[: len(by_corpus)]
    made = {}
    for name, number in zip(names, by_corpus, strict=True):
        tokens_G = rng.integers(tokens // 2, 2 * tokens, number)
        odds_GLF = odds_LF * rng.lognormal(0, 1, shape) * rng.lognormal(0, spread, (number, *shape))
        active_GLF = rng.binomial(tokens_G[:, None, None], odds_GLF / (1 + odds_GLF)).astype(np.uint64)
        made[name] = Groups(tokens_G.astype(np.uint64), active_GLF, documents_G=tokens_G // 100)
    model = {"id": "org/model", "revision": "abc", "fingerprint": "f1"}
    return GroupCounts(model, made, dict.fromkeys(names, 0), {"zig": "unfinished"})


def of_arrays(tokens: list[list[int]], active: list[np.ndarray]) -> GroupCounts:
    """By corpus: tokens [G] and active [G, F], as one layer."""
    made = {
        name: Groups(np.array(tokens_G, np.uint64), np.asarray(active_GF, np.uint64)[:, None, :])
        for name, tokens_G, active_GF in zip(NAMES, tokens, active, strict=False)
    }
    return GroupCounts(None, made, dict.fromkeys(made, 0), {})


def tokens_of(groups: GroupCounts) -> list[np.ndarray]:
    """By corpus: [G]."""
    return [of.tokens_G for of in groups.by_corpus.values()]


def active_of(groups: GroupCounts) -> list[np.ndarray]:
    """By corpus: [G, L, F]."""
    return [of.active_GLF for of in groups.by_corpus.values()]


def counts_of(active_CLF: np.ndarray, tokens: Sequence[int] | np.ndarray, names: Sequence[str]) -> CorpusCounts:
    """Counts over all groups, of layers of one network each."""
    return CorpusCounts(None, tuple(names), np.asarray(tokens), active_CLF, {})
