"""`neurotally ablate` and `neurotally mask`: which neurons, controls and texts the loss pass gets."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from re import Pattern
from typing import Any

import numpy as np

from neurotally.analysis import studies
from neurotally.analysis.keys.places import read_concepts
from neurotally.analysis.languages.counts import read_counts
from neurotally.analysis.languages.lape import Rule, threshold_of
from neurotally.analysis.masking.mask_sets import MaskSets, above_threshold, mask_sets, read_origin
from neurotally.analysis.masking.masks import read_mask
from neurotally.analysis.result import Result
from neurotally.jobs.passes.held_out import Choosers, profiled_documents
from neurotally.jobs.passes.loss import MAX_UNIT_BYTES, Evaluation, measure_losses
from neurotally.jobs.plan import find_corpora
from neurotally.jobs.progress import Progress
from neurotally.jobs.run import Texts, make_where
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.model import ModelFacts

Neurons = Mapping[str, np.ndarray]
"""Sets by name: int64 [n, 2] of (layer, neuron)."""
Above = Mapping[str, np.ndarray] | str
"""As `mask_sets` takes it."""
DRAWS = 8
"""At a level of 5 % a set must cost more than the draws' mean by 2.5 of their standard deviations: by 5.0 with three,
by 2.1 with twenty draws, for 0.4 and 2.4 times the model's runs."""


def ablate(
    model: str, store: Path | str, *, corpora: Path | str, neurons: Path | str | None = None,
    corpus: Sequence[str] = (), per_corpus: int = 400, quantile: float = 0.95, how: str = "activation",
    draws: int = DRAWS, max_files: int | None = None, document_tokens: int | None = None,
    leave_out_used: bool = False, force: bool = False, name: str = "ablate", workers: int | None = None,
    device: str = "auto", dtype: str = "auto", address: str | None = None, trust_remote_code: bool = False,
    progress: Progress | None = None, max_unit_bytes: int = MAX_UNIT_BYTES,
) -> Result:  # fmt: skip
    """What switching off each corpus's neurons costs every corpus; as `neurotally ablate`, with its options.

    LAPE's choice from the store's counts (`corpus`: compare only these), or the sets of a mask file `neurons`, on
    the held-out files of the folder `corpora`. Only names that both have are taken; the others are told. Returns the
    `Result` of `ablate`.

    >>> from neurotally.jobs import ablate
    >>> done = ablate("model/", "my.store", corpora="heldout/", per_corpus=3, quantile=0.5, draws=2)
    >>> [len(row) for row in done.document["change"]]
    [2, 2]
    """
    where, group = make_where(model, store, "loss", name, workers, device, dtype, address, trust_remote_code,
                              progress)  # fmt: skip
    if corpus and neurons is not None:
        raise InputError("--corpus says which of the store's corpora LAPE compares; with --neurons the file says it")
    if neurons is None:
        rule = Rule(quantile, "balanced", per_corpus)
        counts = read_counts(where.store, corpus)
        selection = rule.choose(counts)
        specific: Neurons = selection.specific
        rate_CLF = dict(zip(counts.corpora, counts.active_CLF / counts.tokens_C[:, None, None], strict=True))
        above: Above = above_threshold(rate_CLF, selection.bar, specific)
        described = {**rule.as_json(), "bar": selection.bar, "compared": list(counts.corpora)}
        choosers = profiled_documents(where.store)
    else:
        file = Path(neurons)
        specific = _read_neurons(file, where.store)
        above = _above(file, where.store, specific)
        described = {"neurons_from": file.name}
        choosers = _choosers(file, where.store)
    sources = find_corpora(corpora)
    names = [one for one in specific if one in sources]
    if not names:
        raise InputError(f"{corpora} has none of the corpora {', '.join(specific)}; it has {', '.join(sources)}")
    if lacking := [one for one in specific if one not in sources]:
        where.progress.note(f"{corpora} has no {', '.join(lacking)}: their neurons are left alone")
    if others := [one for one in sources if one not in specific]:
        where.progress.note(f"{corpora}: {', '.join(others)} left out: no neurons are known for them")
    wanted = {one: specific[one] for one in names}

    def make_sets(facts: ModelFacts) -> MaskSets:
        if neurons is not None:
            read_mask(Path(neurons), facts.fingerprint, facts.num_layers, facts.num_neurons)
        return mask_sets(wanted, facts.num_neurons, draws, above)

    evaluation = Evaluation(
        make_sets, choosers, how, document_tokens=document_tokens, force=force, leave_out_used=leave_out_used,
        described=described,
    )  # fmt: skip
    texts = Texts({one: sources[one] for one in names}, max_files)
    measure_losses(where, group, texts, evaluation, max_unit_bytes)
    return studies.run("losses", where.store, name=name, form="ablate")


def mask(
    model: str, store: Path | str, *, neurons: Path | str, corpora: Path | str,
    regex: Path | str | Mapping[str, Pattern[str]] | None = None, how: str = "activation", draws: int = DRAWS,
    max_files: int | None = None, document_tokens: int | None = None, leave_out_used: bool = False,
    force: bool = False, name: str = "mask", workers: int | None = None, device: str = "auto", dtype: str = "auto",
    address: str | None = None, trust_remote_code: bool = False, progress: Progress | None = None,
    max_unit_bytes: int = MAX_UNIT_BYTES,
) -> Result:  # fmt: skip
    """What switching off the named sets of a mask file costs; as `neurotally mask`, with its options.

    `corpora`: a folder of held-out files, one subfolder per corpus; `regex`: the file of the concepts' expressions, or
    the compiled expressions by name, whose matches are measured apart. Returns the `Result` of `mask`.

    >>> from neurotally.jobs import mask
    >>> done = mask("model/", "my.store", neurons="neurons.json", corpora="heldout/", draws=2)
    >>> sorted(done.document["sets"])
    ['loops']
    """
    where, group = make_where(model, store, "loss", name, workers, device, dtype, address, trust_remote_code,
                              progress)  # fmt: skip
    file = Path(neurons)
    concepts = read_concepts(Path(regex)) if isinstance(regex, Path | str) else regex or {}
    specific = _read_neurons(file, where.store)
    above = _above(file, where.store, specific)
    with_spared = read_origin(file).has_polysemantic

    def make_sets(facts: ModelFacts) -> MaskSets:
        read_mask(file, facts.fingerprint, facts.num_layers, facts.num_neurons)
        return mask_sets(specific, facts.num_neurons, draws, above, with_spared)

    evaluation = Evaluation(
        make_sets, _choosers(file, where.store), how, concepts, document_tokens, force, leave_out_used,
        {"neurons_from": file.name},
    )  # fmt: skip
    measure_losses(where, group, Texts(find_corpora(corpora), max_files), evaluation, max_unit_bytes)
    return studies.run("losses", where.store, name=name, form="mask")


def _read_neurons(path: Path, store_path: Path) -> Neurons:
    """The sets of a mask file, checked against the store's model where there is one: before the model is loaded."""
    model: dict[str, Any] = {}
    if (store_path / "zarr.json").exists():
        model = store.store_attributes(store_path).get("model") or {}
    # No model is so large; its own numbers are checked when it is loaded.
    shape = model.get("num_layers", 2**31), model.get("num_neurons", 2**31)
    return read_mask(path, model.get("fingerprint"), *shape)


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
