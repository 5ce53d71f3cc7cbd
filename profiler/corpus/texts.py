"""The texts behind a store: found again, verified, and cut into the very tokens that the model saw.

A store holds pointers: a trigger is (document, token position). Its text comes from, by preference, the texts kept
in the store (`profile --keep-texts`), a source that the caller names, or the source that the store remembers. The
text must have the SHA-256 that was noted when the model read it; one that has changed or gone is said so, and is
never taken for what it was. Which of the two is told only of a source that the caller names: a store that somebody
else made could name any path, and a report tell what lies there.

Here every line break is "\\n": Python's universal newlines, so a "\\r\\n" is one break and so is a lone "\\r", while
form feeds and Unicode's other separators are ordinary characters. Characters, lines and columns count that text,
lines and columns from 1; a tab is one character.
"""

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from neurotally.profiler import store
from neurotally.profiler.buckets import UnreachableError, is_url
from neurotally.profiler.corpus.documents import MAX_DOCUMENT_BYTES, Document, Source, Status, text_document
from neurotally.profiler.corpus.sources import existing, read_documents, source_at
from neurotally.profiler.corpus.tokenise import tokenise
from neurotally.profiler.corpus.windows import first_line_of
from neurotally.profiler.errors import InputError, first_line

KEPT = "document_text"
"""The array of kept texts: string (document), "" for documents that were skipped."""
_CHUNK_BYTES = 8 * 2**20
_BATCH_CHARACTERS = 2**20
_NOT_FOUND = "it isn't in the store, and gone or changed where the store says it was"
_REASONS = {
    Status.UNREADABLE: "gone, or can't be read",
    Status.CHANGED: "changed since it was profiled",
    Status.NOT_UTF8: "changed since it was profiled: it is not UTF-8 now",
    Status.EMPTY: "changed since it was profiled: it is empty now",
    Status.TOO_LARGE: f"larger than {MAX_DOCUMENT_BYTES // 2**20} MiB, which isn't read",
}


class Text(NamedTuple):
    """A document's text as it was profiled, or why it can't be had."""

    number: int
    """The document's number in its corpus."""
    text: str | None
    reason: str | None


class TokenText(NamedTuple):
    """A document's text with its tokens. T tokens."""

    number: int
    text: str
    """Line breaks are "\\n"."""
    ids_T: np.ndarray
    """int64."""
    span_T2: np.ndarray
    """int64: first character of each token and one past its last; tokens that share a character share its span."""
    first_line: int
    """The number of the text's first line in its file; 1 unless the document is a window of lines."""


@dataclass(frozen=True, eq=False)
class CorpusTexts:
    """The documents of one corpus of a store, and where to look for their texts."""

    store_path: Path
    corpus: str
    names: Sequence[str]
    sizes_D: np.ndarray
    sha256_D32: np.ndarray
    status_D: np.ndarray
    tokens_D: np.ndarray
    """uint32: tokens of each document."""
    window_lines: int | None
    """Documents are windows of so many lines of a file; None if they are whole."""
    document_tokens: int | None
    """Only so many tokens of each document were read."""
    source: Source | None
    """Where texts that the store doesn't hold are read from."""
    is_source_given: bool = True
    """Whether the caller named the source; else the store did."""

    def read(self, numbers: Sequence[int]) -> Iterator[Text]:
        """The texts of the documents `numbers` (ascending), each verified."""
        kept = self._kept_array
        documents = self._from_source(numbers) if kept is None else self._kept(kept, numbers)
        for number, document in zip(numbers, documents, strict=True):
            if document.text is None and kept is not None and self.source is not None:
                document = next(self._from_source([number]))
            yield self._verified(number, document)

    @cached_property
    def _kept_array(self) -> zarr.Array | None:
        # Nothing is kept yet in the group that `keep_texts` is filling.
        arrays = store.open_committed(self.store_path, f"corpora/{self.corpus}", [KEPT]) if self.corpus else {}
        return arrays.get(KEPT)

    def _kept(self, array: zarr.Array, numbers: Sequence[int]) -> Iterator[Document]:
        first, end, held = 0, 0, np.empty(0, object)
        for number in numbers:
            if not first <= number < end:
                first = number - number % array.chunks[0]
                end = first + array.chunks[0]
                held = store.read_slice(array, slice(first, end))
            text = str(held[number - first])
            yield text_document(text.encode()) if text else Document(None, Status.CHANGED)

    def _from_source(self, numbers: Sequence[int]) -> Iterator[Document]:
        source = self.source
        if source is None or not numbers:
            yield from (Document(None, Status.UNREADABLE) for _ in numbers)
        elif source.kind == "folder":
            yield from read_documents(source, self._names_of(source, numbers), self.sizes_D[numbers].tolist(), 0)
        else:  # records lie one behind the other
            first, end, wanted = numbers[0], numbers[-1] + 1, set(numbers)
            sizes, offset = self.sizes_D[first:end].tolist(), int(self.sizes_D[:first].sum())
            documents = read_documents(source, self.names[first:end], sizes, offset)
            records = itertools.chain(documents, itertools.repeat(Document(None, Status.CHANGED)))
            yield from (record for number, record in zip(range(first, end), records, strict=False) if number in wanted)

    def _names_of(self, source: Source, numbers: Sequence[int]) -> list[str]:
        """Names as the file system has them: a store spells the bytes of names that aren't UTF-8 as \\xff."""
        names = [self.names[number] for number in numbers]
        if is_url(source.path):
            return names
        return [_unescaped(name) if "\\x" in name and not Path(source.path, name).exists() else name for name in names]

    def _verified(self, number: int, document: Document) -> Text:
        if document.text is not None and document.sha256 == bytes(self.sha256_D32[number]):
            return Text(number, document.text, None)
        if not self.is_source_given:
            return Text(number, None, _NOT_FOUND)
        status = Status.CHANGED if document.text is not None else document.status
        return Text(number, None, _REASONS[status])


