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

from neurotally.profiler.documents import (
    CHANGED,
    MAX_DOCUMENT_BYTES,
    TOO_LARGE,
    UNREADABLE,
    Document,
    Manifest,
    text_document,
)
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import open_regular

_LINE_END = re.compile(rb"\r\n|\r|\n")
_NAME = re.compile(r"(?s)(.*)#L(\d+)-(\d+)")


def cut_windows(root: Path, files: Manifest, num_lines: int) -> Manifest:
    """Cut a folder's files into windows; reads every file. Those with the content of an earlier one are repeats."""
    names: list[str] = []
    sizes: list[int] = []
    is_repeat: list[bool] = []
    seen: set[bytes] = set()
    for name, size in zip(files.names, files.sizes.tolist(), strict=True):
        if size > MAX_DOCUMENT_BYTES:
            names.append(f"{name}#L1-1")
            sizes.append(size)
            is_repeat.append(False)
            continue
        content = _read(root, name)
        for first, window in _windows(content, num_lines):
            names.append(f"{name}#L{first}-{first + max(0, _count_lines(window) - 1)}")
            sizes.append(len(window))
            digest = hashlib.sha256(window).digest()
            is_repeat.append(digest in seen)
            seen.add(digest)
    return Manifest(names, np.array(sizes, np.uint64), np.array(is_repeat, bool))


def read_windows(root: Path, names: Sequence[str], sizes: Sequence[int]) -> Iterator[Document]:
    """Read windows by name, in order; a file is read once for all its windows that follow each other."""
    parsed = [(*_parse(name), size) for name, size in zip(names, sizes, strict=True)]
    for (path, is_too_large), windows in itertools.groupby(
        parsed, key=lambda entry: (entry[0], entry[3] > MAX_DOCUMENT_BYTES)
    ):
        if is_too_large:
            yield from (TOO_LARGE for _ in windows)
            continue
        content = _read(root, path)
        starts = [0, *(match.end() for match in _LINE_END.finditer(content or b""))]
        for _, first, last, size in windows:
            yield _window(content, starts, first, last, size)


def first_line_of(name: str) -> int:
    """The number of a window's first line in its file."""
    return _parse(name)[1]


def file_of(name: str) -> str:
    """The file that a window is of."""
    return _parse(name)[0]


def _window(content: bytes | None, starts: list[int], first: int, last: int, size: int) -> Document:
    if content is None:
        return UNREADABLE
    if first > len(starts):
        return CHANGED
    start = starts[first - 1]
    window = content[start : starts[last] if last < len(starts) else len(content)]
    return text_document(window) if len(window) == size else CHANGED


def _windows(content: bytes | None, num_lines: int) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, bytes) of each window."""
    if not content or not _is_utf8(content):
        yield 1, content or b""
        return
    starts = [0, *(match.end() for match in _LINE_END.finditer(content))]
    if starts[-1] == len(content):
        starts.pop()
    for first in range(0, len(starts), num_lines):
        end = first + num_lines
        yield first + 1, content[starts[first] : starts[end] if end < len(starts) else len(content)]


def _count_lines(window: bytes) -> int:
    breaks = len(_LINE_END.findall(window))
    return breaks if not window or window[-1:] in (b"\n", b"\r") else breaks + 1


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _read(root: Path, name: str) -> bytes | None:
    """A file's bytes; None where it can't be read, lies outside the folder or is too large."""
    path = root / name
    try:
        if name.endswith("/") or not path.resolve().is_relative_to(root.resolve()):
            return None
        with open_regular(path) as file:
            content = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError:
        return None
    return content if len(content) <= MAX_DOCUMENT_BYTES else None  # it has grown since it was listed


def _parse(name: str) -> tuple[str, int, int]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"expected the name of a window such as file.py#L11-15, got {name!r}")
    return match[1], int(match[2]), int(match[3])
