"""Which documents of an evaluation corpus chose the neurons that are to be judged on it, by the hash of content.

Neurons do best on the very text that they were chosen on. Two rules: the documents that a mask file names, whose
triggers chose its keys, are refused, or left out if asked for; and where the whole of a store's corpora chose (LAPE),
copies of their documents are left out and counted, since among thousands of files a copy or two is nothing unusual.
`--force` keeps both.

Where documents are windows of lines, a file counts if one of its windows, and its name, chose, or if it is equal to a
file whose window did.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neurotally.analysis.masking.masks import file_digests
from neurotally.jobs.corpora import ListedCorpus
from neurotally.profiler import store
from neurotally.profiler.corpus.documents import Status
from neurotally.profiler.corpus.sources import list_documents, read_documents
from neurotally.profiler.corpus.windows import file_of
from neurotally.profiler.errors import InputError


@dataclass(frozen=True)
class Choosers:
    """The documents that chose the neurons."""

    sha256: frozenset[bytes]
    names: frozenset[str]
    """Of their files, where documents are windows."""
    files: frozenset[bytes]
    """`file_digests` of these files."""
    window_lines: int | None
    are_named: bool
    """Whether a mask file names them, so that they are refused; else they are left out."""


@dataclass(frozen=True)
class UsedDocument:
    """A document to evaluate on that is one of the choosers."""

    corpus: str
    name: str
    sha256: bytes


def profiled_documents(path: Path) -> Choosers:
    """All documents that the store's corpora, if there is a store, were counted over."""
    if not store.is_begun(path):
        return Choosers(frozenset(), frozenset(), frozenset(), window_lines=None, are_named=False)
    hashes: set[bytes] = set()
    names: set[str] = set()
    files: set[bytes] = set()
    window_lines: int | None = (store.store_attributes(path).get("config") or {}).get("window_lines")
    for corpus in store.committed_corpora(path):
        arrays = store.read_found(path, f"corpora/{corpus}", ["document_hash", "document_status", "document_name"])
        if "document_hash" not in arrays:  # imported counts
            continue
        is_counted_D = arrays["document_status"] == Status.COUNTED
        hashes.update(bytes(row) for row in arrays["document_hash"][is_counted_D])
        if window_lines is not None:
            of_D = [file_of(name) for name in arrays["document_name"].tolist()]
            names.update(of_D[number] for number in np.flatnonzero(is_counted_D))
            digests = file_digests(of_D, arrays["document_hash"])
            files.update(digests[name] for name in names & digests.keys())
    return Choosers(frozenset(hashes), frozenset(names), frozenset(files), window_lines, are_named=False)


def find_used(
    corpora: Sequence[ListedCorpus], choosers: Choosers, leave_out_named: bool, force: bool,
    note: Callable[[str], object],
) -> list[UsedDocument]:  # fmt: skip
    """The documents among those to evaluate on that chose the neurons, of which `note` tells. Reads every one of them.

    Raises InputError, but not with `force`, if they may not be evaluated on, or nothing is left of a corpus.
    """
    find = _used_documents if choosers.window_lines is None else _used_files
    used = [document for corpus in corpora for document in find(corpus, choosers)] if choosers.sha256 else []
    if used and choosers.are_named and not leave_out_named and not force:
        raise InputError(
            f"{used[0].name} of {used[0].corpus!r} is one of {len(used)} documents whose triggers chose the neurons; "
            "--leave-out-used evaluates on the others, --force on all"
        )
    how = "chose the neurons by their triggers" if choosers.are_named else "were profiled, and so chose the neurons"
    for corpus in corpora:
        number = sum(document.corpus == corpus.name for document in used)
        if number == len(corpus.manifest.names) and not force:
            raise InputError(f"all {number} documents of {corpus.name!r} {how}; evaluate on others, or use --force")
    if used:
        kept = "evaluated on all the same" if force else "left out"
        note(f"{len(used)} documents chose the neurons and are {kept}: {used[0].corpus}: {used[0].name} …")
    return used


def _used_documents(corpus: ListedCorpus, choosers: Choosers) -> list[UsedDocument]:
    manifest = corpus.manifest
    documents = read_documents(corpus.source, manifest.names, manifest.sizes.tolist(), 0)
    return [
        UsedDocument(corpus.name, name, document.sha256)
        for name, document in zip(manifest.names, documents, strict=True)
        if document.sha256 in choosers.sha256
    ]


def _used_files(corpus: ListedCorpus, choosers: Choosers) -> list[UsedDocument]:
    source = replace(corpus.source, window_lines=choosers.window_lines)
    windows = list_documents(source, corpus.max_files)
    of_D = [file_of(name) for name in windows.names]
    hashes = [window.sha256 for window in read_documents(source, windows.names, windows.sizes.tolist(), 0)]
    files = {name for name, sha256 in zip(of_D, hashes, strict=True) if sha256 in choosers.sha256} & choosers.names
    digests = file_digests(of_D, np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32))
    files |= {name for name, digest in digests.items() if digest in choosers.files}
    index = np.flatnonzero([name in files for name in corpus.manifest.names]).tolist()
    names, sizes = [corpus.manifest.names[i] for i in index], [int(corpus.manifest.sizes[i]) for i in index]
    documents = read_documents(corpus.source, names, sizes, 0)
    return [UsedDocument(corpus.name, name, document.sha256) for name, document in zip(names, documents, strict=True)]
