"""What a worker does in the loss pass: every set of neurons switched off in turn over a unit.

A pure function of (config, unit), like `profiler.passes.worker`: the composition of batches depends on nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from re import Pattern

import numpy as np

from neurotally.jobs.reducers.parts import Part
from neurotally.profiler.corpus.batches import TeacherForcing, TokenRows, lay_out
from neurotally.profiler.corpus.sources import read_documents
from neurotally.profiler.corpus.texts import check_spans
from neurotally.profiler.corpus.token_classes import classify
from neurotally.profiler.corpus.tokenise import TokenIds, final_status, tokenise
from neurotally.profiler.model.interventions import switched_off
from neurotally.profiler.model.load import LoadedModel
from neurotally.profiler.model.shared_layers import SharedLayers
from neurotally.profiler.passes.loss import LossReader
from neurotally.profiler.passes.memory import halving
from neurotally.profiler.passes.worker import Task


@dataclass(frozen=True, eq=False)
class LossConfig:
    """What decides the losses of a unit, beside the model."""

    row_tokens: int
    document_tokens: int | None
    forcing: TeacherForcing | None
    """Of an encoder-decoder."""
    token_budget: int
    how: str
    neurons: tuple[np.ndarray, ...]
    """The distinct sets: int64 [n, 2]."""
    concepts: Mapping[str, Pattern[str]]
    mean_LF: Mapping[str, np.ndarray]
    """By corpus, for `mean`: what coefficients are replaced by."""
    left_out: frozenset[bytes]
    """SHA-256 of documents that aren't evaluated on."""


@dataclass(frozen=True, eq=False)
class ClassifiedTexts:
    """A unit's n documents, read and tokenised; N tokens, X classes."""

    rows: TokenRows
    start_n: np.ndarray
    """Where each document's tokens begin."""
    class_NX: np.ndarray
    """bool."""
    has_concept_nS: np.ndarray
    """bool."""
    status_n: np.ndarray
    sha256_n32: np.ndarray
    tokens_n: np.ndarray


class LossWorker:
    """A loaded model and the config of the pass."""

    def __init__(self, model: LoadedModel, config: LossConfig):
        self._model = model
        self._config = config
        self._reader = LossReader(model)
        if config.concepts:
            check_spans(model.tokenizer, model.facts.id)
        sets = [
            (min(neurons, default=len(model.blocks)), index, neurons)
            for index, neurons in enumerate(map(by_layer, config.neurons))
        ]
        self._sets = sorted(sets, key=itemgetter(0))
        """The first layer that each changes, its number, and its neurons by layer."""
        self._shared = SharedLayers(model)

    def prepare(self, task: Task) -> ClassifiedTexts:
        """Read and tokenise a unit, and tell its tokens' classes."""
        config = self._config
        documents = list(read_documents(task.source, task.names, task.sizes, task.offset))
        texts = [None if document.sha256 in config.left_out else document.text for document in documents]
        found = tokenise(self._model.tokenizer, texts, config.document_tokens, with_spans=bool(config.concepts))
        classes = [
            self._classes(text, tokens, name) for text, tokens, name in zip(texts, found, task.names, strict=True)
        ]
        class_NS2 = np.concatenate(classes)
        numbered = [(task.first + number, tokens.ids_T) for number, tokens in enumerate(found) if tokens.ids_T]
        tokens_n = np.array([len(tokens.ids_T) for tokens in found], np.int64)
        return ClassifiedTexts(
            rows=lay_out(numbered, self._model.special_ids, "documents", config.row_tokens),
            start_n=np.cumsum(tokens_n) - tokens_n,
            class_NX=np.c_[np.ones(len(class_NS2), bool), class_NS2.reshape(len(class_NS2), 2 * len(config.concepts))],
            has_concept_nS=np.array([class_TS2[:, :, 0].any(axis=0) for class_TS2 in classes], bool),
            status_n=np.array(
                [
                    document.status if text is None else final_status(document, tokens.ids_T)
                    for document, text, tokens in zip(documents, texts, found, strict=True)
                ],
                np.uint8,
            ),
            sha256_n32=np.frombuffer(b"".join(document.sha256 for document in documents), np.uint8).reshape(-1, 32),
            tokens_n=tokens_n,
        )

    def compute(self, task: Task, prepared: ClassifiedTexts) -> Part:
        """Run every set over a prepared unit."""
        sums, restarts = halving(self._config.token_budget, lambda budget: self._sums(task, prepared, budget))
        arrays = {
            **sums,
            "has_concept": prepared.has_concept_nS,
            "document_status": prepared.status_n,
            "document_hash": prepared.sha256_n32,
            "document_tokens": prepared.tokens_n,
        }
        return Part(arrays, len(self._sets) * len(prepared.rows.ids_N), restarts)

    def _sums(self, task: Task, prepared: ClassifiedTexts, token_budget: int) -> dict[str, np.ndarray]:
        """nats float64 [S, n, X], hits int64 [S, n, X], scored int64 [n, X], for the S sets."""
        num_sets, num_documents = len(self._sets), len(prepared.tokens_n)
        shape = (num_documents, prepared.class_NX.shape[1])
        nats_SnX, hits_SnX = np.zeros((num_sets, *shape)), np.zeros((num_sets, *shape), np.int64)
        scored_nX = np.zeros(shape, np.int64)
        how, mean_LF = self._config.how, self._config.mean_LF.get(task.corpus)
        for batch in self._model.batches(prepared.rows, token_budget, self._config.forcing):
            scored = batch.decoder or batch
            self._shared.forget()
            for first, index, neurons in self._sets:
                with switched_off(self._model, neurons, how, mean_LF), self._shared.unchanged_below(first):
                    losses = self._reader.read(batch)
                document_N = scored.document_BT[losses.row_N, losses.column_N] - task.first
                place_N = prepared.start_n[document_N] + scored.position_BT[losses.row_N, losses.column_N]
                sums = partial(_sums_by, document_N, prepared.class_NX[place_N], num_documents)
                nats_SnX[index] += sums(losses.nats_N)
                hits_SnX[index] += sums(losses.is_hit_N).astype(np.int64)
            scored_nX += sums(np.ones(len(losses.row_N))).astype(np.int64)
        return {"nats": nats_SnX, "hits": hits_SnX, "scored": scored_nX}

    def _classes(self, text: str | None, tokens: TokenIds, name: str) -> np.ndarray:
        """bool [T, S, 2]: the classes of the tokens of a document's text."""
        if text is None or not self._config.concepts:
            return np.zeros((len(tokens.ids_T), len(self._config.concepts), 2), bool)
        return classify(text, tokens.span_T2, self._config.concepts, name)


def _sums_by(document_N: np.ndarray, class_NX: np.ndarray, num_documents: int, value_N: np.ndarray) -> np.ndarray:
    """float64 [n, X]: summed by document and class."""
    return np.stack(
        [np.bincount(document_N[in_class_N], value_N[in_class_N], num_documents) for in_class_N in class_NX.T], axis=1
    )


def by_layer(neurons_n2: np.ndarray) -> dict[int, list[int]]:
    """Neuron numbers by layer."""
    layers: dict[int, list[int]] = {}
    for layer, neuron in neurons_n2.tolist():
        layers.setdefault(layer, []).append(neuron)
    return layers
