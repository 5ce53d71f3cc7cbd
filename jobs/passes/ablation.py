"""What `neurotally ablate` and `neurotally mask` ask of the loss pass: which neurons, which controls, which text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from re import Pattern
from typing import Any

import numpy as np

from neurotally.analysis.languages.counts import read_counts
from neurotally.analysis.languages.lape import threshold_of
from neurotally.analysis.languages.rule import Rule
from neurotally.analysis.masking.mask_sets import MaskSets, above_threshold, mask_sets, read_origin
from neurotally.analysis.masking.masks import read_mask
from neurotally.jobs.passes.held_out import Choosers, profiled_documents
from neurotally.jobs.passes.loss import LossRequest
from neurotally.jobs.passes.run import PassRequest
from neurotally.jobs.plan import find_corpora
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.model import ModelFacts

Neurons = Mapping[str, np.ndarray]
"""Sets by name: int64 [n, 2] of (layer, neuron)."""
Above = Mapping[str, np.ndarray] | str
"""As `mask_sets` takes it."""


def ablation_request(
    run: PassRequest,
    corpora: Path,
    chosen_by: Rule | Path,
    draws: int,
    how: str = "activation",
    max_files: int | None = None,
    document_tokens: int | None = None,
    force: bool = False,
    leave_out_used: bool = False,
    only: Sequence[str] = (),
    note: Callable[[str], object] = lambda text: None,
) -> LossRequest:
    """Each corpus's neurons, by a rule from the store's counts or from a mask file, on its held-out files in `corpora`.

    Only names that both have are taken; the others are told to `note`. `only`: with a rule, the corpora of the store
    that it compares; none: all.
    """
    if only and isinstance(chosen_by, Path):
        raise InputError("--corpus says which of the store's corpora LAPE compares; with --neurons the file says it")
    described: dict[str, Any] = {"neurons_from": chosen_by.name} if isinstance(chosen_by, Path) else {}
    if isinstance(chosen_by, Rule):
        counts = read_counts(run.store, only)
        selection = chosen_by.choose(counts)
        specific: Neurons = selection.specific
        rate_CLF = dict(zip(counts.corpora, counts.active_CLF / counts.tokens_C[:, None, None], strict=True))
        above: Above = above_threshold(rate_CLF, selection.bar, specific)
        described = {**chosen_by.as_json(), "bar": selection.bar, "compared": list(counts.corpora)}
    else:
        specific = _read_neurons(chosen_by, run.store)
        above = _above(chosen_by, run.store, specific)
    sources = find_corpora(corpora, ())
    names = [name for name in specific if name in sources]
    if not names:
        raise InputError(f"{corpora} has none of the corpora {', '.join(specific)}; it has {', '.join(sources)}")
    if lacking := [name for name in specific if name not in sources]:
        note(f"{corpora} has no {', '.join(lacking)}: their neurons are left alone")
    if others := [name for name in sources if name not in specific]:
        note(f"{corpora}: {', '.join(others)} left out: no neurons are known for them")
    wanted = {name: specific[name] for name in names}

    def make_sets(facts: ModelFacts) -> MaskSets:
        if isinstance(chosen_by, Path):
            read_mask(chosen_by, facts.fingerprint, facts.num_layers, facts.num_neurons)
        return mask_sets(wanted, facts.num_neurons, draws, above)

    choosers = _choosers(chosen_by, run.store) if isinstance(chosen_by, Path) else profiled_documents(run.store)
    return LossRequest(
        run=run, sources={name: sources[name] for name in names}, make_sets=make_sets, choosers=choosers, how=how,
        max_files=max_files, document_tokens=document_tokens, force=force, leave_out_used=leave_out_used,
        described=described,
    )  # fmt: skip


def mask_request(
    run: PassRequest,
    corpora: Path,
    neurons: Path,
    concepts: Mapping[str, Pattern[str]],
    draws: int,
    how: str = "activation",
    max_files: int | None = None,
    force: bool = False,
    document_tokens: int | None = None,
    leave_out_used: bool = False,
) -> LossRequest:
    """The sets of a mask file, on all corpora of a folder and the tokens of `concepts`."""
    specific = _read_neurons(neurons, run.store)
    above = _above(neurons, run.store, specific)
    with_spared = read_origin(neurons).has_polysemantic

    def make_sets(facts: ModelFacts) -> MaskSets:
        read_mask(neurons, facts.fingerprint, facts.num_layers, facts.num_neurons)
        return mask_sets(specific, facts.num_neurons, draws, above, with_spared)

    return LossRequest(
        run=run, sources=find_corpora(corpora, ()), make_sets=make_sets, choosers=_choosers(neurons, run.store),
        how=how, concepts=concepts, max_files=max_files, document_tokens=document_tokens, force=force,
        leave_out_used=leave_out_used, described={"neurons_from": neurons.name},
    )  # fmt: skip


def _read_neurons(path: Path, store_path: Path) -> Neurons:
    """The sets of a mask file, checked against the store's model where there is one: before the model is loaded."""
    model: dict[str, Any] = {}
    if (store_path / "zarr.json").exists():
        model = store.store_attributes(store_path).get("model") or {}
    # No model is so large; its own numbers are checked when it is loaded.
    shape = model.get("num_layers", 2**31), model.get("num_neurons", 2**31)
    neurons = read_mask(path, model.get("fingerprint"), *shape).neurons
    if not neurons:
        raise InputError(f"{path} has no set of neurons: its 'specific' is empty")
    return neurons


def _above(path: Path, store_path: Path, names: Iterable[str]) -> Above:
    """Which neurons are above the threshold in the store's corpora: the mask file's, or else LAPE's usual one."""
    rate_CLF = {}
    for name in store.committed_corpora(store_path) if (store_path / "zarr.json").exists() else ():
        arrays = store.read_corpus(store_path, name, ["tokens", "active"])
        if tokens := int(arrays["tokens"].sum()):
            rate_CLF[name] = arrays["active"].sum(axis=0, dtype=np.uint64) / tokens
    if not rate_CLF:
        return "the store has no corpus that tells which neurons are above LAPE's threshold"
    threshold = read_origin(path).threshold
    if threshold is None:
        threshold = threshold_of(np.concatenate([rate_LF.ravel() for rate_LF in rate_CLF.values()]), Rule().quantile)
    return above_threshold(rate_CLF, threshold, names)


def _choosers(path: Path, store_path: Path) -> Choosers:
    """The documents that chose a mask file's neurons: those it names, else all of the store's."""
    origin = read_origin(path)
    if origin.trigger_documents is not None:
        return Choosers(
            origin.trigger_documents, origin.trigger_names, origin.trigger_files, origin.document_lines, are_named=True
        )
    if not (store_path / "zarr.json").exists():
        return Choosers(frozenset(), frozenset(), frozenset(), None, are_named=False)
    return profiled_documents(store_path)
