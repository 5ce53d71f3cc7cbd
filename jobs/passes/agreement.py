"""The pass behind `neurotally agreement`: how often each layer's top-1 prediction is the model's.

    STORE/lens/NAME/   attrs: variants, head_bias, positions, seed, row_tokens, corpora, left_out; identity
      agreed, gold   int64 (corpus, context, variant, layer): positions at which the layer's top-1 prediction is the
                     model's, or the token that comes next
      model_gold     int64 (corpus, context): at which the model's top-1 prediction is the token that comes next
      positions, gold_positions    int64 (corpus, context): those that were read, and those with a next token
      corpus, context_kind, variant   string;   context_size   uint32

See `neurotally.profiler.passes.agreement`. Layers are counted from 0, after the first block. Every token of a document
is a position of the context `document`, special tokens too; one longer than a row goes on in a row that starts afresh.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from neurotally.jobs.corpora import ListedCorpus, skipped_by_reason
from neurotally.jobs.reducers.parts import KeptParts, Part, Parts
from neurotally.jobs.reducers.reducer import Plan
from neurotally.jobs.run import Pass, Setup, Texts, model_identity, run_pass
from neurotally.profiler import store
from neurotally.profiler.corpus.batches import lay_out
from neurotally.profiler.corpus.documents import Status
from neurotally.profiler.corpus.sources import read_documents
from neurotally.profiler.corpus.texts import check_spans, universal_newlines
from neurotally.profiler.corpus.tokenise import final_status, tokenise
from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.load import LoadedModel, ModelFacts
from neurotally.profiler.passes.agreement import AgreementCounts, Context, Place, choose_places, read_top1
from neurotally.profiler.passes.lens import Lens
from neurotally.profiler.passes.memory import halving
from neurotally.profiler.passes.worker import TOKEN_BUDGET, Task

_GROUPS = 10
_LISTED_SKIPS = 20
_READ_SETTINGS = ("variants", "head_bias", "positions", "seed", "row_tokens", "context_tokens")
"""Settings that readers want to know."""
_BY_LAYER_NAMES, _BY_CONTEXT_NAMES = ("agreed", "gold"), ("model_gold", "positions", "gold_positions")
_BY_LAYER, _BY_CONTEXT = ("corpus", "context", "variant", "layer"), ("corpus", "context")
SCHEMA: Mapping[str, store.ArraySpec] = {
    **{name: store.ArraySpec("int64", _BY_LAYER, -1) for name in _BY_LAYER_NAMES},
    **{name: store.ArraySpec("int64", _BY_CONTEXT, -1) for name in _BY_CONTEXT_NAMES},
    "corpus": store.ArraySpec("string", ("corpus",), ""),
    "variant": store.ArraySpec("string", ("variant",), ""),
    "context_kind": store.ArraySpec("string", ("context",), ""),
    "context_size": store.ArraySpec("uint32", ("context",), 2**32 - 1),
}


@dataclass(frozen=True)
class AgreementConfig:
    """What decides the result of a unit, beside the model."""

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
    document_tokens: int | None


class CutDocuments(NamedTuple):
    """A unit's documents, read and tokenised, and the truncated inputs cut from them. n documents."""

    ids: list[list[int]]
    """Of those that have a token."""
    places: list[list[Place]]
    status_n: np.ndarray


class ReadRows(NamedTuple):
    """What the model is run over, and of each of its T tokens, one input after the other, what is asked of it."""

    ids: list[list[int]]
    row_tokens: int
    context_T: np.ndarray
    """int64."""
    gold_T: np.ndarray
    """int64: the token that comes next; -1: none."""
    at_T: np.ndarray
    """bool: whether it is read."""