def corpus_texts(store_path: Path, corpus: str, source: Source | None = None) -> CorpusTexts:
    """The documents of a corpus. `source` goes before the one that the store remembers."""
    names = ["document_name", "document_bytes", "document_hash", "document_status", "document_tokens"]
    arrays = store.read_corpus(store_path, corpus, names)
    config = store.store_attributes(store_path).get("config") or {}
    window_lines = config.get("window_lines")
    found = source or remembered_source(store.corpus_attributes(store_path, corpus))
    return CorpusTexts(
        store_path=store_path,
        corpus=corpus,
        names=arrays["document_name"].tolist(),
        sizes_D=arrays["document_bytes"],
        sha256_D32=arrays["document_hash"],
        status_D=arrays["document_status"],
        tokens_D=arrays["document_tokens"],
        window_lines=window_lines,
        document_tokens=config.get("document_tokens"),
        source=None if found is None else replace(found, window_lines=window_lines),
        is_source_given=source is not None,
    )


def remembered_source(attributes: dict[str, Any]) -> Source | None:
    """The source that a corpus's attributes name, where it still lies there."""
    path = attributes.get("source_path")
    try:
        place = existing(path) if path else None
        return None if place is None else source_at(place, attributes.get("selector"))
    except UnreachableError:
        raise
    except (InputError, OSError, TypeError, ValueError, AttributeError):  # whatever an edited store says
        return None


