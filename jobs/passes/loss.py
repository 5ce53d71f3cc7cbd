"""The loss pass: next-token losses over evaluation corpora, with each of several sets of neurons switched off.

A task is a unit of one corpus. It is read and tokenised once and run once for every distinct set, so that all sets
share one load of the model and one reading of the text. By set, document and class of tokens the group keeps sums
only, from which `analysis.masking.losses` makes differences and their standard errors.

    nats     float64 [set, document, class]    Σ of losses, see `profiler.passes.loss`
    hits     uint32  [set, document, class]    tokens that the model thinks likeliest
    scored   uint32  [document, class]         tokens scored

Classes: "all", and for every concept NAME "NAME/match" and "NAME/line" (see `profiler.corpus.token_classes`); the other
two classes of a concept are what is left of "all" in the documents where `has_concept` is 1, or 0.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from re import Pattern
from types import MappingProxyType
from typing import Any

import numpy as np

from neurotally.analysis.languages.sites import read_sites
from neurotally.analysis.masking.mask_sets import MaskSets, mask_sets
from neurotally.analysis.masking.masks import read_mask
from neurotally.jobs.corpora import ListedCorpus
from neurotally.jobs.passes.held_out import Choosers, find_used
from neurotally.jobs.passes.loss_worker import LossConfig, LossWorker
from neurotally.jobs.reducers.parts import KeptParts, Parts
from neurotally.jobs.reducers.reducer import Plan
from neurotally.jobs.run import Pass, Setup, Texts, model_identity, run_pass
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import ModelFacts
from neurotally.profiler.networks import site_numbers
from neurotally.profiler.passes.worker import TOKEN_BUDGET

Above = Mapping[str, np.ndarray] | str
"""As `mask_sets` takes it."""
_SET, _DOCUMENT, _CLASS = ("set",), ("document",), ("class",)
SCHEMA: Mapping[str, store.ArraySpec] = {
    "nats": store.ArraySpec("float64", (*_SET, *_DOCUMENT, *_CLASS), np.nan),
    "hits": store.ArraySpec("uint32", (*_SET, *_DOCUMENT, *_CLASS), 2**32 - 1),
    "scored": store.ArraySpec("uint32", (*_DOCUMENT, *_CLASS), 2**32 - 1),
    "has_concept": store.ArraySpec("uint8", (*_DOCUMENT, "concept"), 255),
    "document_name": store.ArraySpec("string", _DOCUMENT, ""),
    "document_corpus": store.ArraySpec("uint16", _DOCUMENT, 2**16 - 1),
    "document_hash": store.ArraySpec("uint8", (*_DOCUMENT, "sha256"), 0),
    "document_status": store.ArraySpec("uint8", _DOCUMENT, 255),
    "document_tokens": store.ArraySpec("uint32", _DOCUMENT, 2**32 - 1),
    "mask_set": store.ArraySpec("uint32", ("entry",), 2**32 - 1),
    "mask_neuron": store.ArraySpec("int32", ("entry", "pair"), -1),
}
_BY_SET = ("nats", "hits")
"""Along the second axis of these lie documents; along the first of all others."""


@dataclass(frozen=True)
class Evaluation:
    """How neurons are judged."""

    how: str
    draws: int
    max_files: int | None
    document_tokens: int | None
    leave_out_used: bool
    """Leave out documents that chose the neurons, too, where a mask file names them; else they are refused."""
    force: bool
    """Keep documents that chose the neurons."""
    max_unit_bytes: int


@dataclass(frozen=True, eq=False)
class Chosen:
    """The neurons that are judged."""

    neurons: Mapping[str, np.ndarray]
    """Sets by name: int64 [n, 2] of (layer, neuron)."""
    above: Above
    choosers: Choosers
    described: Mapping[str, Any]
    """Attributes of the group: how they were chosen."""
    file: Path | None = None
    """The mask file that they are from."""
    with_spared: bool = False
    """Whether each set is also measured without the neurons that it shares with others."""

    def sets(self, facts: ModelFacts, draws: int) -> MaskSets:
        """Them and what they are compared with; InputError where the mask file isn't of this model."""
        if self.file is not None:
            read_mask(self.file, facts.fingerprint, facts.num_layers, facts.num_neurons)
        site_LF = site_numbers(facts.networks, facts.num_layers, facts.num_neurons)
        return mask_sets(self.neurons, site_LF, draws, self.above, self.with_spared)


