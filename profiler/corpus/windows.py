"""Windows of lines: documents that are N lines of a file each, for `profile --window-lines N`.

A file of n lines is ceil(n / N) windows, one after the other and without overlap, so that every token of the corpus
is still counted once (the papers' windows overlap: n lines give n - N of them). A window is a document like any
other, named `path#L11-15` and hashed by itself. Lines end at "\\n", "\\r\\n" or a lone "\\r", as Python's universal
newlines have it. A file that is empty, not UTF-8 or too large is one window, so that it is skipped and listed once.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from neurotally.profiler.corpus.documents import MAX_DOCUMENT_BYTES, Document, Manifest, Status, text_document
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import read_inside

_LINE_END = re.compile(rb"\r\n|\r|\n")
_NAME = re.compile(r"(?s)(.*)#L(\d+)-(\d+)")


def cut_windows(root: Path, files: Manifest, num_lines: int) -> Manifest:
    """Cut a folder's files into windows; reads every file. Those with the content of an earlier one are repeats."""
    windows: list[tuple[str, int, bool]] = []
    seen: set[bytes] = set()
    for name, size in zip(files.names, files.sizes.tolist(), strict=True):
        if size > MAX_DOCUMENT_BYTES:
            windows.append((f"{name}#L1-1", size, False))
            continue
        for first, last, window in _windows(_read(root, name) or b"", num_lines):
            digest = hashlib.sha256(window).digest()
            windows.append((f"{name}#L{first}-{last}", len(window), digest in seen))
            seen.add(digest)
    names, sizes, is_repeat = zip(*windows, strict=True)
    return Manifest(list(names), np.array(sizes, np.uint64), np.array(is_repeat, bool))


def read_windows(root: Path, names: Sequence[str], sizes: Sequence[int]) -> Iterator[Document]:
    """Read windows by name, in order; a file is read once for all its windows that follow each other."""
    parsed = [(*_parse(name), size) for name, size in zip(names, sizes, strict=True)]
    for (path, is_too_large), windows in itertools.groupby(
        parsed, key=lambda entry: (entry[0], entry[3] > MAX_DOCUMENT_BYTES)
    ):
        if is_too_large:
            yield from (Document(None, Status.TOO_LARGE) for _ in windows)
            continue
        content = _read(root, path)
        bounds = _line_bounds(content or b"")
        for _, first, last, size in windows:
            yield Document(None, Status.UNREADABLE) if content is None else _window(content, bounds, first, last, size)


def first_line_of(name: str) -> int:
    """The number of a window's first line in its file."""
    return _parse(name)[1]


def file_of(name: str) -> str:
    """The file that a window is of."""
    return _parse(name)[0]


def _window(content: bytes, bounds: list[int], first: int, last: int, size: int) -> Document:
    if first >= len(bounds):
        return Document(None, Status.CHANGED)
    window = content[bounds[first - 1] : bounds[min(last, len(bounds) - 1)]]
    return text_document(window) if len(window) == size else Document(None, Status.CHANGED)


def _windows(content: bytes, num_lines: int) -> Iterator[tuple[int, int, bytes]]:
    """(number of the first line, of the last, bytes) of each window."""
    bounds = _line_bounds(content)
    lines = len(bounds) - 1
    step = lines if text_document(content).text is None else num_lines
    for first in range(0, lines, step):
        end = min(first + step, lines)
        yield first + 1, end, content[bounds[first] : bounds[end]]


def _line_bounds(content: bytes) -> list[int]:
    """Where each line begins, and where the last one ends; no bytes are one line."""
    ends = [match.end() for match in _LINE_END.finditer(content)]
    return [0, *ends] if ends and ends[-1] == len(content) else [0, *ends, len(content)]


def _read(root: Path, name: str) -> bytes | None:
    """A file's bytes; None where it can't be read, lies outside the folder or is too large."""
    try:
        content = read_inside(root, name, MAX_DOCUMENT_BYTES + 1)
    except OSError:
        return None
    return content if len(content) <= MAX_DOCUMENT_BYTES else None  # it has grown since it was listed


def _parse(name: str) -> tuple[str, int, int]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"expected the name of a window such as file.py#L11-15, got {name!r}")
    return match[1], int(match[2]), int(match[3])
