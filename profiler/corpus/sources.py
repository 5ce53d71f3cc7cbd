"""Corpora: named sets of documents, listed by the driver and read by whoever runs a unit.

A source is one of

    DIR  or  DIR::GLOB             files below a folder, recursively; dot names left out, links not followed
    FILE.jsonl[::COLUMN]           one record a line
    FILE.parquet[::COLUMN]         one record a row
    hf:NAME[/CONFIG][::COLUMN]     a Hugging Face dataset, streamed once to a local .parquet

where DIR and FILE may be URLs of a bucket (`profiler.buckets`).

Files are ordered by the SHA-256 of their relative POSIX path, so that every unit and every prefix is a fair
sample and `max_files` takes the same N everywhere; records keep their order. Listing reads names and sizes;
contents are read, checked and hashed where the unit runs. A folder's files may be cut into windows of lines, whose
listing reads them (`windows`). A document that can't be used is never fatal: it keeps its number, and its status says
why. A folder that can't be listed stands among the documents under its name with a "/" at the end, unreadable, so that
what it holds isn't left out in silence.
"""

import contextlib
import fnmatch
import hashlib
import json
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from neurotally.profiler import buckets
from neurotally.profiler.corpus.documents import MAX_DOCUMENT_BYTES, Document, Manifest, Source, Status, text_document
from neurotally.profiler.corpus.windows import cut_windows, read_windows
from neurotally.profiler.errors import InputError, first_line
from neurotally.profiler.whole_files import NotRegularError, open_regular, read_inside

DEFAULT_COLUMNS = ("text", "content", "code")
_REQUESTS_AT_ONCE = 32
_ROWS_AT_ONCE = 16
"""Of a parquet file: few, since some kilobytes of it may hold gigabytes of text."""
_RECORD_SUFFIXES = (".jsonl", ".parquet")
_MAX_NAME_CHARACTERS = 100
_MAX_NAME_BYTES = 255


def check_names(names: Sequence[str], what: str = "corpus name") -> None:
    """Refuse names that can't be a folder in every store, or that differ only in case or in how Unicode spells them."""
    for name in names:
        if not 1 <= len(name) <= _MAX_NAME_CHARACTERS or len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
            raise InputError(f"{what} {name[:40]!r}…: expected 1 to 100 characters and at most 255 bytes")
        if any(character in "/=" or not character.isprintable() for character in name):
            raise InputError(f"{what} {name!r}: '/', '=', control characters and what isn't UTF-8 aren't allowed")
        if name.startswith((".", "__")) or name == "zarr.json":
            raise InputError(f"{what} {name!r}: it may not start with '.' or '__', nor be 'zarr.json'")
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(unicodedata.normalize("NFC", name.casefold()), name)
        if other != name:
            raise InputError(
                f"corpora {other!a} and {name!a} differ only in case, or in how Unicode spells them; rename one"
            )


def parse_source(text: str) -> Source:
    """Parse SOURCE; raises InputError where there is no such file or folder. hf: sources are spooled first.

    A path may have "::" in it: the longest path that is there counts, the rest is the selector. A URL may not.
    """
    if is_dataset(text):
        raise AssertionError("hf: sources are spooled to parquet first (neurotally.profiler.corpus.streaming)")
    parts = text.split("::")
    for number in range(1 if buckets.is_url(text) else len(parts), 0, -1):
        path = existing("::".join(parts[:number]))
        if path is not None:
            return source_at(path, "::".join(parts[number:]) or None)
    raise InputError(f"no such corpus: {parts[0]}")


def existing(text: str) -> Path | None:
    """The path or URL as it is spelled, else with "~" as the home folder; None where there is nothing."""
    path = buckets.location(text)
    if text.startswith("~") and not path.exists():
        with contextlib.suppress(RuntimeError):  # no such user
            path = path.expanduser()
    return path if buckets.exists(path) else None


def is_dataset(text: str) -> bool:
    """Whether SOURCE is a dataset of the hub, to be streamed; a URL hf://… names its files."""
    return text.startswith("hf:") and not buckets.is_url(text)


def source_at(path: Path, selector: str | None) -> Source:
    """The source that is there; raises InputError where it isn't one."""
    if buckets.is_folder(path):
        return Source("folder", str(path.absolute()), selector, "folder")
    if path.suffix not in _RECORD_SUFFIXES or not (buckets.is_remote(path) or path.is_file()):
        raise InputError(f"{path}: expected a folder, a .jsonl or a .parquet file")
    return Source(path.suffix[1:], str(path.absolute()), selector, "records")


