"""Read the counts of a store's corpora: what LAPE is computed from.

`read_counts` reads corpora one after the other and sums them over their groups, so that memory holds the [C, L, F]
result, twice at the end, or once and one corpus with all its groups (Llama-2-70B's shape, 12 corpora, 10 groups: 220 MB
and 183 MB).
`read_group_counts` keeps the groups: ten times that, and what error bars and stability are computed from.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neurotally.analysis.languages.sites import Sites, read_sites
from neurotally.profiler import store
from neurotally.profiler.errors import InputError


@dataclass(frozen=True, eq=False)
class CorpusCounts:
    """The counts of a store's finished corpora, over all groups."""

    model: Mapping[str, Any] | None
    """The store's `model` attribute; None in an imported store."""
    corpora: tuple[str, ...]
    """In name order."""
    tokens_C: np.ndarray
    """uint64."""
    active_CLF: np.ndarray
    """uint64: tokens at which the neuron is active; 0 where there is no neuron."""
    left_out: Mapping[str, str]
    """Corpora of the store that aren't among these, with the reason."""
    sites: Sites | None = None
    """By corpus; None where every layer is one network of the same width."""

    @property
    def is_neuron_LF(self) -> np.ndarray:
        """bool: false where a layer is narrower than the widest."""
        return np.ones(self.active_CLF.shape[1:], bool) if self.sites is None else self.sites.number_LF >= 0

    @property
    def num_neurons(self) -> int:
        """Of all layers."""
        return int(np.count_nonzero(self.is_neuron_LF))

    def rates(self, kind: str = "conditional") -> np.ndarray:
        """float64 [C, L, F]: of the tokens that reached a neuron, or of all (`joint`), the share at which it is active.

        0 where none reached it, and where there is no neuron.
        """
        tokens_CLF = self.tokens_C[:, None, None]
        if self.sites is not None and kind == "conditional":
            tokens_CLF = self.sites.came_by()
        rate_CLF: np.ndarray = self.active_CLF / tokens_CLF
        return rate_CLF


class Groups(NamedTuple):
    """The counts of one corpus by group."""

    tokens_G: np.ndarray
    """uint64."""
    active_GLF: np.ndarray
    """uint64: tokens at which the neuron is active; 0 where there is no neuron."""
    sites: Sites | None = None
    """By group; None where every layer is one network of the same width."""
    documents_G: np.ndarray | None = None
    """int64: documents counted; None where the store doesn't know (imported counts), or nobody asked."""


@dataclass(frozen=True, eq=False)
class GroupCounts:
    """The counts of a store's finished corpora, by group. Groups without a token are left out, and counted.

    Corpora may differ in their number of groups. Group g of one corpus has nothing to do with group g of another.
    """

    model: Mapping[str, Any] | None
    """The store's `model` attribute; None in an imported store."""
    by_corpus: Mapping[str, Groups]
    """In name order; no group without a token."""
    num_empty: Mapping[str, int]
    """By corpus: groups left out because they have no token, as where there are fewer units than groups."""
    left_out: Mapping[str, str]
    """Corpora of the store that aren't among these, with the reason."""

    @property
    def corpora(self) -> tuple[str, ...]:
        """In name order."""
        return tuple(self.by_corpus)

    @property
    def num_groups(self) -> dict[str, int]:
        """Groups with tokens, by corpus."""
        return {name: len(groups.tokens_G) for name, groups in self.by_corpus.items()}

    def total(self) -> CorpusCounts:
        """The counts over all groups, as `read_counts` reads them."""
        return _summed(self.model, self.left_out, self.by_corpus.items())

    def need_groups(self, purpose: str) -> None:
        """Raise InputError unless every corpus has at least two groups with tokens."""
        for name, number in self.num_groups.items():
            if number < 2:
                raise InputError(
                    f"{purpose} need at least two groups with tokens in every corpus, {name!r} has {number}; "
                    "imported counts have one, profiled ones as many as --groups says (and not more than units)"
                )


def read_counts(path: Path, only: Sequence[str] = (), fewest: int = 2) -> CorpusCounts:
    """Read `tokens` and `active` of every finished corpus, or of those that `only` names.

    Unfinished corpora and those without a token are left out, and named. Raises InputError where there is no
    store, one of `only` isn't there or can't be used, fewer than `fewest` corpora remain, their shapes differ, or the
    counts can't be (more active than tokens).
    """
    usable, left_out = usable_corpora(path, only, fewest)
    return _summed(store.store_attributes(path).get("model"), left_out, _checked_groups(path, usable))


