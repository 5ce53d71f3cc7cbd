"""Read the counts of a store's corpora: what LAPE is computed from.

`read_counts` reads corpora one after the other and sums them over their groups, so that memory holds the [C, L, F]
result and one corpus with all its groups (Llama-2-70B's shape, 12 corpora, 10 groups: 220 MB and 183 MB).
`read_group_counts` keeps the groups: ten times that, and what error bars and stability are computed from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.profiler import store
from neurotally.profiler.errors import InputError

_RUN_CORPORA = Path(".run", "corpora")
"""Where a run keeps the corpora that it hasn't finished, one folder each."""


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
    """uint64: tokens at which the neuron is active."""
    left_out: Mapping[str, str]
    """Corpora of the store that aren't among these, with the reason."""


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
    return CorpusCounts(
        model=store.store_attributes(path).get("model"),
        corpora=tuple(tokens),
        tokens_C=np.array(list(tokens.values()), np.uint64),
        active_CLF=_read_active(path, tokens),
        left_out=left_out,
    )


def read_group_counts(path: Path, only: Sequence[str] = ()) -> GroupCounts:
    """Read `tokens` and `active` of the same corpora as `read_counts`, by group; InputError as there."""
    usable, left_out = _usable(path, only)
    tokens: list[np.ndarray] = []
    active: list[np.ndarray] = []
    documents: list[np.ndarray | None] = []
    num_empty = {}
    for name in usable:
        arrays = store.read_corpus(path, name, ["tokens", "active"])
        tokens_G, active_GLF, documents_G = arrays["tokens"], arrays["active"], _documents(path, name)
        _check_groups(path, name, tokens_G, active_GLF)
        _check_shape(path, name, active_GLF, next(iter(usable)), active[0] if active else active_GLF)
        is_used_G = tokens_G > 0
        num_empty[name] = int(np.count_nonzero(~is_used_G))
        tokens.append(tokens_G[is_used_G])
        active.append(active_GLF if is_used_G.all() else active_GLF[is_used_G])
        documents.append(None if documents_G is None else documents_G[is_used_G])
    return GroupCounts(
        model=store.store_attributes(path).get("model"),
        corpora=tuple(usable),
        tokens=tuple(tokens),
        active=tuple(active),
        documents=tuple(documents),
        num_empty=num_empty,
        left_out=left_out,
    )


def unfinished_corpora(path: Path) -> list[str]:
    """The names of corpora that a run has begun and not committed, in name order."""
    committed = store.committed_corpora(path)
    begun = [folder.name for folder in (path / _RUN_CORPORA).glob("*") if folder.is_dir()]
    return sorted(set(begun) - set(committed))


def _usable(path: Path, only: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
    """The tokens of the corpora to compare, in name order, and why each of the others isn't among them."""
    committed = store.committed_corpora(path)
    left_out = dict.fromkeys(unfinished_corpora(path), "unfinished")
    tokens = {name: _tokens(path, name) for name in committed}
    left_out |= {name: "no tokens" for name in committed if tokens[name] == 0}
    for name in only:
        if name in left_out:
            raise InputError(f"{path}: corpus {name!r} was asked for and can't be used: {left_out[name]}")
        if name not in committed:
            raise InputError(f"{path} has no corpus {name!r}; it has {', '.join(committed) or 'none'}")
    if only:
        left_out |= {name: "not asked for" for name in committed if name not in only and name not in left_out}
    usable = {name: tokens[name] for name in committed if name not in left_out}
    if len(usable) < 2:
        reasons = "".join(f"; {name} is left out: {reason}" for name, reason in sorted(left_out.items()))
        raise InputError(
            f"{path}: LAPE compares corpora and needs at least two finished ones, "
            f"found {', '.join(usable) or 'none'}{reasons}"
        )
    return usable, dict(sorted(left_out.items()))


def _tokens(path: Path, corpus: str) -> int:
    return int(store.read_corpus(path, corpus, ["tokens"])["tokens"].sum(dtype=np.uint64))


def _read_active(path: Path, tokens: Mapping[str, int]) -> np.ndarray:
    """uint64 [C, L, F]: the active counts of corpora with these tokens, summed over groups."""
    active_CLF: np.ndarray | None = None
    for index, name in enumerate(tokens):
        active_GLF = store.read_corpus(path, name, ["active"])["active"]
        if active_CLF is None:
            active_CLF = np.empty((len(tokens), *active_GLF.shape[1:]), np.uint64)
        _check_shape(path, name, active_GLF, next(iter(tokens)), active_CLF)
        active_GLF.sum(axis=0, dtype=np.uint64, out=active_CLF[index])
        if active_CLF[index].max(initial=0) > tokens[name]:
            raise InputError(f"{path}: corpus {name!r} has neurons active at more tokens than its {tokens[name]}")
    assert active_CLF is not None
    return active_CLF


def _documents(path: Path, corpus: str) -> np.ndarray | None:
    """int64 [G]: the documents counted in each group; None where the store doesn't say."""
    names = ["tokens", "document_unit", "document_status", "unit_group"]
    arrays = store.read_found(path, f"corpora/{corpus}", names)
    if any(name not in arrays for name in names):
        return None
    group_n = arrays["unit_group"][arrays["document_unit"][arrays["document_status"] == 0]]
    return np.bincount(group_n, minlength=len(arrays["tokens"]))


def _check_groups(path: Path, corpus: str, tokens_G: np.ndarray, active_GLF: np.ndarray) -> None:
    if (active_GLF.max(axis=(1, 2), initial=0) > tokens_G).any():
        raise InputError(f"{path}: corpus {corpus!r} has neurons active at more tokens than a group has")


def _check_shape(path: Path, corpus: str, active_XLF: np.ndarray, other: str, other_XLF: np.ndarray) -> None:
    if active_XLF.shape[1:] != other_XLF.shape[1:]:
        raise InputError(
            f"{path}: corpus {corpus!r} has {_shape(active_XLF)}, {other!r} has {_shape(other_XLF)}; "
            "they aren't counts of one model"
        )


def _shape(active_XLF: np.ndarray) -> str:
    return f"{active_XLF.shape[1]} layers of {active_XLF.shape[2]} neurons"
