"""The neuron pass over one unit: a pure function from (config, unit) to the result of the unit.

The same in a plain loop, a process or a Ray actor. Which worker ran a unit, when, and after how many crashes
changes no bit of what the units add up to. A worker leaves out triggers of which it knows that they can't enter the
corpus's lists: from its own earlier units, and from what it hears of all that are in.
"""

import platform
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from neurotally.profiler.corpus.batches import TokenRows, lay_out
from neurotally.profiler.corpus.documents import Source
from neurotally.profiler.corpus.sources import read_documents
from neurotally.profiler.corpus.tokenise import final_status, tokenise
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.capture import NeuronReader
from neurotally.profiler.model.load import LoadedModel
from neurotally.profiler.model.neurons import NeuronRecorder
from neurotally.profiler.neuron_sums import UnitNeurons
from neurotally.profiler.passes.memory import halving

TOKEN_BUDGET = {"cpu": 4096, "cuda": 32768}
"""Cells of a padded batch, by type of device."""
KERNEL_HINTS = {
    "compiled": "install a C++ compiler (g++), or set CXX",
    "triton": "install triton, on a GPU that it compiles for",
    "plain": "set CXX=false, or uninstall triton, to compute without them",
}
"""What to do where the kernels named are needed."""


_CORPORA_AT_ONCE = 2
"""Units of the next corpus begin while the last ones of this are computed."""


@dataclass(frozen=True)
class PassConfig:
    """What decides the result of a unit, beside the model. Part of a store's identity."""

    layout: str
    row_tokens: int
    document_tokens: int | None
    """Keep the first so many tokens of each document; None keeps all."""
    token_budget: int
    """Cells of a padded batch."""
    max_unit_bytes: int
    groups: int
    triggers: int
    window_lines: int | None = None
    """Documents are windows of so many lines of a file; None: whole files."""
    keep_texts: bool = False
    """Whether the store holds the texts too."""
    decoder_reads: str | None = None
    """Of an encoder-decoder: see `TeacherForcing`."""
    kernels: str = field(kw_only=True)
    """See `kernels.tally.kernels_for`; stores made before don't say."""

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return asdict(self) | {"keep_texts": self.keep_texts or None}  # stores made before have no such key


@dataclass(frozen=True)
class Task:
    """One unit of one corpus, with all that is needed to read it."""

    corpus: str
    index: int
    source: Source
    first: int
    """Number of its first document in the corpus."""
    names: list[str]
    sizes: list[int]
    offset: int
    """Sum of the sizes of all documents before."""
    repeats: list[int] = field(default_factory=list)
    """Numbers of documents that trigger nothing, since an earlier one is the same."""

    @property
    def size(self) -> int:
        """Bytes of its documents."""
        return sum(self.sizes)

    @property
    def key(self) -> str:
        """What tells it from the other units of a run."""
        return f"{self.corpus}/{self.index}"

    def __str__(self) -> str:
        return f"unit {self.index} of corpus {self.corpus!r} ({self.names[0]} … {self.names[-1]})"


@dataclass(frozen=True)
class PreparedUnit:
    """A unit's documents, read and tokenised. n documents."""

    rows: TokenRows
    status_n: np.ndarray
    sha256_n32: np.ndarray
    document_tokens_n: np.ndarray


@dataclass(frozen=True)
class UnitResult:
    """What a unit leaves behind."""

    neurons: UnitNeurons
    tokens: int
    special_tokens: int
    status_n: np.ndarray
    sha256_n32: np.ndarray
    document_tokens_n: np.ndarray
    restarts: int
    """How often the token budget was halved, since the device ran out of memory."""


class KnownThresholds:
    """Of the triggers of each corpus, the highest threshold known so far, float32 [L · F]: see `LayerTriggers`.

    Only of the corpora heard of last; from several threads.
    """

    def __init__(self) -> None:
        self._by_corpus: dict[str, np.ndarray] = {}

    def of(self, corpus: str) -> np.ndarray | None:
        """None where none is known."""
        return self._by_corpus.get(corpus)

    def hear(self, corpus: str, threshold_F: np.ndarray) -> None:
        """Take over what is higher than all before."""
        known_F = self._by_corpus.pop(corpus, np.float32(0))
        self._by_corpus[corpus] = np.maximum(known_F, threshold_F)
        for other in list(self._by_corpus)[:-_CORPORA_AT_ONCE]:
            self._by_corpus.pop(other, None)


