"""The pass behind `neurotally agreement`: how often each layer's first token is the model's, over corpora.

    STORE/lens/NAME/   attrs: variants, head_bias, positions, seed, row_tokens, corpora, left_out; identity
      agreed, gold   int64 (corpus, context, variant, layer): positions at which the layer's first token is the model's,
                     or the token that comes next
      model_gold     int64 (corpus, context): at which the model's first token is the one that comes next
      positions, gold_positions    int64 (corpus, context): those that were read, and those with a next token
      corpus, context_kind, variant   string;   context_size   uint32

See `neurotally.profiler.agreement`. Layers are counted from 0, after the first block. Every token of a document is a
position of the context `document`, special tokens too; one longer than a row goes on in a row that starts afresh.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.jobs.passes.run import PassRequest, PassResult, Plan, run_pass
from neurotally.jobs.plan import CorpusPlan, find_corpora, list_corpus, stored_names
from neurotally.jobs.progress import Progress
from neurotally.jobs.worker import TOKEN_BUDGET, Task
from neurotally.profiler import store
from neurotally.profiler.agreement import AgreementCounts, Context, Place, choose_places, read_first_tokens
from neurotally.profiler.batches import lay_out
from neurotally.profiler.corpus import read_documents
from neurotally.profiler.documents import Status
from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.lens import Lens
from neurotally.profiler.memory import halving
from neurotally.profiler.model import LoadedModel, ModelFacts
from neurotally.profiler.texts import check_spans, universal_newlines
from neurotally.profiler.tokenise import final_status, tokenise

_UNIT_BYTES = 2**18
_GROUPS = 10
_LISTED_SKIPS = 20
_COUNT_FILL = -1
_BY_LAYER, _BY_CONTEXT = ("corpus", "context", "variant", "layer"), ("corpus", "context")
SCHEMA: Mapping[str, store.ArraySpec] = {
    "agreed": store.ArraySpec("int64", _BY_LAYER, _COUNT_FILL),
    "gold": store.ArraySpec("int64", _BY_LAYER, _COUNT_FILL),
    "model_gold": store.ArraySpec("int64", _BY_CONTEXT, _COUNT_FILL),
    "positions": store.ArraySpec("int64", _BY_CONTEXT, _COUNT_FILL),
    "gold_positions": store.ArraySpec("int64", _BY_CONTEXT, _COUNT_FILL),
    "corpus": store.ArraySpec("string", ("corpus",), ""),
    "variant": store.ArraySpec("string", ("variant",), ""),
    "context_kind": store.ArraySpec("string", ("context",), ""),
    "context_size": store.ArraySpec("uint32", ("context",), 2**32 - 1),
}


@dataclass(frozen=True)
class AgreementRequest:
    """What `neurotally agreement` was asked for."""

    run: PassRequest
    corpora: Path | None
    corpus: tuple[str, ...]
    """NAME=SOURCE."""
    variants: Sequence[str]
    token_sizes: Sequence[int]
    line_sizes: Sequence[int]
    positions: int
    """Drawn in each document, for truncated inputs."""
    max_files: int | None = None
    document_tokens: int | None = None
    """Only the first so many tokens of each document are read; None: all."""
    head_bias: bool = False
    seed: int = 0


@dataclass(frozen=True)
class AgreementJob:
    """The config of the pass."""

    contexts: tuple[Context, ...]
    """The first is the whole document."""
    variants: tuple[str, ...]
    head_bias: bool
    positions: int
    seed: int
    row_tokens: int
    context_tokens: int
    """Truncated inputs have no more: lines can be of any length."""
    token_budget: int
    document_tokens: int | None = None

    def bind(self, model: LoadedModel) -> "AgreementWorker":
        """The pass on a loaded model."""
        return AgreementWorker(model, self)


@dataclass(frozen=True)
class PreparedDocuments:
    """A unit's documents, read and tokenised, and the truncated inputs cut from them. n documents."""

    task: Task
    ids: list[list[int]]
    """Of those that have a token."""
    places: list[list[Place]]
    status_n: np.ndarray