class AgreementWorker:
    """The pass on a loaded model."""

    def __init__(self, model: LoadedModel, config: AgreementConfig):
        self._model = model
        self._config = config
        self._lens = Lens(model)
        check_spans(model.tokenizer, model.facts.id)
        if not self._lens.reads_raw and any(variant.endswith("-raw") for variant in config.variants):
            raise UnsupportedModelError(
                f"{model.facts.id}: its output embedding is narrower than its layers, so raw vectors can't be read; "
                "use --variants ffn-norm,residual-norm"
            )

        has_one_each = [point.layer for point in model.hook_points] == list(range(model.num_layers))
        if not has_one_each and any(variant.startswith("ffn") for variant in config.variants):
            raise UnsupportedModelError(
                f"{model.facts.id}: its layers have none or several feed-forward networks, whose sum isn't read; "
                "use --variants residual-raw,residual-norm"
            )

    def prepare(self, task: Task) -> CutDocuments:
        """Read, tokenise, choose positions."""
        documents = list(read_documents(task.source, task.names, task.sizes, task.offset))
        texts = [document.text for document in documents]
        found = tokenise(self._model.tokenizer, texts, self._config.document_tokens, with_spans=True)
        status, ids, places = [], [], []
        for document, (ids_T, span_T2) in zip(documents, found, strict=True):
            status.append(final_status(document, ids_T))
            if document.text is not None and ids_T:
                ids.append(ids_T)
                places.append(self._places(document.text, ids_T, span_T2, document.sha256))
        return CutDocuments(ids, places, np.array(status, np.uint8))

    def compute(self, task: Task, prepared: CutDocuments) -> Part:
        """Run the model over whole documents and over the truncated inputs."""
        (counts, tokens), restarts = halving(self._config.token_budget, lambda budget: self._count(prepared, budget))
        arrays = {
            "agreed": counts.agreed_CAL,
            "gold": counts.gold_CAL,
            "model_gold": counts.model_gold_C,
            "positions": counts.positions_C,
            "gold_positions": counts.gold_positions_C,
            "status": prepared.status_n,
        }
        return Part(arrays, tokens, restarts)

    def _places(self, text: str, ids: list[int], span_T2: np.ndarray, sha256: bytes) -> list[Place]:
        ordinary = [at for at, token in enumerate(ids) if token not in self._model.special_ids]
        first, end = (ordinary[0], ordinary[-1] + 1) if ordinary else (len(ids), len(ids))
        text, span_T2 = universal_newlines(text, span_T2)
        breaks = np.flatnonzero(np.frombuffer(text.encode("utf-32-le"), np.uint32) == ord("\n"))
        # A token that trims to nothing may begin before the one in front of it.
        begin_T = np.maximum.accumulate(span_T2[:, 0])
        line_T = np.searchsorted(breaks, begin_T)
        key = (self._config.seed, int.from_bytes(sha256[:8], "big"))
        config = self._config
        return list(choose_places(end, first, line_T, config.contexts, config.positions, config.context_tokens, key))

    def _count(self, prepared: CutDocuments, budget: int) -> tuple[AgreementCounts, int]:
        """The counts, and how many tokens the model read."""
        config, lens = self._config, self._lens
        reads_ffn = any("ffn" in variant for variant in config.variants)
        counts = AgreementCounts.zeros(len(config.contexts), len(config.variants), self._model.facts.num_layers)
        tokens = 0
        for rows in (self._whole(prepared), self._truncated(prepared)):
            laid_out = lay_out(list(enumerate(rows.ids)), self._model.special_ids, "documents", rows.row_tokens)
            for found in lens.batches(laid_out, rows.at_T, budget):
                vectors = lens.vectors(found.ids_BT, found.at_BT, ffn=reads_ffn)
                read = read_top1(lens, vectors, config.variants, config.head_bias)
                counts.add(*read, rows.context_T[found.token_n], rows.gold_T[found.token_n])
            tokens += len(rows.at_T)
        return counts, tokens

    def _whole(self, prepared: CutDocuments) -> ReadRows:
        """Whole documents, read at every token."""
        row_tokens = self._config.row_tokens
        gold_T = np.array([token for ids in prepared.ids for token in _next_in_row(ids, row_tokens)], np.int64)
        return ReadRows(prepared.ids, row_tokens, np.zeros(len(gold_T), np.int64), gold_T, np.ones(len(gold_T), bool))

    def _truncated(self, prepared: CutDocuments) -> ReadRows:
        """Truncated inputs, read at their last token."""
        cut = [(ids, place) for ids, places in zip(prepared.ids, prepared.places, strict=True) for place in places]
        lengths = np.array([place.end - place.first for _, place in cut], np.int64)
        context_T = np.repeat(np.array([place.context for _, place in cut], np.int64), lengths)
        at_T, gold_T = np.zeros(len(context_T), bool), np.full(len(context_T), -1, np.int64)
        last = np.cumsum(lengths) - 1
        at_T[last] = True
        gold_T[last] = [ids[place.end] for ids, place in cut]
        rows = [ids[place.first : place.end] for ids, place in cut]
        return ReadRows(rows, self._config.context_tokens, context_T, gold_T, at_T)


