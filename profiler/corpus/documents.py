"""Documents: what a corpus consists of, and what becomes of one that can't be read.

A document of more than MAX_DOCUMENT_BYTES, as listed, is never read: a tokenizer takes up to 250 MB for each MB, and
the first tokens of a text can depend on all of it, so that a part wouldn't do where only those are wanted.
"""

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

MAX_DOCUMENT_BYTES = 8 * 2**20


class Status(IntEnum):
    """Why a document isn't counted; 0 if it is."""

    COUNTED = 0
    EMPTY = 1
    """No bytes, or the tokenizer makes no token of it, be it that it fails over it."""
    NOT_UTF8 = 2
    UNREADABLE = 3
    """The file can't be opened or is gone; the folder can't be listed; the record isn't JSON or has no text in the
    column."""
    CHANGED = 4
    """Its size isn't the one listed when the run started, or it is no ordinary file any more."""
    TOO_LARGE = 5
    """It has more than MAX_DOCUMENT_BYTES."""


class Document(NamedTuple):
    """A document as read: its text if it can be used, the SHA-256 of its bytes if they could be read, else zeros."""

    text: str | None
    status: Status
    sha256: bytes = bytes(32)


@dataclass(frozen=True)
class Source:
    """Where a corpus's documents come from."""

    kind: str
    """`folder`, `jsonl` or `parquet`."""
    path: str
    selector: str | None
    """The glob of a folder; the column of records."""
    origin: str
    """What identifies the source beside its manifest: `folder`, `records` or the hf: name."""
    window_lines: int | None = None
    """Documents are windows of so many lines of a folder's files (see `windows`); None: they are whole files."""


@dataclass(frozen=True)
class Manifest:
    """The documents of a corpus in order: relative names and sizes. What identifies a corpus."""

    names: list[str]
    """Relative POSIX paths; for records their number, from 0."""
    sizes: np.ndarray
    """uint64 [documents]: bytes of the file, of the window, of the JSON line, or of the text in a parquet row."""
    is_repeat_D: np.ndarray | None = None
    """bool: documents that are counted but trigger nothing, since an earlier one is the same; None: none are."""

    def repeats(self, first: int, end: int) -> list[int]:
        """The numbers of the repeats among the documents `first` to `end` - 1."""
        return [] if self.is_repeat_D is None else (first + np.flatnonzero(self.is_repeat_D[first:end])).tolist()

    @property
    def has_too_large(self) -> bool:
        """Whether a document is beyond MAX_DOCUMENT_BYTES, so that the limit decides the result."""
        return bool((self.sizes > MAX_DOCUMENT_BYTES).any())

    @property
    def sha256(self) -> str:
        """Over names and sizes, in order."""
        digest = hashlib.sha256()
        for name, size in zip(self.names, self.sizes.tolist(), strict=True):
            digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def text_document(content: bytes) -> Document:
    """A document from its bytes."""
    sha256 = hashlib.sha256(content).digest()
    if not content:
        return Document(None, Status.EMPTY, sha256)
    try:
        return Document(content.decode("utf-8"), Status.COUNTED, sha256)
    except UnicodeDecodeError:
        return Document(None, Status.NOT_UTF8, sha256)