class AgreementWorker:
    """The pass on a loaded model: pure functions of (config, task)."""

    def __init__(self, model: LoadedModel, job: AgreementJob):
        self._model = model
        self._job = job
        self._lens = Lens(model)
        check_spans(model.tokenizer, model.facts.id)
        if not self._lens.reads_raw and any(variant.endswith("-raw") for variant in job.variants):
            raise UnsupportedModelError(
                f"{model.facts.id}: its output embedding is narrower than its layers, so raw vectors can't be read; "
                "use --variants ffn-norm,residual-norm"
            )

    def prepare(self, task: Task) -> PreparedDocuments:
        """Read, tokenise, choose positions."""
        documents = list(read_documents(task.source, task.names, task.sizes, task.offset))
        texts = [document.text for document in documents]
        found = tokenise(self._model.tokenizer, texts, self._job.document_tokens, with_spans=True)
        status, ids, places = [], [], []
        for document, (ids_T, span_T2) in zip(documents, found, strict=True):
            status.append(final_status(document, ids_T))
            if document.text is not None and ids_T:
                ids.append(ids_T)
                places.append(self._places(document.text, ids_T, span_T2, document.sha256))
        return PreparedDocuments(task, ids, places, np.array(status, np.uint8))

    def compute(self, prepared: PreparedDocuments, hint: np.ndarray | None = None) -> PassResult:
        """Run the model over whole documents and over the truncated inputs."""
        start = time.perf_counter()
        (counts, tokens), restarts = halving(
            self._job.token_budget, lambda budget: self._count(prepared, budget), "a single row doesn't fit in memory"
        )
        arrays = {
            "agreed": counts.agreed_CAL,
            "gold": counts.gold_CAL,
            "model_gold": counts.model_gold_C,
            "positions": counts.positions_C,
            "gold_positions": counts.gold_positions_C,
            "status": prepared.status_n,
        }
        return PassResult(prepared.task.key, arrays, tokens, time.perf_counter() - start, restarts)

    def _places(self, text: str, ids: list[int], span_T2: np.ndarray, sha256: bytes) -> list[Place]:
        first = next((at for at, token in enumerate(ids) if token not in self._model.special_ids), len(ids))
        end = len(ids)
        while end > first and ids[end - 1] in self._model.special_ids:
            end -= 1
        text, span_T2 = universal_newlines(text, span_T2)
        breaks = np.flatnonzero(np.frombuffer(text.encode("utf-32-le"), np.uint32) == ord("\n"))
        # A token that trims to nothing may begin before the one in front of it.
        begin_T = np.maximum.accumulate(span_T2[:, 0])
        line_T = np.searchsorted(breaks, begin_T)
        key = (self._job.seed, int.from_bytes(sha256[:8], "big"))
        job = self._job
        return list(choose_places(end, first, line_T, job.contexts, job.positions, job.context_tokens, key))

    def _count(self, prepared: PreparedDocuments, budget: int) -> tuple[AgreementCounts, int]:
        job, lens = self._job, self._lens
        documents = prepared.ids
        cut = [(document, place) for document, places in enumerate(prepared.places) for place in places]
        rows = [*documents, *(documents[document][place.first : place.end] for document, place in cut)]
        total = sum(map(len, documents))
        lengths = [place.end - place.first for _, place in cut]
        # Of each token of the rows: its context, the token that comes next (-1: none), and whether it is read.
        context_T = np.concatenate([np.zeros(total, np.int64), np.repeat([place.context for _, place in cut], lengths)
                                    .astype(np.int64)]) if cut else np.zeros(total, np.int64)  # fmt: skip
        gold_T = np.full(len(context_T), -1, np.int64)
        gold_T[:total] = [token for ids in documents for token in _next_in_row(ids, job.row_tokens)]
        at_T = np.arange(len(context_T)) < total
        last = total + np.cumsum(np.array(lengths, np.int64)) - 1
        at_T[last] = True
        gold_T[last] = [documents[document][place.end] for document, place in cut]
        counts = AgreementCounts.zeros(len(job.contexts), len(job.variants), self._model.facts.num_layers)
        for first, end, row_tokens in (
            (0, len(documents), job.row_tokens),
            (len(documents), len(rows), job.context_tokens),
        ):
            offset = total if first else 0
            laid_out = lay_out(list(enumerate(rows[first:end])), self._model.special_ids, "documents", row_tokens)
            inside = slice(offset, offset + len(laid_out.ids_N))
            for found in lens.rectangles(laid_out, at_T[inside], budget):
                vectors = lens.vectors(found.ids_BT, found.at_BT, ffn=any("ffn" in variant for variant in job.variants))
                read = read_first_tokens(lens, vectors, job.variants, job.head_bias)
                counts.add(read, context_T[inside][found.token_n], gold_T[inside][found.token_n])
        return counts, len(context_T)