class Worker:
    """A loaded model and the config of the pass. InputError where it would compute with other kernels than the rest."""

    def __init__(self, model: LoadedModel, config: PassConfig):
        if model.facts.kernels != config.kernels:
            here = f"a worker on {platform.node()} computes with the {model.facts.kernels} kernels"
            raise InputError(f"{here}, the others with the {config.kernels} ones; {KERNEL_HINTS[config.kernels]}")
        self.model = model
        self.config = config
        self._thresholds = KnownThresholds()
        self.halvings = 0
        """Of the token budget, before the first unit."""
        if model.input_device.type == "cuda":
            self.fit_token_budget()

    def fit_token_budget(self) -> None:
        """Halve the token budget until a full batch of the longest rows fits in memory.

        So not every unit runs out of memory, and devices that are alike compute units alike. It stays whole where not
        even one such row fits: units may have shorter ones.
        """
        length = self.config.row_tokens

        def one_batch(budget: int) -> None:
            documents = [(number, [0] * length) for number in range(max(1, budget // length))]
            rows = lay_out(documents, frozenset(), "documents", length)
            self._neurons(rows, budget, None)

        with suppress(MemoryError):
            _, self.halvings = halving(self.config.token_budget, one_batch)

    def hear(self, corpus: str, threshold_LF: np.ndarray) -> None:
        """Take over a threshold of the triggers of a corpus. May be called while a unit is computed."""
        self._thresholds.hear(corpus, threshold_LF.ravel())

    def prepare(self, task: Task) -> PreparedUnit:
        """Read and tokenise a unit. Safe to run in a thread beside `compute`."""
        documents = list(read_documents(task.source, task.names, task.sizes, task.offset))
        texts = [document.text for document in documents]
        ids_by_document = [one.ids_T for one in tokenise(self.model.tokenizer, texts, self.config.document_tokens)]
        status_n = [final_status(document, ids) for document, ids in zip(documents, ids_by_document, strict=True)]
        numbered = [(task.first + number, ids) for number, ids in enumerate(ids_by_document) if ids]
        rows = lay_out(numbered, self.model.special_ids, self.config.layout, self.config.row_tokens, task.repeats)
        return PreparedUnit(
            rows=rows,
            status_n=np.array(status_n, np.uint8),
            sha256_n32=np.frombuffer(b"".join(document.sha256 for document in documents), np.uint8).reshape(-1, 32),
            document_tokens_n=np.array([len(ids) for ids in ids_by_document], np.uint32),
        )

    def compute(self, task: Task, prepared: PreparedUnit) -> UnitResult:
        """Run the model over a prepared unit.

        Out of memory begins the unit again from nothing with half the token budget: sums are added layer by
        layer, so half a batch must never stay counted.
        """
        facts = self.model.facts
        known_F = self._thresholds.of(task.corpus)
        known_LF = None if known_F is None else known_F.reshape(facts.num_layers, facts.num_neurons)

        failure = f"a single row of {self.config.row_tokens} tokens doesn't fit in memory; lower --row-tokens"
        neurons, restarts = halving(
            self.config.token_budget >> self.halvings,
            lambda budget: self._neurons(prepared.rows, budget, known_LF),
            failure,
        )
        if self.config.triggers:
            own_F = neurons.triggers.threshold(self.config.triggers)
            if (heard_F := self._thresholds.of(task.corpus)) is not known_F and heard_F is not None:
                # news of what others found meanwhile
                neurons = replace(neurons, triggers=neurons.triggers.not_below(heard_F))
            self._thresholds.hear(task.corpus, own_F)
        return UnitResult(
            neurons=neurons,
            tokens=len(prepared.rows.ids_N),
            special_tokens=int(np.isin(prepared.rows.ids_N, list(self.model.special_ids)).sum()),
            status_n=prepared.status_n,
            sha256_n32=prepared.sha256_n32,
            document_tokens_n=prepared.document_tokens_n,
            restarts=self.halvings + restarts,
        )

    def _neurons(self, rows: TokenRows, budget: int, threshold_LF: np.ndarray | None) -> UnitNeurons:
        return neurons_of(self.model, self.config, rows, budget, threshold_LF)


def neurons_of(
    model: LoadedModel, config: PassConfig, rows: TokenRows, token_budget: int, threshold_LF: np.ndarray | None
) -> UnitNeurons:
    """What a model's neurons do in some rows; `threshold_LF`: see `NeuronRecorder`."""
    recorder = NeuronRecorder(model, config.triggers, threshold_LF)
    forcing = model.facts.teacher_forcing(config.decoder_reads)
    NeuronReader(model, recorder).tally(model.batches(rows, token_budget, forcing))
    return recorder.result()
