"""The loss pass: next-token losses over evaluation corpora, with each of several sets of neurons switched off.

A task is a unit of one corpus. It is read and tokenised once and run once for every distinct set, so that all sets
share one load of the model and one reading of the text. By set, document and class of tokens the group keeps sums
only, from which `analysis.masking.losses` makes differences and their standard errors.

    nats     float64 [set, document, class]    Σ of losses, see `profiler.loss`
    hits     uint32  [set, document, class]    tokens that the model thinks likeliest
    scored   uint32  [document, class]         tokens scored

Classes: "all", and for every concept NAME "NAME/match" and "NAME/line" (see `profiler.token_classes`); the other two
classes of a concept are what is left of "all" in the documents where `has_concept` is 1, or 0.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from re import Pattern
from typing import Any

import numpy as np

from neurotally.analysis.masking.mask_sets import MaskSet, MaskSets
from neurotally.jobs.passes.held_out import Choosers, UsedDocument, find_used, refuse_or_leave_out
from neurotally.jobs.passes.loss_worker import LossConfig, LossWorker
from neurotally.jobs.plan import CorpusPlan, stored_names
from neurotally.jobs.reducers import KeptParts, Parts, Plan
from neurotally.jobs.run import Pass, Texts, Where, model_identity, run_pass
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.model import ModelFacts
from neurotally.profiler.worker import TOKEN_BUDGET, Task

MAX_UNIT_BYTES = 2**16
"""A unit is run once for every set: kept small, so that little is lost when a run stops."""

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
    """What a loss pass switches off, and what it measures that on."""

    make_sets: Callable[[ModelFacts], MaskSets]
    choosers: Choosers
    how: str = "activation"
    concepts: Mapping[str, Pattern[str]] = field(default_factory=dict)
    document_tokens: int | None = None
    force: bool = False
    """Keep documents that chose the neurons."""
    leave_out_used: bool = False
    """Leave them out, too, where a mask file names them; else they are refused."""
    described: Mapping[str, Any] = field(default_factory=dict)
    """Further attributes of the group: how the neurons were chosen."""


def measure_losses(
    where: Where, group: str, texts: Texts, evaluation: Evaluation, max_unit_bytes: int = MAX_UNIT_BYTES
) -> None:
    """Bring the store to hold the pass's group. Raises as `run_pass` does."""

    def make_pass(facts: ModelFacts, listed: list[CorpusPlan]) -> Pass:
        losses = _make_losses(evaluation, facts, listed, where, max_unit_bytes)
        plan = Plan(group, losses.tasks, losses.identity, partial(Parts, assemble=losses.assemble, schema=SCHEMA))
        return Pass(partial(LossWorker, config=losses.config), [plan])

    run_pass(where, make_pass, texts)


def class_names(concepts: Sequence[str]) -> list[str]:
    """The names of the classes, in the order of the arrays."""
    return ["all", *(f"{name}/{kind}" for name in concepts for kind in ("match", "line"))]


