"""The corpora that a run was asked for: found, listed, and cut into units."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.profiler.corpus.documents import MAX_DOCUMENT_BYTES, Manifest, Source, Status
from neurotally.profiler.corpus.sources import check_names, is_dataset, list_documents, parse_source, subfolders
from neurotally.profiler.corpus.streaming import spool_dataset, spool_file
from neurotally.profiler.corpus.units import Unit, cut_units
from neurotally.profiler.errors import InputError
from neurotally.profiler.passes.worker import Task


@dataclass(frozen=True)
class ListedCorpus:
    """One corpus, listed."""

    name: str
    source: Source
    max_files: int | None
    manifest: Manifest

    @property
    def identity(self) -> dict[str, Any]:
        """What must not change while the corpus is in a store. JSON-ready; never a path."""
        limit = {"max_document_bytes": MAX_DOCUMENT_BYTES} if self.manifest.has_too_large else {}
        return {
            "source": self.source.origin,
            "selector": self.source.selector,
            "max_files": self.max_files,
            "documents": len(self.manifest.names),
            "bytes": int(self.manifest.sizes.sum()),
            "manifest": self.manifest.sha256,
            **limit,
        }

    @property
    def lasting_path(self) -> str | None:
        """Where the documents are; None where they are streamed, and can be streamed again."""
        return None if is_dataset(self.source.origin) else self.source.path

    def stored_names(self) -> np.ndarray:
        """The documents' names as the store holds them: those that aren't UTF-8 with their bytes escaped."""
        names = [  # most are the manifest's own, so that they are there once
            name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            for name in self.manifest.names
        ]
        return np.array(names, dtype=object)

    def units(self, max_unit_bytes: int, num_groups: int) -> list[Unit]:
        """Its units."""
        return cut_units(self.manifest, max_unit_bytes, num_groups)

    def task(self, unit: Unit) -> Task:
        """What a worker needs for one of its units."""
        return Task(
            corpus=self.name,
            index=unit.index,
            source=self.source,
            first=unit.first,
            names=self.manifest.names[unit.first : unit.end],
            sizes=self.manifest.sizes[unit.first : unit.end].tolist(),
            offset=int(self.manifest.sizes[: unit.first].sum()),
            repeats=self.manifest.repeats(unit.first, unit.end),
        )


def find_corpora(folder: Path | str | None, named: Mapping[str, str | Path] | None = None) -> dict[str, str]:
    """Corpus names and SOURCEs, in name order: the subfolders of `folder`, and those of `named`."""
    found: dict[str, str] = {}
    if folder is not None:
        found = subfolders(folder)
        if not found:
            raise InputError(f"--corpora {folder}: expected one subfolder a corpus, found none")
    for name, source in (named or {}).items():
        if name in found:
            raise InputError(f"corpus {name!r} is named twice")
        found[name] = str(source)
    if not found:
        raise InputError("no corpus: give --corpora DIR or --corpus NAME=SOURCE")
    check_names(sorted(found))
    return dict(sorted(found.items()))


def skipped_by_reason(status_D: np.ndarray) -> dict[str, int]:
    """How many of some documents aren't counted, for each reason."""
    codes, numbers = np.unique(status_D[status_D != Status.COUNTED], return_counts=True)
    return {Status(code).name.lower(): number for code, number in zip(codes.tolist(), numbers.tolist(), strict=True)}


def list_corpus(
    name: str, source_text: str, max_files: int | None, store: Path, window_lines: int | None = None
) -> ListedCorpus:
    """List one corpus; a dataset is first streamed to a file beside the store's working state."""
    if is_dataset(source_text):
        source = spool_dataset(source_text, spool_file(store, source_text, max_files), max_files)
    else:
        source = parse_source(source_text)
    source = replace(source, window_lines=window_lines)
    return ListedCorpus(name, source, max_files, list_documents(source, max_files))
