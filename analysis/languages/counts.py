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

from neurotally.analysis.languages.sites import Sites, rates, read_sites, together
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
    def num_neurons(self) -> int:
        """Of all layers."""
        return self.active_CLF[0].size if self.sites is None else len(self.sites.neuron_N)

    def rates(self, kind: str = "conditional") -> np.ndarray:
        """float64 [C, L, F]: see `sites.rates`; of all tokens where `kind` is joint."""
        return rates(self.active_CLF, self.tokens_C, None if kind == "joint" else self.sites)


@dataclass(frozen=True, eq=False)
class GroupCounts:
    """The counts of a store's finished corpora, by group. Groups without a token are left out, and counted.

    Corpora may differ in their number of groups. Group g of one corpus has nothing to do with group g of another.
    """

    model: Mapping[str, Any] | None
    """The store's `model` attribute; None in an imported store."""
    corpora: tuple[str, ...]
    """In name order."""
    tokens: tuple[np.ndarray, ...]
    """By corpus: uint64 [G], none of them 0."""
    active: tuple[np.ndarray, ...]
    """By corpus: uint64 [G, L, F], tokens at which the neuron is active."""
    documents: tuple[np.ndarray | None, ...]
    """By corpus: int64 [G], documents counted; None where the store doesn't know (imported counts)."""
    num_empty: Mapping[str, int]
    """By corpus: groups left out because they have no token, as where there are fewer units than groups."""
    left_out: Mapping[str, str]
    """Corpora of the store that aren't among these, with the reason."""
    sites: tuple[Sites, ...] | None = None
    """By corpus, by group; None where every layer is one network of the same width."""

    @property
    def num_groups(self) -> dict[str, int]:
        """Groups with tokens, by corpus."""
        return {name: len(tokens_G) for name, tokens_G in zip(self.corpora, self.tokens, strict=True)}

    def total(self) -> CorpusCounts:
        """The counts over all groups, as `read_counts` reads them."""
        return CorpusCounts(
            model=self.model,
            corpora=self.corpora,
            tokens_C=np.array([tokens_G.sum() for tokens_G in self.tokens], np.uint64),
            active_CLF=np.stack([active_GLF.sum(axis=0, dtype=np.uint64) for active_GLF in self.active]),
            left_out=self.left_out,
            sites=together(list(self.sites or ())),
        )

    def need_groups(self, purpose: str) -> None:
        """Raise InputError unless every corpus has at least two groups with tokens."""
        for name, number in self.num_groups.items():
            if number < 2:
                raise InputError(
                    f"{purpose} need at least two groups with tokens in every corpus, {name!r} has {number}; "
                    "imported counts have one, profiled ones as many as --groups says (and not more than units)"
                )


def read_counts(path: Path, only: Sequence[str] = ()) -> CorpusCounts:
    """Read `tokens` and `active` of every finished corpus, or of those that `only` names.

    Unfinished corpora and those without a token are left out, and named. Raises InputError where there is no
    store, one of `only` isn't there or can't be used, fewer than two corpora remain, their shapes differ, or the
    counts can't be (more active than tokens).
    """
    tokens, left_out = _usable(path, only)
    active, sites = [], []
    for of_corpus in checked_counts(path, tokens):
        active.append(of_corpus.active_GLF.sum(axis=0, dtype=np.uint64))
        sites.append(of_corpus.sites)
    return CorpusCounts(
        model=store.store_attributes(path).get("model"),
        corpora=tuple(tokens),
        tokens_C=np.array(list(tokens.values()), np.uint64),
        active_CLF=np.stack(active),
        left_out=left_out,
        sites=together(sites),
    )


def read_group_counts(path: Path, only: Sequence[str] = ()) -> GroupCounts:
    """Read `tokens` and `active` of the same corpora as `read_counts`, by group; InputError as there."""
    usable, left_out = _usable(path, only)
    tokens: list[np.ndarray] = []
    active: list[np.ndarray] = []
    documents: list[np.ndarray | None] = []
    sites: list[Sites] = []
    num_empty = {}
    for name, (tokens_G, active_GLF, of_sites) in zip(usable, checked_counts(path, usable), strict=True):
        documents_G, is_used_G = _documents(path, name), tokens_G > 0
        num_empty[name] = int(np.count_nonzero(~is_used_G))
        tokens.append(tokens_G[is_used_G])
        active.append(active_GLF if is_used_G.all() else active_GLF[is_used_G])
        documents.append(None if documents_G is None else documents_G[is_used_G])
        if of_sites is not None:
            sites.append(replace(of_sites, tokens_XS=of_sites.tokens_XS[is_used_G]))
    return GroupCounts(
        model=store.store_attributes(path).get("model"),
        corpora=tuple(usable),
        tokens=tuple(tokens),
        active=tuple(active),
        documents=tuple(documents),
        num_empty=num_empty,
        left_out=left_out,
        sites=tuple(sites) or None,
    )


def unfinished_corpora(path: Path) -> list[str]:
    """The names of corpora that a run has begun and not committed, in name order."""
    committed = store.committed_corpora(path)
    begun = [folder.name for folder in store.run_folder(path, "corpora").glob("*") if folder.is_dir()]
    return sorted(set(begun) - set(committed))


def usable_corpora(path: Path, only: Sequence[str] = ()) -> tuple[dict[str, int], dict[str, str]]:
    """The tokens of finished corpora, or of those that `only` names, and why each of the others isn't among them.

    Both in name order. Raises InputError where one of `only` isn't there or can't be used.
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
    return {name: tokens[name] for name in committed if name not in left_out}, dict(sorted(left_out.items()))


def _usable(path: Path, only: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
    """The same of corpora to compare: two at least."""
    usable, left_out = usable_corpora(path, only)
    if len(usable) < 2:
        reasons = "".join(f"; {name} is left out: {reason}" for name, reason in left_out.items())
        raise InputError(
            f"{path}: LAPE compares corpora and needs at least two finished ones, "
            f"found {', '.join(usable) or 'none'}{reasons}"
        )
    return usable, left_out


class _Counts(NamedTuple):
    """Of one corpus."""

    tokens_G: np.ndarray
    active_GLF: np.ndarray
    """0 where there is no neuron."""
    sites: Sites | None
    """By group."""


def checked_counts(path: Path, corpora: Iterable[str]) -> Iterator[_Counts]:
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
        yield _Counts(tokens_G, active_GLF, sites)


def _documents(path: Path, corpus: str) -> np.ndarray | None:
    """int64 [G]: the documents counted in each group; None where the store doesn't say."""
    names = ["tokens", "document_unit", "document_status", "unit_group"]
    arrays = store.read_found(path, f"corpora/{corpus}", names)
    if any(name not in arrays for name in names):
        return None
    group_n = arrays["unit_group"][arrays["document_unit"][arrays["document_status"] == 0]]
    return np.bincount(group_n, minlength=len(arrays["tokens"]))