def count_agreement(
    setup: Setup, group: str, texts: Texts, variants: Sequence[str], context_sizes: Sequence[int],
    lines: Sequence[int], max_unit_bytes: int, **settings: Any,
) -> None:  # fmt: skip
    """Bring the store to hold the group. `settings`: the other fields of `AgreementConfig` that no model decides."""

    def make_pass(facts: ModelFacts, listed: list[ListedCorpus]) -> Pass:
        sizes = [Context("tokens", size) for size in sorted(set(context_sizes))]
        fitting = [context for context in sizes if context.size <= facts.max_row_tokens]
        left_out = [context.label for context in sizes if context not in fitting]
        if left_out:
            setup.progress.note(
                f"warning: left out: contexts of {', '.join(left_out)}: the model's is {facts.max_row_tokens}"
            )
        config = AgreementConfig(
            contexts=(Context("document"), *fitting, *(Context("lines", size) for size in sorted(set(lines)))),
            variants=tuple(variants),
            row_tokens=facts.row_tokens,
            context_tokens=max([facts.row_tokens, *(context.size for context in fitting)]),
            token_budget=TOKEN_BUDGET[facts.device_type],
            **settings,
        )
        tasks = [corpus.task(unit) for corpus in listed for unit in corpus.units(max_unit_bytes, _GROUPS)]
        identity = {
            **model_identity(facts),
            **asdict(config),
            "variants": list(config.variants),
            "contexts": [context.label for context in config.contexts],
            "attention": facts.attention,
            "corpora": {corpus.name: corpus.identity for corpus in listed},
        }
        told = {name: identity[name] for name in _READ_SETTINGS}
        assemble = partial(_assemble, config, listed, tasks, {**told, "left_out": left_out})
        keep = partial(Parts, assemble=assemble, schema=SCHEMA)
        return Pass(partial(AgreementWorker, config=config), [Plan(group, tasks, identity, keep)])

    run_pass(setup, make_pass, texts)


def _assemble(
    config: AgreementConfig, corpora: Sequence[ListedCorpus], tasks: Sequence[Task], told: Mapping[str, Any],
    parts: KeptParts,
) -> tuple[dict[str, np.ndarray | store.Blocks], dict[str, Any]]:  # fmt: skip
    """The group's arrays and attributes."""
    summed = {name: _summed(parts.each(name), tasks) for name in (*_BY_LAYER_NAMES, *_BY_CONTEXT_NAMES)}
    if not any(positions.any() for positions in summed["positions"]):
        raise InputError("no document of any corpus has a token")
    arrays: dict[str, np.ndarray | store.Blocks] = {
        **{name: np.stack(values_C) for name, values_C in summed.items()},
        "corpus": np.array([corpus.name for corpus in corpora], object),
        "variant": np.array(config.variants, object),
        "context_kind": np.array([context.kind for context in config.contexts], object),
        "context_size": np.array([context.size for context in config.contexts], np.uint32),
    }
    end_C = np.cumsum([len(corpus.manifest.names) for corpus in corpora])
    by_corpus = zip(corpora, np.split(parts.joined("status"), end_C[:-1]), strict=True)
    return arrays, {**told, "corpora": {corpus.name: _describe(corpus, status_D) for corpus, status_D in by_corpus}}


def _summed(values: Iterable[np.ndarray], tasks: Sequence[Task]) -> list[np.ndarray]:
    """The sum of each corpus's values, in the order of the corpora."""
    sums: dict[str, np.ndarray] = {}
    for task, value in zip(tasks, values, strict=True):
        sums[task.corpus] = sums.get(task.corpus, 0) + value
    return list(sums.values())


def _next_in_row(ids: Sequence[int], row_tokens: int) -> list[int]:
    """The token that comes next in the same row; -1 at a row's end."""
    return [-1 if at == len(ids) or at % row_tokens == 0 else ids[at] for at in range(1, len(ids) + 1)]


def _describe(corpus: ListedCorpus, status_D: np.ndarray) -> dict[str, Any]:
    """Documents of a corpus, and those that were skipped."""
    return {
        "documents": len(status_D),
        "skipped": skipped_by_reason(status_D),
        "skipped_documents": corpus.stored_names()[status_D != Status.COUNTED][:_LISTED_SKIPS].tolist(),
    }
