"""`neurotally ablate` and `neurotally mask`: which neurons, controls and texts the loss pass gets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from re import Pattern
from typing import Any

from neurotally.analysis.keys.places import read_concepts
from neurotally.analysis.languages.counts import read_counts, usable_corpora
from neurotally.analysis.languages.lape import Rule, lape, threshold_of
from neurotally.analysis.masking.mask_sets import above_threshold
from neurotally.analysis.masking.masks import read_mask, read_origin
from neurotally.jobs.corpora import find_corpora
from neurotally.jobs.passes.held_out import Choosers, profiled_documents
from neurotally.jobs.passes.loss import Above, Chosen, Evaluation, measure_losses
from neurotally.jobs.run import Setup
from neurotally.profiler import store
from neurotally.profiler.buckets import on_disk
from neurotally.profiler.errors import InputError


def ablate_corpora(
    setup: Setup, group: str, neurons: Path | str | None, corpus: Sequence[str], rule: Rule, folder: Path | str,
    evaluation: Evaluation,
) -> None:  # fmt: skip
    """What LAPE chooses by `rule` from the store's counts, or a mask file's sets, on the corpora of the same names."""
    chosen = _chosen_by_lape(setup.store, corpus, rule) if neurons is None else _chosen_by_file(on_disk(neurons), setup)
    sources = find_corpora(folder)
    names = [name for name in chosen.neurons if name in sources]
    if not names:
        raise InputError(f"{folder} has none of the corpora {', '.join(chosen.neurons)}; it has {', '.join(sources)}")
    if lacking := [name for name in chosen.neurons if name not in sources]:
        setup.progress.note(f"{folder} has no {', '.join(lacking)}: their neurons are left alone")
    if others := [name for name in sources if name not in chosen.neurons]:
        setup.progress.note(f"{folder}: {', '.join(others)} left out: no neurons are known for them")
    chosen = replace(chosen, neurons={name: chosen.neurons[name] for name in names})
    measure_losses(setup, group, {name: sources[name] for name in names}, evaluation, chosen)


def mask_sets_of_file(
    setup: Setup, group: str, file: Path, regex: Path | str | Mapping[str, Pattern[str]] | None, folder: Path | str,
    evaluation: Evaluation,
) -> None:  # fmt: skip
    """The sets of a mask file, on every corpus; the matches of the expressions of `regex` are measured apart."""
    concepts = read_concepts(on_disk(regex)) if isinstance(regex, Path | str) else regex or {}
    chosen = _chosen_by_file(file, setup, spares_polysemantic=True)
    measure_losses(setup, group, find_corpora(folder), evaluation, chosen, concepts)


def _chosen_by_lape(path: Path, corpus: Sequence[str], rule: Rule) -> Chosen:
    counts = read_counts(path, corpus)
    selection = lape(counts, rule)
    rate_CLF = dict(zip(counts.corpora, counts.rates(rule.rates), strict=True))
    above = above_threshold(rate_CLF, selection.threshold, selection.specific)
    described = {**rule.as_json(), "bar": selection.threshold, "compared": list(counts.corpora)}
    return Chosen(selection.specific, above, profiled_documents(path), described)


def _chosen_by_file(file: Path, setup: Setup, spares_polysemantic: bool = False) -> Chosen:
    """The sets of a mask file, checked against the store's model where there is one: before the model is loaded.

    Chosen by the documents that the file names, else by all of the store's. `spares_polysemantic`: each set is also
    measured without the neurons that it shares, where the file tells of these.
    """
    model: dict[str, Any] = {}
    if store.is_begun(setup.store):
        model = store.store_attributes(setup.store).get("model") or {}
    # No model is so large; its own numbers are checked when it is loaded.
    shape = model.get("num_layers", 2**31), model.get("num_neurons", 2**31)
    neurons = read_mask(file, model.get("fingerprint"), *shape)
    origin = read_origin(file)
    above = _above(origin.threshold, setup.store, neurons)
    if origin.trigger_documents is None:
        choosers = profiled_documents(setup.store)
    else:
        choosers = Choosers(
            origin.trigger_documents, origin.trigger_names, origin.trigger_files, origin.document_lines, are_named=True
        )
    with_spared = spares_polysemantic and origin.has_polysemantic
    return Chosen(neurons, above, choosers, {"neurons_from": file.name}, file, with_spared)


def _above(threshold: float | None, store_path: Path, names: Iterable[str]) -> Above:
    """Which neurons are above the threshold in the store's corpora; None: LAPE's usual one."""
    if not store.is_begun(store_path) or not usable_corpora(store_path, fewest=0)[0]:
        return "the store has no corpus that tells which neurons are above LAPE's threshold"
    counts = read_counts(store_path, fewest=1)
    rate_CLF = counts.rates()
    if threshold is None:
        threshold = threshold_of(rate_CLF, Rule().quantile, len(rate_CLF) * counts.num_neurons)
    return above_threshold(dict(zip(counts.corpora, rate_CLF, strict=True)), threshold, names)