def subfolders(folder: Path | str) -> dict[str, str]:
    """Name: path or URL of the folders in that of --corpora, without those that begin with a dot."""
    place = buckets.location(folder)
    if not buckets.is_folder(place):
        raise InputError(f"--corpora {folder}: no such folder")
    if buckets.is_remote(place):
        return {name: str(place / name) for name in buckets.folders(place) if not name.startswith(".")}
    entries = [path for path in place.absolute().iterdir() if not path.name.startswith(".")]
    found = {path.name: str(path) for path in entries if path.is_dir()}
    if linked := sorted(name for name, path in found.items() if os.path.islink(path)):
        target = os.path.realpath(found[linked[0]])
        raise InputError(
            f"--corpora {folder}: {linked[0]} is a link, and links are not followed; name it: "
            f"--corpus '{linked[0]}={target}'"
        )
    return found


def list_documents(source: Source, max_files: int | None = None) -> Manifest:
    """List a source's documents, the first `max_files` of them; raises InputError if there are none."""
    if max_files is not None and max_files < 1:
        raise InputError(f"max_files is {max_files}, expected 1 or more")
    if source.window_lines is not None and source.kind != "folder":
        raise InputError(f"--window-lines: {source.path} holds records; windows are cut from a folder of files")
    if source.kind == "folder":
        names, sizes = _list_folder(source)
    else:
        sizes = _list_jsonl(source) if source.kind == "jsonl" else _list_parquet(source)
        names = [str(number) for number in range(len(sizes))]
    if not names:
        pattern = f" matching {source.selector!r}" if source.selector and source.kind == "folder" else ""
        raise InputError(f"corpus {source.path} is empty: no documents{pattern} in it")
    names, sizes = names[:max_files], sizes[:max_files]
    files = Manifest(names, np.array(sizes, dtype=np.uint64))
    root = buckets.location(source.path)
    return files if source.window_lines is None else cut_windows(root, files, source.window_lines)


def read_documents(source: Source, names: Sequence[str], sizes: Sequence[int], offset: int) -> Iterator[Document]:
    """Read consecutive documents of a manifest, in order; `offset` is the sum of the sizes before them."""
    root = buckets.location(source.path)
    if source.window_lines is not None:
        return read_windows(root, names, sizes)
    if source.kind == "folder":
        return _read_remote_files(root, names, sizes) if buckets.is_remote(root) else _read_files(root, names, sizes)
    if source.kind == "jsonl":
        return _read_jsonl(source, sizes, offset)
    return _read_parquet(source, int(names[0]), int(names[-1]) + 1)


def _list_folder(source: Source) -> tuple[list[str], list[int]]:
    root = buckets.location(source.path)
    found = _list_remote(root, source.selector) if buckets.is_remote(root) else _list_local(root, source.selector)
    names = sorted(found, key=lambda name: (hashlib.sha256(os.fsencode(name)).digest(), name))
    return names, [found[name] for name in names]


def _list_remote(root: Path, selector: str | None) -> dict[str, int]:
    return {
        name: size
        for name, size in buckets.sizes(root).items()
        if _matches(name, selector) and not any(part.startswith(".") for part in name.split("/"))
    }


def _list_local(root: Path, selector: str | None) -> dict[str, int]:
    found: dict[str, int] = {}

    def unlisted(error: OSError) -> None:
        folder = Path(error.filename)
        if folder == root:
            raise InputError(f"can't list {root}: {error.strerror}") from error
        if not isinstance(error, FileNotFoundError):
            found[f"{folder.relative_to(root).as_posix()}/"] = 0

    for folder, subfolders, files in os.walk(root, onerror=unlisted):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if name.startswith(".") or not _matches(relative, selector):
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            except OSError:  # a folder whose names can be read and no more
                found[relative] = 0
                continue
            if stat.S_ISREG(status.st_mode):
                found[relative] = status.st_size
    return found


def _matches(relative: str, glob: str | None) -> bool:
    """A glob without a slash is matched against the file's name, one with a slash against the relative path."""
    if glob is None:
        return True
    glob = glob.removeprefix("**/")
    return fnmatch.fnmatchcase(relative if "/" in glob else relative.rpartition("/")[2], glob)


def _read_files(root: Path, names: Sequence[str], sizes: Sequence[int]) -> Iterator[Document]:
    return (_read_file(root, name, size) for name, size in zip(names, sizes, strict=True))


def _read_remote_files(root: Path, names: Sequence[str], sizes: Sequence[int]) -> Iterator[Document]:
    """Several requests at once: an answer takes as long as many small files take to read."""
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        for first in range(0, len(names), _REQUESTS_AT_ONCE):
            some = slice(first, first + _REQUESTS_AT_ONCE)
            yield from pool.map(lambda name, size: _read_file(root, name, size), names[some], sizes[some])


