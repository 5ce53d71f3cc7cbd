"""Counts by group, made up: neurons with rates of their own that corpora change, and groups that vary around them."""

from collections.abc import Sequence

import numpy as np

from neurotally.analysis.languages.counts import CorpusCounts, GroupCounts

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
    all_tokens, active, documents = [], [], []
    for number in by_corpus:
        tokens_G = rng.integers(tokens // 2, 2 * tokens, number)
        odds_GLF = odds_LF * rng.lognormal(0, 1, shape) * rng.lognormal(0, spread, (number, *shape))
        active.append(rng.binomial(tokens_G[:, None, None], odds_GLF / (1 + odds_GLF)).astype(np.uint64))
        all_tokens.append(tokens_G.astype(np.uint64))
        documents.append(tokens_G // 100)
    names = NAMES[: len(by_corpus)]
    model = {"id": "org/model", "revision": "abc", "fingerprint": "f1"}
    empty = dict.fromkeys(names, 0)
    return GroupCounts(model, names, tuple(all_tokens), tuple(active), tuple(documents), empty, {"zig": "unfinished"})


def of_arrays(tokens: list[list[int]], active: list[np.ndarray]) -> GroupCounts:
    """By corpus: tokens [G] and active [G, F], as one layer."""
    names = NAMES[: len(tokens)]
    return GroupCounts(
        model=None,
        corpora=names,
        tokens=tuple(np.array(tokens_G, np.uint64) for tokens_G in tokens),
        active=tuple(np.asarray(active_GF, np.uint64)[:, None, :] for active_GF in active),
        documents=(None,) * len(names),
        num_empty=dict.fromkeys(names, 0),
        left_out={},
    )


def counts_of(active_CLF: np.ndarray, tokens: Sequence[int] | np.ndarray, names: Sequence[str]) -> CorpusCounts:
    """Counts over all groups, of layers of one network each."""
    return CorpusCounts(None, tuple(names), np.asarray(tokens), active_CLF, {})
