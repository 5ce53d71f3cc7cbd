"""What stands behind the keys of a store: its corpora's texts and tokens, looked up for the commands about keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from neurotally.analysis.keys.places import PlaceReader, Places, find_line
from neurotally.analysis.keys.trigger_lists import TriggerLists, read_triggers
from neurotally.jobs.plan import find_corpora, first_difference, list_corpus
from neurotally.profiler import store
from neurotally.profiler.corpus import Source, Status, parse_source
from neurotally.profiler.errors import InputError
from neurotally.profiler.texts import CorpusTexts, TokenText, corpus_texts, load_tokenizer, read_tokens

_SAME_CONFIG = ("layout", "row_tokens", "document_tokens", "window_lines", "triggers")


@dataclass(frozen=True)
class TextRequest:
    """Where the texts of a store are looked for, and with whose tokenizer."""

    store: Path
    corpora: Path | None = None
    """A folder of one subfolder a corpus."""
    sources: tuple[str, ...] = ()
    """NAME=SOURCE."""
    model: str | None = None
    """Where the tokenizer is, if not where the store says."""
    trust_remote_code: bool = False

    def tokenizer(self) -> Any:
        """The tokenizer of the store's model, verified."""
        return load_tokenizer(self.store, self.model, self.trust_remote_code)

    def texts(self, corpus: str) -> CorpusTexts:
        """The documents of one corpus."""
        return corpus_texts(self.store, corpus, self._source(corpus))

    def _source(self, corpus: str) -> Source | None:
        if self.corpora is None and not self.sources:
            return None
        text = find_corpora(self.corpora, self.sources).get(corpus)
        if text is None:
            return None
        attributes = store.corpus_attributes(self.store, corpus)
        if text.startswith("hf:"):
            return list_corpus(corpus, text, attributes.get("max_files"), self.store).source
        selector = attributes.get("selector")
        return parse_source(f"{text}::{selector}" if selector and "::" not in text else text)


def trigger_entries(
    texts: CorpusTexts, triggers: TriggerLists, layer: int, neuron: int, top: int | None, tokenizer: Any, lines: int
) -> list[dict[str, Any]]:
    """A key's triggers, best first, each with its text; those without one have a `reason`."""
    at = np.flatnonzero(triggers.used_LFK[layer, neuron])[:top]
    document_N, position_N = (of[layer, neuron, at] for of in (triggers.document_LFK, triggers.position_LFK))
    found = {one.number: one for one in read_tokens(texts, np.unique(document_N).tolist(), tokenizer)}
    value_N = triggers.value_LFK[layer, neuron, at]
    entries = []
    for number, position, value in zip(document_N.tolist(), position_N.tolist(), value_N.tolist(), strict=True):
        entry: dict[str, Any] = {"corpus": texts.corpus, "document": texts.names[number], "line": None, "column": None,
                                 "position": position, "token": None, "coefficient": value, "text": None}  # fmt: skip
        document = found[number]
        if isinstance(document, TokenText):
            start, end = document.span_T2[position].tolist()
            line = find_line(document.text, start, end, lines)
            before = document.first_line - 1
            entry |= {
                "line": before + line.line, "column": line.column, "token": line.token, "text": line.window,
                "text_line": before + line.window_line, "text_start": line.start, "reason": None,
            }  # fmt: skip
        else:
            entry |= {"text_line": None, "text_start": None, "reason": document.reason}
        entries.append(entry)
    return entries


def read_places(
    texts: CorpusTexts, tokenizer: Any, reader: PlaceReader, document_P: np.ndarray, position_P: np.ndarray
) -> Places:
    """What stands at places (each once, ascending): every document is read and tokenised once."""
    numbers, starts = np.unique(document_P, return_index=True)
    position_by_document = dict(zip(numbers.tolist(), np.split(position_P, starts[1:]), strict=True))
    special_ids = tokenizer.all_special_ids
    documents = read_tokens(texts, numbers.tolist(), tokenizer)
    for document in tqdm(documents, texts.corpus, len(numbers), unit="documents", leave=False, disable=None):
        position = position_by_document[document.number]
        if isinstance(document, TokenText):
            reader.add(document.number, document.text, document.ids_T, document.span_T2, position, special_ids)
        else:
            name = texts.names[document.number]
            reader.add_missing(document.number, position, name, document.reason or "")
    return reader.places()


def sample_places(texts: CorpusTexts, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(document, position) of up to `number` tokens drawn from a corpus without replacement, ascending."""
    tokens_D = np.where(texts.status_D == Status.COUNTED, texts.tokens_D, 0).astype(np.int64)
    ends_D = np.cumsum(tokens_D)
    total = int(ends_D[-1])
    drawn = np.sort(np.random.default_rng(seed).choice(total, min(number, total), replace=False, shuffle=False))
    document = np.searchsorted(ends_D, drawn, side="right")
    return document, drawn - (ends_D[document] - tokens_D[document])


def read_nulls(path: Path, nulls: Sequence[Path], corpus: str) -> list[TriggerLists]:
    """The trigger lists of null stores over the very documents of the store's corpus; InputError if they differ."""
    return [_read_null(path, null, corpus) for null in nulls]


def model_name(path: Path) -> dict[str, Any] | None:
    """A store's model as documents name it; None for imported counts."""
    model = store.store_attributes(path).get("model")
    return None if model is None else {key: model.get(key) for key in ("id", "fingerprint")}


def _read_null(path: Path, null: Path, corpus: str) -> TriggerLists:
    ours, theirs = store.store_attributes(path), store.store_attributes(null)
    if corpus not in store.committed_corpora(null):
        raise InputError(f"--null {null} has no corpus {corpus!r}: profile the same corpora with it")
    if (ours.get("model") or {}).get("fingerprint") == (theirs.get("model") or {}).get("fingerprint"):
        raise InputError(f"--null {null} is of the same model; expected one made with --random-init SEED")
    shape = {key: (ours.get("model") or {}).get(key) for key in ("num_layers", "num_neurons")}
    config = {key: (ours.get("config") or {}).get(key) for key in _SAME_CONFIG}
    tokenizer = {"fingerprint": (ours.get("tokenizer") or {}).get("fingerprint")}
    parts = (("model", shape), ("config", config), ("tokenizer", tokenizer))
    differences = [first_difference(wanted, theirs.get(part) or {}) for part, wanted in parts]
    if difference := next(filter(None, differences), None):
        raise InputError(f"--null {null} isn't made like {path}: {difference}")
    our_hash, their_hash = (store.read_corpus(one, corpus, ["document_hash"])["document_hash"] for one in (path, null))
    if not np.array_equal(our_hash, their_hash):
        raise InputError(f"--null {null} was made of other documents of {corpus!r}: profile the same corpora with it")
    return read_triggers(null, corpus)