def _read_file(root: Path, name: str, size: int) -> Document:
    if size > MAX_DOCUMENT_BYTES:
        return Document(None, Status.TOO_LARGE)
    try:
        content = read_inside(root, name, size + 1)
    except NotRegularError:
        return Document(None, Status.CHANGED)
    except OSError:
        return Document(None, Status.UNREADABLE)
    return text_document(content) if len(content) == size else Document(None, Status.CHANGED)


def _list_jsonl(source: Source) -> list[int]:
    """The size of every line; InputError where none of them is a record with the column."""
    sizes: list[int] = []
    has_column = False
    with _opened(source) as file:
        for line, size in _sized_lines(file):
            sizes.append(size)
            has_column = has_column or size > len(line) or _record_text(line, source.selector) is not None
    if sizes and not has_column:
        wanted = " or ".join([source.selector] if source.selector else DEFAULT_COLUMNS)
        raise InputError(f"{source.path}: expected records with a text in {wanted}, none of its lines is one")
    return sizes


def _opened(source: Source) -> BinaryIO:
    path = buckets.location(source.path)
    return buckets.open_object(path) if buckets.is_remote(path) else open_regular(path)


def _sized_lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Each line and its bytes; of one beyond MAX_DOCUMENT_BYTES the beginning alone."""
    while line := file.readline(MAX_DOCUMENT_BYTES + 1):
        piece, size = line, len(line)
        while not piece.endswith(b"\n") and (piece := file.readline(MAX_DOCUMENT_BYTES)):
            size += len(piece)
        yield line, size


def _read_jsonl(source: Source, sizes: Sequence[int], offset: int) -> Iterator[Document]:
    with _opened(source) as file:
        file.seek(offset)
        for size in sizes:
            if size > MAX_DOCUMENT_BYTES:
                file.seek(size, os.SEEK_CUR)
                yield Document(None, Status.TOO_LARGE)
                continue
            line = file.readline()
            yield _record_document(line, source.selector) if len(line) == size else Document(None, Status.CHANGED)


def _record_document(line: bytes, column: str | None) -> Document:
    text = _record_text(line, column)
    try:
        return Document(None, Status.UNREADABLE) if text is None else text_document(text.encode())
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return Document(None, Status.NOT_UTF8)


def _record_text(line: bytes, column: str | None) -> str | None:
    """What a line's record has in the column; None where it is no record, or has no text there."""
    try:
        record = json.loads(line)
        name = column or next(name for name in DEFAULT_COLUMNS if name in record)
        text = record[name]
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError):
        return None
    return text if isinstance(text, str) else None


def _list_parquet(source: Source) -> list[int]:
    import pyarrow.compute as pc

    return [length or 0 for batch in _parquet_batches(source, 0) for length in pc.binary_length(batch).to_pylist()]


def _read_parquet(source: Source, first: int, end: int) -> Iterator[Document]:
    number, skip_groups = _parquet_group(source, first)
    for batch in _parquet_batches(source, skip_groups):
        if number >= end:
            return
        for value in batch.slice(max(0, first - number), end - max(first, number)):
            buffer = value.as_buffer()
            if buffer is None:
                yield Document(None, Status.UNREADABLE)
            elif buffer.size > MAX_DOCUMENT_BYTES:
                yield Document(None, Status.TOO_LARGE)
            else:
                yield text_document(buffer.to_pybytes())
        number += len(batch)


def _parquet_group(source: Source, record: int) -> tuple[int, int]:
    """(first record, number) of the row group that holds `record`."""
    import pyarrow.parquet as pq

    with _opened(source) as file:
        metadata = pq.read_metadata(file)
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=np.int64)
    group = int(np.searchsorted(ends, record, side="right"))
    return int(ends[group - 1]) if group else 0, group


def _parquet_batches(source: Source, first_group: int) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _opened(source) as opened, pq.ParquetFile(opened) as file:
            names = file.schema_arrow.names
            wanted = [source.selector] if source.selector else list(DEFAULT_COLUMNS)
            column = next((name for name in wanted if name in names), None)
            if column is None or not (
                pa.types.is_string(kind := file.schema_arrow.field(column).type) or pa.types.is_large_string(kind)
            ):
                raise InputError(f"{source.path}: expected a text column {' or '.join(wanted)}, it has {names}")
            groups = list(range(first_group, file.metadata.num_row_groups))
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=groups, columns=[column]):
                yield batch.column(0)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"can't read {source.path}: {first_line(error)}") from error
