"""What stands behind the keys of a store: its corpora's texts and tokens, looked up."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from neurotally.analysis.keys.places import LexedFile, PlaceReader, Places
from neurotally.analysis.keys.trigger_lists import TriggerLists, read_triggers
from neurotally.analysis.options import Option
from neurotally.analysis.progress import Progress
from neurotally.profiler import store
from neurotally.profiler.corpus.documents import Source, Status
from neurotally.profiler.corpus.sources import is_dataset, parse_source, subfolders
from neurotally.profiler.corpus.streaming import spool_dataset, spool_file
from neurotally.profiler.corpus.texts import CorpusTexts, Text, TokenText, corpus_texts, load_tokenizer, read_tokens
from neurotally.profiler.corpus.windows import file_of
from neurotally.profiler.differences import first_difference
from neurotally.profiler.errors import InputError

_SAME = {
    "model": ("num_layers", "num_neurons"),
    "config": ("layout", "row_tokens", "document_tokens", "window_lines", "triggers"),
    "tokenizer": ("fingerprint",),
}
"""What a store and its null stores have in common, of the root's attributes."""


@dataclass(frozen=True)
class Texts:
    """Where the texts of a store are looked for, and with whose tokenizer."""

    corpora: Annotated[Path | None, Option("Where the corpora are, if they have moved.", "DIR")] = None
    corpus_source: Annotated[
        Mapping[str, str], Option("Where one corpus is now; as `profile --corpus` takes it.", "NAME=SOURCE")
    ] = field(default_factory=dict)
    model: Annotated[str | None, Option("Where the tokenizer is, if it has moved.", "MODEL[@REVISION]")] = None
    trust_remote_code: Annotated[bool, Option("Run code that comes with the model's tokenizer.")] = False

    def tokenizer(self, path: Path) -> Any:
        """The tokenizer of a store's model, verified."""
        return load_tokenizer(path, self.model, self.trust_remote_code)

    def of(self, path: Path, corpus: str) -> CorpusTexts:
        """The documents of one corpus of a store."""
        return corpus_texts(path, corpus, self._source(path, corpus))

    def _source(self, path: Path, corpus: str) -> Source | None:
        text = self.corpus_source.get(corpus)
        if text is None and self.corpora is not None:
            text = subfolders(self.corpora).get(corpus)
        if text is None:
            return None
        attributes = store.corpus_attributes(path, corpus)
        if is_dataset(text):
            max_files = attributes.get("max_files")
            return spool_dataset(text, spool_file(path, text, max_files), max_files)
        selector = attributes.get("selector")
        return parse_source(f"{text}::{selector}" if selector and "::" not in text else text)


ANYWHERE = Texts()
"""Where the store says they are."""


def read_places(
    texts: CorpusTexts, tokenizer: Any, reader: PlaceReader, code_P: np.ndarray, progress: Progress
) -> Places:
    """What stands at the places of these codes (each once, ascending): every document is read and tokenised once.

    Where documents are windows of lines, so are the others of their files, since a file is lexed as a whole.
    InputError where no text is found.
    """
    document_P, position_P = np.divmod(code_P.astype(np.int64), 2**32)
    numbers, starts = np.unique(document_P, return_index=True)
    position_by_document = dict(zip(numbers.tolist(), np.split(position_P, starts[1:]), strict=True))
    file_D: Sequence[str | int] = range(len(texts.names))
    if texts.window_lines is not None:
        file_D = [file_of(name) for name in texts.names]
    files = {file_D[number] for number in position_by_document}
    wanted = [number for number, file in enumerate(file_D) if file in files]
    documents = progress.over(read_tokens(texts, wanted, tokenizer), texts.corpus, "document", len(wanted))
    for _, of_file in itertools.groupby(documents, lambda document: file_D[document.number]):
        _read_file(reader, list(of_file), texts.names, position_by_document, tokenizer.all_special_ids)
    if reader.missing.keys() >= {texts.names[number] for number in position_by_document}:
        first, reason = next(iter(reader.missing.items()))
        raise InputError(
            f"none of the texts of {texts.corpus!r} found: {first}: {reason}; --corpora DIR says where they are"
        )
    return reader.places()


def _read_file(
    reader: PlaceReader,
    documents: Sequence[TokenText | Text],
    names: Sequence[str],
    position_by_document: Mapping[int, np.ndarray],
    special_ids: Sequence[int],
) -> None:
    """All documents of one file; those without places only say what comes before the others."""
    text = "".join(document.text for document in documents if isinstance(document, TokenText))
    file = LexedFile(reader.lexer, text)
    first_character = 0
    for document in documents:
        position_P = position_by_document.get(document.number)
        if isinstance(document, TokenText):
            if position_P is not None:
                reader.add(document, position_P, special_ids, file, first_character, names[document.number])
            first_character += len(document.text)
        elif position_P is not None:
            reader.missing[names[document.number]] = document.reason or ""


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
    fingerprints = [(store.store_attributes(null).get("model") or {}).get("fingerprint") for null in nulls]
    for number, null in enumerate(nulls):
        if fingerprints[number] in fingerprints[:number]:
            raise InputError(f"--null {null} has the keys of another --null: profile with another --random-init SEED")
    return [_read_null(path, null, corpus) for null in nulls]


def _read_null(path: Path, null: Path, corpus: str) -> TriggerLists:
    ours, theirs = store.store_attributes(path), store.store_attributes(null)
    if corpus not in store.committed_corpora(null):
        raise InputError(f"--null {null} has no corpus {corpus!r}: profile the same corpora with it")
    if (theirs.get("model") or {}).get("random_init") is None:
        raise InputError(f"--null {null} is of a trained model; expected a profile made with --random-init SEED")
    made = [{key: (of.get(part) or {}).get(key) for part in _SAME for key in _SAME[part]} for of in (ours, theirs)]
    if difference := first_difference(*made):
        raise InputError(f"--null {null} isn't made like {path}: {difference}")
    our_hash, their_hash = (store.read_corpus(one, corpus, ["document_hash"])["document_hash"] for one in (path, null))
    if not np.array_equal(our_hash, their_hash):
        raise InputError(f"--null {null} was made of other documents of {corpus!r}: profile the same corpora with it")
    return read_triggers(null, corpus)