def load_tokenizer(store_path: Path, model: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a store's model, from the hub or folder in its attributes, or from `model`.

    Raises InputError where it can't be loaded, isn't the one that the store was made with, or can't tell which
    characters a token is. Code comes from `model` alone, never from where a store says.
    """
    from neurotally.profiler.model.fingerprints import fingerprint_tokenizer
    from neurotally.profiler.model.load import split_revision

    attributes = store.store_attributes(store_path)
    theirs = attributes.get("model") or {}
    if model is None and not theirs.get("id"):
        raise InputError(f"{store_path} names no model, so its texts can't be tokenised; give --model")
    if model is None and trust_remote_code:
        raise InputError(
            f"--trust-remote-code needs --model: code isn't taken from {theirs['id']}, only because a store names it"
        )
    model_id, revision = split_revision(model) if model else (theirs["id"], theirs.get("revision"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_id, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # the libraries below raise their own kinds, of no common base
        raise InputError(f"can't load the tokenizer of {model_id}: {first_line(error)}; give --model") from error
    wanted = (attributes.get("tokenizer") or {}).get("fingerprint")
    if wanted and fingerprint_tokenizer(tokenizer) != wanted:
        raise InputError(f"the tokenizer of {model_id} isn't the one that {store_path} was made with; give --model")
    check_spans(tokenizer, model_id)
    return tokenizer


def check_spans(tokenizer: Any, model_id: str) -> None:
    """InputError where the tokenizer can't tell which characters a token is."""
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer of {model_id} can't tell which characters a token is: it has no fast version")


def read_tokens(texts: CorpusTexts, numbers: Sequence[int], tokenizer: Any) -> Iterator[TokenText | Text]:
    """The documents `numbers` (ascending) with their tokens, in order; a `Text` for each that can't be had."""
    batch: list[Text] = []
    held = 0
    for found in texts.read(numbers):
        batch.append(found)
        held += len(found.text or "")
        if held >= _BATCH_CHARACTERS:
            yield from _tokenised(texts, batch, tokenizer)
            batch, held = [], 0
    if batch:
        yield from _tokenised(texts, batch, tokenizer)


def keep_texts(group: Path, source: Source, names: Sequence[str], arrays: store.Arrays) -> None:
    """Write the texts of a finished corpus, read again and verified, into its group.

    `names`: of the manifest; `arrays`: the corpus's document arrays. A document that has changed since the model
    read it is kept as "", so that it is asked for from the source.
    """
    sizes_D = arrays["document_bytes"]
    counted_D = arrays["document_status"] == Status.COUNTED
    chunk = _documents_a_chunk(sizes_D)
    texts = CorpusTexts(group, "", names, sizes_D, arrays["document_hash"], arrays["document_status"],
                        arrays["document_tokens"], source.window_lines, None, source)  # fmt: skip

    def chunks() -> Iterator[np.ndarray]:
        for first in range(0, len(names), chunk):
            held = np.full(min(chunk, len(names) - first), "", object)
            for found in texts.read((first + np.flatnonzero(counted_D[first : first + chunk])).tolist()):
                held[found.number - first] = found.text or ""
            yield held

    store.add_array(group, KEPT, store.Blocks((len(names),), 0, chunks()), (chunk,))


def _documents_a_chunk(sizes_D: np.ndarray) -> int:
    """So many documents that a chunk of average ones is some 8 MB, and the largest chunk stays below 1 GB."""
    mean, largest = max(1.0, float(sizes_D.mean())), max(1, int(sizes_D.max()))
    return int(max(1, min(len(sizes_D), _CHUNK_BYTES / mean, 2**30 / largest)))


def _unescaped(name: str) -> str:
    return os.fsdecode(re.sub(rb"\\x([89a-f][0-9a-f])", lambda match: bytes.fromhex(match[1].decode()), name.encode()))


def _tokenised(texts: CorpusTexts, batch: list[Text], tokenizer: Any) -> Iterator[TokenText | Text]:
    found_tokens = tokenise(tokenizer, [found.text for found in batch], texts.document_tokens, with_spans=True)
    for found, (ids, offset_T2) in zip(batch, found_tokens, strict=True):
        if found.text is None:
            yield found
            continue
        if len(ids) != texts.tokens_D[found.number]:
            yield Text(found.number, None, f"is {len(ids)} tokens now and was {texts.tokens_D[found.number]}")
            continue
        text, span_T2 = universal_newlines(found.text, closed_gaps(offset_T2))
        first = 1 if texts.window_lines is None else first_line_of(texts.names[found.number])
        yield TokenText(found.number, text, np.array(ids, np.int64), span_T2, first)


def closed_gaps(span_T2: np.ndarray) -> np.ndarray:
    """A token without characters gets those that no token has before it.

    Some tokenizers trim white space off their offsets, and leave nothing of a token that is all white space.
    """
    before_T = np.r_[0, np.maximum.accumulate(span_T2[:, 1])[:-1]] if len(span_T2) else np.empty(0, np.int64)
    is_empty_T = span_T2[:, 0] == span_T2[:, 1]
    start_T = np.where(is_empty_T, np.minimum(before_T, span_T2[:, 0]), span_T2[:, 0])
    return np.stack([start_T, span_T2[:, 1]], axis=1)


def universal_newlines(text: str, span_T2: np.ndarray) -> tuple[str, np.ndarray]:
    """The text with every line break as "\\n", and the spans in it."""
    if "\r" not in text:
        return text, span_T2
    pairs = np.array([match.start() for match in re.finditer("\r\n", text)], np.int64)
    start_T = span_T2[:, 0] - np.searchsorted(pairs, span_T2[:, 0])
    # A token that ends between "\r" and "\n" keeps the break that the two have become.
    end_T = span_T2[:, 1] - np.searchsorted(pairs, span_T2[:, 1] - 1)
    return text.replace("\r\n", "\n").replace("\r", "\n"), np.stack([start_T, np.maximum(start_T, end_T)], axis=1)
