"""Read the counts of a store's corpora: what LAPE is computed from.

Corpora are read one after the other and summed over their groups, so that memory holds the [C, L, F] result and
one corpus with all its groups (Llama-2-70B's shape, 12 corpora, 10 groups: 220 MB and 183 MB).
"""

from collections.abc import Mapping
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


def read_counts(path: Path) -> CorpusCounts:
    """Read `tokens` and `active` of every finished corpus.

    Unfinished corpora and those without a token are left out, and named. Raises InputError where there is no
    store, fewer than two corpora remain, their shapes differ, or the counts can't be (more active than tokens).
    """
    model = store.store_attributes(path).get("model")
    committed = store.committed_corpora(path)
    left_out = dict.fromkeys(unfinished_corpora(path), "unfinished")
    tokens = {name: _tokens(path, name) for name in committed}
    left_out |= {name: "no tokens" for name in committed if tokens[name] == 0}
    corpora = tuple(name for name in committed if name not in left_out)
    if len(corpora) < 2:
        reasons = "".join(f"; {name} is left out: {reason}" for name, reason in sorted(left_out.items()))
        raise InputError(
            f"{path}: LAPE compares corpora and needs at least two finished ones, "
            f"found {', '.join(corpora) or 'none'}{reasons}"
        )
    return CorpusCounts(
        model=model,
        corpora=corpora,
        tokens_C=np.array([tokens[name] for name in corpora], np.uint64),
        active_CLF=_read_active(path, {name: tokens[name] for name in corpora}),
        left_out=dict(sorted(left_out.items())),
    )


def unfinished_corpora(path: Path) -> list[str]:
    """The names of corpora that a run has begun and not committed, in name order."""
    committed = store.committed_corpora(path)
    begun = [folder.name for folder in (path / _RUN_CORPORA).glob("*") if folder.is_dir()]
    return sorted(set(begun) - set(committed))


def _tokens(path: Path, corpus: str) -> int:
    return int(store.read_corpus(path, corpus, ["tokens"])["tokens"].sum(dtype=np.uint64))


def _read_active(path: Path, tokens: Mapping[str, int]) -> np.ndarray:
    """uint64 [C, L, F]: the active counts of corpora with these tokens, summed over groups."""
    active_CLF: np.ndarray | None = None
    for index, name in enumerate(tokens):
        active_GLF = store.read_corpus(path, name, ["active"])["active"]
        if active_CLF is None:
            active_CLF = np.empty((len(tokens), *active_GLF.shape[1:]), np.uint64)
        if active_GLF.shape[1:] != active_CLF.shape[1:]:
            raise InputError(
                f"{path}: corpus {name!r} has {_shape(active_GLF)}, {next(iter(tokens))!r} has "
                f"{_shape(active_CLF)}; they aren't counts of one model"
            )
        active_GLF.sum(axis=0, dtype=np.uint64, out=active_CLF[index])
        if active_CLF[index].max(initial=0) > tokens[name]:
            raise InputError(f"{path}: corpus {name!r} has neurons active at more tokens than its {tokens[name]}")
    assert active_CLF is not None
    return active_CLF


def _shape(active_XLF: np.ndarray) -> str:
    return f"{active_XLF.shape[1]} layers of {active_XLF.shape[2]} neurons"