def measure_losses(
    setup: Setup, group: str, sources: Mapping[str, str], evaluation: Evaluation, chosen: Chosen,
    concepts: Mapping[str, Pattern[str]] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Bring the store to hold the pass's group. Raises as `run_pass` does."""

    def make_pass(facts: ModelFacts, listed: list[ListedCorpus]) -> Pass:
        made = chosen.sets(facts, evaluation.draws)
        used = find_used(listed, chosen.choosers, evaluation.leave_out_used, evaluation.force, setup.progress.note)
        profiled = store.store_attributes(setup.store).get("config") or {}
        row_tokens = profiled.get("row_tokens") or facts.row_tokens
        distinct = {mask.neurons_n2.tobytes(): mask.neurons_n2 for mask in made.sets}
        config = LossConfig(
            row_tokens=row_tokens,
            document_tokens=evaluation.document_tokens,
            forcing=facts.teacher_forcing(profiled.get("decoder_reads")),
            token_budget=max(TOKEN_BUDGET[facts.device_type], row_tokens),
            how=evaluation.how,
            neurons=tuple(distinct.values()),
            concepts=dict(concepts),
            mean_LF=_means(setup.store, [corpus.name for corpus in listed]) if evaluation.how == "mean" else {},
            left_out=frozenset() if evaluation.force else frozenset(document.sha256 for document in used),
        )
        tasks = [corpus.task(unit) for corpus in listed for unit in corpus.units(evaluation.max_unit_bytes, 1)]
        described = {
            "used_documents": [[document.corpus, document.name] for document in used],
            "forced": evaluation.force,
            "described": dict(chosen.described),
        }
        identity = _identity(facts, listed, made, config, evaluation.max_unit_bytes)
        assemble = partial(_assemble, listed, made, facts.num_layers, list(concepts), described)
        return Pass(
            partial(LossWorker, config=config),
            [Plan(group, tasks, identity, partial(Parts, assemble=assemble, schema=SCHEMA))],
        )

    run_pass(setup, make_pass, Texts(sources, evaluation.max_files))


def class_names(concepts: Sequence[str]) -> list[str]:
    """The names of the classes, in the order of the arrays."""
    return ["all", *(f"{name}/{kind}" for name in concepts for kind in ("match", "line"))]


def _identity(
    facts: ModelFacts, listed: Sequence[ListedCorpus], made: MaskSets, config: LossConfig, max_unit_bytes: int
) -> dict[str, Any]:
    """All that decides a bit of the result."""
    return {
        **model_identity(facts),
        "corpora": {corpus.name: corpus.identity for corpus in listed},
        "sets": [f"{mask.kind} {mask.of} {mask.draw}".strip() for mask in made.sets],
        "neurons": _digest([(mask.kind, mask.of, mask.draw, mask.neurons_n2) for mask in made.sets]),
        "how": config.how,
        "means": _digest(sorted(config.mean_LF.items())) if config.mean_LF else None,
        "concepts": [[name, pattern.pattern] for name, pattern in config.concepts.items()],
        "left_out": _digest([sorted(sha256.hex() for sha256 in config.left_out)]),
        "row_tokens": config.row_tokens,
        "document_tokens": config.document_tokens,
        "decoder_reads": None if config.forcing is None else config.forcing.reads,
        "token_budget": config.token_budget,
        "max_unit_bytes": max_unit_bytes,
        "attention": facts.attention,
    }


def _assemble(
    listed: Sequence[ListedCorpus], made: MaskSets, num_layers: int, concepts: list[str], described: dict[str, Any],
    parts: KeptParts,
) -> tuple[dict[str, np.ndarray | store.Blocks], dict[str, Any]]:  # fmt: skip
    """The group's arrays and attributes."""
    keys = list(dict.fromkeys(mask.neurons_n2.tobytes() for mask in made.sets))
    which_S = [keys.index(mask.neurons_n2.tobytes()) for mask in made.sets]
    arrays: dict[str, np.ndarray | store.Blocks] = {}
    number_C = [len(corpus.manifest.names) for corpus in listed]
    classes = class_names(concepts)
    for name in parts.names:
        if name in _BY_SET:
            by_set = (values_SnX[which_S] for values_SnX in parts.each(name))
            arrays[name] = store.Blocks((len(which_S), sum(number_C), len(classes)), 1, by_set)
        elif name in SCHEMA:
            arrays[name] = parts.joined(name)
    arrays |= {
        "document_name": np.concatenate([corpus.stored_names() for corpus in listed]),
        "document_corpus": np.repeat(np.arange(len(listed)), number_C),
        "mask_set": np.repeat(np.arange(len(made.sets)), [len(mask.neurons_n2) for mask in made.sets]),
        "mask_neuron": np.concatenate([mask.neurons_n2 for mask in made.sets]),
    }
    return arrays, {
        "corpora": [corpus.name for corpus in listed],
        "sets": [mask.to_json(num_layers) for mask in made.sets],
        "draws": made.draws,
        "not_drawn": {kind: dict(reasons) for kind, reasons in made.not_drawn.items()},
        "concepts": concepts,
        "classes": classes,
        **described,
    }


def _means(path: Path, corpora: Sequence[str]) -> dict[str, np.ndarray]:
    """float64 [L, F] by corpus: the mean coefficient over it, or over all corpora of the store where it lacks this."""
    sums, tokens = {}, {}
    for name in store.committed_corpora(path):
        arrays = store.read_corpus(path, name, ["coefficient_sum", "tokens"])
        sums[name], tokens[name] = arrays["coefficient_sum"], arrays["tokens"].sum(dtype=np.int64)
        if (sites := read_sites(path, name, arrays["tokens"])) is not None:
            # Those that reached it; of an expert that got none, and where there is no neuron, the mean is 0.
            sums[name] = np.nan_to_num(sums[name])
            tokens[name] = sites.summed().came_by()[0].astype(np.int64)
    if not any(map(np.any, tokens.values())):
        raise InputError(f"--how mean: {path} has no corpus yet to take means from; run `neurotally profile` first")
    overall_LF = np.sum(list(sums.values()), axis=0) / sum(tokens.values())
    return {name: sums[name] / tokens[name] if np.any(tokens.get(name, 0)) else overall_LF for name in corpora}


def _digest(entries: Sequence[Sequence[Any]]) -> str:
    """SHA-256 over the parts of each entry; arrays by their bytes."""
    digest = hashlib.sha256()
    for entry in entries:
        for part in entry:
            digest.update(part.tobytes() if isinstance(part, np.ndarray) else f"{part}\0".encode())
    return digest.hexdigest()