def read_group_counts(path: Path, only: Sequence[str] = ()) -> GroupCounts:
    """Read `tokens` and `active` of the same corpora as `read_counts`, by group; InputError as there."""
    usable, left_out = usable_corpora(path, only, fewest=2)
    by_corpus, num_empty = {}, {}
    for name, (tokens_G, active_GLF, sites, _) in _checked_groups(path, usable):
        documents_G, is_used_G = _documents(path, name), tokens_G > 0
        num_empty[name] = int(np.count_nonzero(~is_used_G))
        by_corpus[name] = Groups(
            tokens_G[is_used_G],
            active_GLF if is_used_G.all() else active_GLF[is_used_G],
            sites and replace(sites, tokens_XS=sites.tokens_XS[is_used_G]),
            None if documents_G is None else documents_G[is_used_G],
        )
    return GroupCounts(store.store_attributes(path).get("model"), by_corpus, num_empty, left_out)


def unfinished_corpora(path: Path) -> list[str]:
    """The names of corpora that a run has begun and not committed, in name order."""
    committed = store.committed_corpora(path)
    begun = [folder.name for folder in store.run_folder(path, "corpora").glob("*") if folder.is_dir()]
    return sorted(set(begun) - set(committed))


def usable_corpora(path: Path, only: Sequence[str] = (), fewest: int = 1) -> tuple[dict[str, int], dict[str, str]]:
    """The tokens of finished corpora, or of those that `only` names, and why each of the others isn't among them.

    Both in name order. Raises InputError where one of `only` isn't there or can't be used, or fewer than `fewest` (two:
    to compare) are left.
    """
    committed = store.committed_corpora(path)
    left_out = dict.fromkeys(unfinished_corpora(path), "unfinished")
    tokens = {name: int(store.read_corpus(path, name, ["tokens"])["tokens"].sum(dtype=np.uint64)) for name in committed}
    left_out |= {name: "no tokens" for name in committed if tokens[name] == 0}
    for name in only:
        if name in left_out:
            raise InputError(f"{path}: corpus {name!r} was asked for and can't be used: {left_out[name]}")
        if name not in committed:
            raise InputError(f"{path} has no corpus {name!r}; it has {', '.join(committed) or 'none'}")
    if only:
        left_out |= {name: "not asked for" for name in committed if name not in only and name not in left_out}
    usable = {name: tokens[name] for name in committed if name not in left_out}
    left_out = dict(sorted(left_out.items()))
    if not usable and fewest == 1:
        raise InputError(f"{path} has no finished corpus with tokens")
    if len(usable) < fewest:
        reasons = "".join(f"; {name} is left out: {reason}" for name, reason in left_out.items())
        raise InputError(
            f"{path}: LAPE compares corpora and needs at least two finished ones, "
            f"found {', '.join(usable) or 'none'}{reasons}"
        )
    return usable, left_out


def _summed(
    model: Mapping[str, Any] | None, left_out: Mapping[str, str], by_corpus: Iterable[tuple[str, Groups]]
) -> CorpusCounts:
    """The counts over all groups."""
    corpora, tokens, active, sites = [], [], [], []
    for name, groups in by_corpus:
        corpora.append(name)
        tokens.append(groups.tokens_G.sum(dtype=np.uint64))
        active.append(groups.active_GLF.sum(axis=0, dtype=np.uint64))
        if groups.sites is not None:
            sites.append(groups.sites.summed())
    of_all = replace(sites[0], tokens_XS=np.concatenate([one.tokens_XS for one in sites])) if sites else None
    return CorpusCounts(model, tuple(corpora), np.array(tokens, np.uint64), np.stack(active), left_out, of_all)


def _checked_groups(path: Path, corpora: Iterable[str]) -> Iterator[tuple[str, Groups]]:
    """Those of one corpus after the other, checked."""
    shapes: dict[str, str] = {}
    for name in corpora:
        arrays = store.read_corpus(path, name, ["tokens", "active"])
        tokens_G, active_GLF = arrays["tokens"], arrays["active"]
        sites = read_sites(path, name, tokens_G)
        if sites is not None:
            active_GLF = np.where(sites.number_LF >= 0, active_GLF, np.uint64(0))
        if (active_GLF.max(axis=(1, 2), initial=0) > tokens_G).any():
            raise InputError(f"{path}: corpus {name!r} has neurons active at more tokens than a group has")
        _, num_layers, num_neurons = active_GLF.shape
        shapes[name] = f"{num_layers} layers of {num_neurons} neurons"
        first, shape = next(iter(shapes.items()))
        if shapes[name] != shape:
            raise InputError(
                f"{path}: corpus {name!r} has {shapes[name]}, {first!r} has {shape}; they aren't counts of one model"
            )
        yield name, Groups(tokens_G, active_GLF, sites)


def _documents(path: Path, corpus: str) -> np.ndarray | None:
    """int64 [G]: the documents counted in each group; None where the store doesn't say."""
    names = ["tokens", "document_unit", "document_status", "unit_group"]
    arrays = store.read_found(path, f"corpora/{corpus}", names)
    if any(name not in arrays for name in names):
        return None
    group_n = arrays["unit_group"][arrays["document_unit"][arrays["document_status"] == 0]]
    return np.bincount(group_n, minlength=len(arrays["tokens"]))