@dataclass(frozen=True, eq=False)
class _Losses:
    """A pass as it will run."""

    evaluation: Evaluation
    max_unit_bytes: int
    facts: ModelFacts
    corpora: list[CorpusPlan]
    made: MaskSets
    used: list[UsedDocument]
    config: LossConfig
    which_S: list[int]
    """Of each set its place among the distinct ones."""

    @property
    def sets(self) -> list[MaskSet]:
        """All that is switched off in turn."""
        return self.made.sets

    @cached_property
    def tasks(self) -> list[Task]:
        """The units of all corpora, in order."""
        return [plan.task(unit) for plan in self.corpora for unit in plan.units(self.max_unit_bytes, 1)]

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides a bit of the result."""
        config = self.config
        digest = _digest([(one.kind, one.of, one.draw, one.neurons_n2) for one in self.sets])
        return {
            **model_identity(self.facts),
            "corpora": {plan.name: plan.identity for plan in self.corpora},
            "sets": [f"{one.kind} {one.of} {one.draw}".strip() for one in self.sets],
            "neurons": digest,
            "how": config.how,
            "means": _digest(sorted(config.mean_LF.items())) if config.mean_LF else None,
            "concepts": [[name, pattern.pattern] for name, pattern in config.concepts.items()],
            "left_out": _digest([sorted(one.hex() for one in config.left_out)]),
            "row_tokens": config.row_tokens,
            "document_tokens": config.document_tokens,
            "token_budget": config.token_budget,
            "max_unit_bytes": self.max_unit_bytes,
            "attention": self.facts.attention,
        }

    def assemble(self, parts: KeptParts) -> tuple[dict[str, np.ndarray | store.Blocks], dict[str, Any]]:
        """The group's arrays and attributes."""
        arrays: dict[str, np.ndarray | store.Blocks] = {}
        num_documents = sum(len(plan.manifest.names) for plan in self.corpora)
        for name in parts.names:
            if name in _BY_SET:
                by_set = (values_SnX[self.which_S] for values_SnX in parts.each(name))
                shape = (len(self.which_S), num_documents, len(class_names(list(self.config.concepts))))
                arrays[name] = store.Blocks(shape, 1, by_set)
            elif name in SCHEMA:
                arrays[name] = parts.joined(name)
        number_S = [len(one.neurons_n2) for one in self.sets]
        number_C = [len(plan.manifest.names) for plan in self.corpora]
        arrays |= {
            "document_name": np.concatenate([stored_names(plan.manifest) for plan in self.corpora]),
            "document_corpus": np.repeat(np.arange(len(self.corpora)), number_C),
            "mask_set": np.repeat(np.arange(len(self.sets)), number_S),
            "mask_neuron": np.concatenate([one.neurons_n2 for one in self.sets]),
        }
        return arrays, {
            "corpora": [plan.name for plan in self.corpora],
            "sets": [one.to_json(self.facts.num_layers) for one in self.sets],
            "draws": self.made.draws,
            "not_drawn": {kind: dict(reasons) for kind, reasons in self.made.not_drawn.items()},
            "concepts": list(self.config.concepts),
            "classes": class_names(list(self.config.concepts)),
            "used_documents": [[one.corpus, one.name] for one in self.used],
            "forced": self.evaluation.force,
            "described": dict(self.evaluation.described),
        }


def _make_losses(
    evaluation: Evaluation, facts: ModelFacts, listed: list[CorpusPlan], where: Where, max_unit_bytes: int
) -> _Losses:
    made = evaluation.make_sets(facts)
    used = find_used(listed, evaluation.choosers)
    if not evaluation.force:
        refuse_or_leave_out(listed, used, evaluation.choosers, evaluation.leave_out_used)
    if used:
        kept = "evaluated on all the same" if evaluation.force else "left out"
        where.progress.note(
            f"{len(used)} documents chose the neurons and are {kept}: {used[0].corpus}: {used[0].name} …"
        )
    distinct = {one.neurons_n2.tobytes(): one.neurons_n2 for one in made.sets}
    keys = list(distinct)
    row_tokens = (store.store_attributes(where.store).get("config") or {}).get("row_tokens") or facts.row_tokens
    config = LossConfig(
        row_tokens=row_tokens,
        document_tokens=evaluation.document_tokens,
        token_budget=max(TOKEN_BUDGET[facts.device_type], row_tokens),
        how=evaluation.how,
        neurons=tuple(distinct.values()),
        concepts=evaluation.concepts,
        mean_LF=_means(where.store, [plan.name for plan in listed]) if evaluation.how == "mean" else {},
        left_out=frozenset() if evaluation.force else frozenset(one.sha256 for one in used),
    )
    which_S = [keys.index(one.neurons_n2.tobytes()) for one in made.sets]
    return _Losses(evaluation, max_unit_bytes, facts, listed, made, used, config, which_S)


def _means(path: Path, corpora: Sequence[str]) -> dict[str, np.ndarray]:
    """float64 [L, F] by corpus: the mean coefficient over it, or over all corpora of the store where it lacks this."""
    sums, tokens = {}, {}
    for name in store.committed_corpora(path):
        arrays = store.read_corpus(path, name, ["coefficient_sum", "tokens"])
        sums[name], tokens[name] = arrays["coefficient_sum"], int(arrays["tokens"].sum())
    if not sum(tokens.values()):
        raise InputError(f"--how mean: {path} has no corpus yet to take means from; run `neurotally profile` first")
    overall_LF = np.sum(list(sums.values()), axis=0) / sum(tokens.values())
    return {name: sums[name] / tokens[name] if tokens.get(name) else overall_LF for name in corpora}


def _digest(entries: Sequence[Sequence[Any]]) -> str:
    """SHA-256 over the parts of each entry; arrays by their bytes."""
    digest = hashlib.sha256()
    for entry in entries:
        for part in entry:
            digest.update(part.tobytes() if isinstance(part, np.ndarray) else f"{part}\0".encode())
    return digest.hexdigest()