def agreement(request: AgreementRequest, progress: Progress) -> dict[str, Any]:
    """Bring the store to hold the layer agreement asked for; returns the group's attributes."""
    plans = [
        list_corpus(name, source, request.max_files, request.run.store)
        for name, source in find_corpora(request.corpora, request.corpus).items()
    ]

    def make_plan(facts: ModelFacts, _path: Path) -> Plan:
        return _plan(request, facts, plans, progress)

    return run_pass(request.run, make_plan, progress)


def _next_in_row(ids: Sequence[int], row_tokens: int) -> list[int]:
    """The token that comes next in the same row; -1 at a row's end."""
    return [-1 if at == len(ids) or at % row_tokens == 0 else ids[at] for at in range(1, len(ids) + 1)]


def _plan(request: AgreementRequest, facts: ModelFacts, plans: Sequence[CorpusPlan], progress: Progress) -> Plan:
    sizes = [Context("tokens", size) for size in sorted(set(request.token_sizes))]
    fitting = [context for context in sizes if context.size <= facts.max_row_tokens]
    left_out = [context.label for context in sizes if context not in fitting]
    if left_out:
        progress.note(f"warning: left out: contexts of {', '.join(left_out)}: the model's is {facts.max_row_tokens}")
    lines = [Context("lines", size) for size in sorted(set(request.line_sizes))]
    job = AgreementJob(
        contexts=(Context("document"), *fitting, *lines),
        variants=tuple(request.variants),
        head_bias=request.head_bias,
        positions=request.positions,
        seed=request.seed,
        row_tokens=facts.row_tokens,
        context_tokens=max([facts.row_tokens, *(context.size for context in fitting)]),
        token_budget=TOKEN_BUDGET[facts.device_type],
        document_tokens=request.document_tokens,
    )
    settings = {
        "variants": list(job.variants),
        "head_bias": job.head_bias,
        "positions": job.positions,
        "seed": job.seed,
        "row_tokens": job.row_tokens,
        "context_tokens": job.context_tokens,
    }
    identity = {
        **settings,
        "attention": facts.attention,
        "contexts": [context.label for context in job.contexts],
        "token_budget": job.token_budget,
        "document_tokens": job.document_tokens,
        "corpora": {plan.name: plan.identity for plan in plans},
    }
    tasks = [plan.task(unit) for plan in plans for unit in plan.units(_UNIT_BYTES, _GROUPS)]

    def assemble(parts: list[dict[str, np.ndarray]]) -> tuple[store.Arrays, dict[str, Any]]:
        names = ("agreed", "gold", "model_gold", "positions", "gold_positions")
        of = {plan.name: [part for task, part in zip(tasks, parts, strict=True) if task.corpus == plan.name]
              for plan in plans}  # fmt: skip
        arrays = {name: np.stack([sum(part[name] for part in some) for some in of.values()]) for name in names}
        if not arrays["positions"].any():
            raise InputError("no document of any corpus has a token")
        arrays["corpus"] = np.array(list(of), object)
        arrays["variant"] = np.array(job.variants, object)
        arrays["context_kind"] = np.array([context.kind for context in job.contexts], object)
        arrays["context_size"] = np.array([context.size for context in job.contexts], np.uint32)
        described = {plan.name: _describe(plan, of[plan.name]) for plan in plans}
        return arrays, {**settings, "corpora": described, "left_out": left_out}

    return Plan(job, tasks, identity, assemble, SCHEMA, "unit")


def _describe(plan: CorpusPlan, parts: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Documents of a corpus, and those that were skipped."""
    status = np.concatenate([part["status"] for part in parts])
    skipped = np.flatnonzero(status != Status.COUNTED).tolist()
    return {
        "documents": len(status),
        "skipped": {
            Status(code).name.lower(): int((status == code).sum()) for code in np.unique(status[skipped]).tolist()
        },
        "skipped_documents": stored_names(plan.manifest)[skipped[:_LISTED_SKIPS]].tolist(),
    }
