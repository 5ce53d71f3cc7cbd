"""What `neurotally ablate` and `neurotally mask` ask of the loss pass: which neurons, which controls, which text."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from re import Pattern
from typing import Any

import numpy as np

from neurotally.analysis.languages.counts import read_counts
from neurotally.analysis.languages.rule import Rule
from neurotally.analysis.masking.mask_sets import MaskSet, candidate_neurons, mask_sets, read_origin
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


def ablation_request(
    run: PassRequest,
    corpora: Path,
    chosen_by: Rule | Path,
    draws: int,
    how: str = "activation",
    candidate_draws: int | None = None,
    max_files: int | None = None,
    document_tokens: int | None = None,
    force: bool = False,
    leave_out_used: bool = False,
    only: Sequence[str] = (),
    note: Callable[[str], object] = lambda text: None,
) -> LossRequest:
    """Each corpus's neurons, by a rule from the store's counts or from a mask file, on its held-out files in `corpora`.

    Only names that both have are taken; the others are told to `note`. `candidate_draws`: None is as many as `draws`.
    `only`: with a rule, the corpora of the store that it compares; none: all.
    """
    if only and isinstance(chosen_by, Path):
        raise InputError("--corpus says which of the store's corpora LAPE compares; with --neurons the file says it")
    candidates: Neurons | None = None
    described: dict[str, Any] = {"neurons_from": chosen_by.name} if isinstance(chosen_by, Path) else {}
    if isinstance(chosen_by, Rule):
        counts = read_counts(run.store, only)
        selection = chosen_by.choose(counts)
        specific: Neurons = selection.specific
        candidates = candidate_neurons(counts, selection)
        described = {**chosen_by.as_json(), "bar": selection.bar, "compared": list(counts.corpora)}
    else:
        specific = _read_neurons(chosen_by, run.store)
    sources = find_corpora(corpora, ())
    names = [name for name in specific if name in sources]
    if not names:
        raise InputError(f"{corpora} has none of the corpora {', '.join(specific)}; it has {', '.join(sources)}")
    if lacking := [name for name in specific if name not in sources]:
        note(f"{corpora} has no {', '.join(lacking)}: their neurons are left alone")
    if others := [name for name in sources if name not in specific]:
        note(f"{corpora}: {', '.join(others)} left out: no neurons are known for them")
    wanted = {name: specific[name] for name in names}

    def make_sets(facts: ModelFacts) -> list[MaskSet]:
        if isinstance(chosen_by, Path):
            read_mask(chosen_by, facts.fingerprint, facts.num_layers, facts.num_neurons)
        above = candidates if candidate_draws is None or candidate_draws > 0 else None
        return mask_sets(wanted, facts.num_neurons, draws, above, candidate_draws=candidate_draws)

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
    with_spared = read_origin(neurons).has_polysemantic

    def make_sets(facts: ModelFacts) -> list[MaskSet]:
        read_mask(neurons, facts.fingerprint, facts.num_layers, facts.num_neurons)
        return mask_sets(specific, facts.num_neurons, draws, with_spared=with_spared)

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
