"""Parallel corpora: the same pieces of text, told apart by an id, in several languages.

A source is one of

    DIR/LANGUAGE/ID.SUFFIX    a folder a language, a file an id, named by its stem; the file's text as it is
    DIR/LANGUAGE/ID.json      the same with a record a file, its text in a field: see TEXT_FIELDS
    DIR/LANGUAGE.txt          a line an id: line 17 of each file is the same piece
    DIR/LANGUAGE.jsonl        a record a line; its id is the field `id`, else its line's number
    FILE.jsonl                a record an id, a field a language, and `id` as above
    FILE.zip                  any of the first four, packed; at most 256 MiB and a million lines when unpacked

A folder that holds nothing but one folder of these is looked through. Names that begin with a dot or `__` are
left out. Texts are never stripped: a trailing newline of a file is part of its text, that of a line isn't.
Languages and ids come in the order of their names; a line's number is padded to seven digits, so that this is
the order of the lines.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from neurotally.profiler.errors import InputError, first_line
from neurotally.profiler.whole_files import open_regular

TEXT_FIELDS = ("snippet", "text", "content", "code")
"""The first of them that a record has is its text."""
_ID_FIELD = "id"
_LINE_SUFFIXES = (".txt", ".jsonl")
_MAX_UNPACKED_BYTES = 256 * 2**20
_MAX_UNPACKED_LINES = 1_000_000
"""Of a .zip, which a small file can exceed by thousands of times; of other files the user sees the size."""
_PIECE_BYTES = 2**20

_UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
"""What reading a file or an archive raises; RuntimeError: an encrypted one."""

Entry = Path | zipfile.Path
Reader = Callable[..., str]
"""Gives one id's text, from its `field` if one is given, else from the usual one; raises InputError."""


@dataclass(frozen=True)
class ParallelTexts:
    """Aligned texts: every language has every id."""

    languages: tuple[str, ...]
    """In name order."""
    ids: tuple[str, ...]
    """In name order."""
    texts: Mapping[str, Mapping[str, str]]
    """By language, then id, in the orders above."""
    left_out: tuple[str, ...] = ()
    """Ids that some language lacks, dropped with `common`."""

    @property
    def sha256(self) -> str:
        """Over languages, ids and texts, in order: what identifies the corpus."""
        digest = hashlib.sha256()
        for language in self.languages:
            for id_ in self.ids:
                digest.update(json.dumps([language, id_, self.texts[language][id_]]).encode())
        return digest.hexdigest()


def read_parallel(
    path: Path, limit: int | None = None, common: bool = False, fields: Sequence[str] = ()
) -> ParallelTexts:
    """Read a parallel corpus; of its ids the first `limit`.

    An id that a language lacks is an InputError naming both, wherever in the order it is; with `common` it is left
    out. Each of `fields` is NAME=LANGUAGE::FIELD, a further language from another field of a language's records,
    as english=C::comment. Raises InputError too for what can't be read, is no UTF-8 or has no text.
    """
    readers = _list_source(path)
    for text in fields:
        _add_field(text, readers, path)
    ids, left_out = _aligned_ids(readers, path, common)
    languages = tuple(sorted(readers))
    texts = {language: {id_: readers[language][id_]() for id_ in ids[:limit]} for language in languages}
    if len(languages) < 2:
        packed = sorted(file.name for file in path.glob("*.zip")) if path.is_dir() else []
        hint = f"; is {packed[0]} in it meant?" if packed else ""
        raise InputError(f"{path}: expected two languages or more, found {languages[0]!r} alone{hint}")
    return ParallelTexts(languages, ids[:limit], texts, left_out)


def _aligned_ids(
    readers: Mapping[str, Mapping[str, Reader]], path: Path, common: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(ids that all languages have, the others), in name order."""
    union = set().union(*readers.values())
    shared = union.intersection(*readers.values())
    partly = tuple(sorted(union - shared))
    if partly and not common:
        lacking = next(language for language in sorted(readers) if partly[0] not in readers[language])
        having = next(language for language in sorted(readers) if partly[0] in readers[language])
        raise InputError(
            f"{path}: id {partly[0]!r} of {having!r} is missing in {lacking!r}; {len(partly)} of {len(union)} ids are "
            f"not in all of {len(readers)} languages: add them, or --common keeps the {len(shared)} that are"
        )
    if not shared:
        raise InputError(f"{path}: no id is in all of its languages {sorted(readers)}")
    return tuple(sorted(shared)), partly


def _list_source(path: Path) -> dict[str, dict[str, Reader]]:
    if path.suffix == ".jsonl" and path.is_file():
        return _list_wide_records(path)
    if path.suffix == ".zip" and path.is_file():
        root: Entry = _open_zip(path)
    elif path.is_dir():
        root = path
    else:
        reason = "expected a folder, a .zip or a .jsonl file" if path.exists() else "no such folder or file"
        raise InputError(f"parallel corpus {path}: {reason}")
    readers: dict[str, dict[str, Reader]] = {}
    for entry in _language_entries(root):
        language = entry.name if entry.is_dir() else PurePosixPath(entry.name).stem
        if language in readers:
            raise InputError(f"{path}: language {language!r} is there twice, as {entry.name!r} and otherwise")
        readers[language] = _list_language(entry)
    if not readers:
        raise InputError(f"{path}: expected a folder, a .txt or a .jsonl file for each language, found none")
    return readers


def _open_zip(path: Path) -> zipfile.Path:
    """The archive, if what is packed in it fits in memory."""
    try:
        archive = zipfile.ZipFile(path)
        _check_size(path, sum(info.file_size for info in archive.infolist()), 0)
        num_bytes = lines = 0
        for info in archive.infolist():
            if PurePosixPath(info.filename).suffix in _LINE_SUFFIXES:
                with archive.open(info) as file:
                    while piece := file.read(_PIECE_BYTES):
                        num_bytes, lines = num_bytes + len(piece), lines + piece.count(b"\n")
                        _check_size(path, num_bytes, lines)
    except _UNREADABLE as error:
        raise InputError(f"can't read {path}: {first_line(error)}") from error
    return zipfile.Path(archive)


def _check_size(path: Path, num_bytes: int, lines: int) -> None:
    if num_bytes > _MAX_UNPACKED_BYTES or lines > _MAX_UNPACKED_LINES:
        raise InputError(
            f"{path} unpacks to more than {_MAX_UNPACKED_BYTES // 2**20} MiB or {_MAX_UNPACKED_LINES:,} lines; "
            "if it is what you expect, unpack it and give the folder"
        )


def _language_entries(root: Entry) -> list[Entry]:
    """What stands for a language each, in name order; a folder around it all is gone through.

    Outside of an archive only one of folders: a lone folder of .txt files may as well be a language, its files ids.
    """
    entries = _entries(root)
    suffixes = () if isinstance(root, Path) else _LINE_SUFFIXES
    while len(entries) == 1 and entries[0].is_dir():
        inner = _entries(entries[0])
        if not inner or not all(entry.is_dir() or _suffix(entry) in suffixes for entry in inner):
            break
        entries = inner
    return [entry for entry in entries if entry.is_dir() or _suffix(entry) in _LINE_SUFFIXES]


def _entries(folder: Entry) -> list[Entry]:
    found = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__"))]
    for entry in found:
        _as_text(entry.name, "its name", ascii(str(entry)))
        if isinstance(entry, Path) and entry.is_symlink():
            raise InputError(f"{entry} is a link, and links aren't followed: put a copy in its place")
    return sorted(found, key=lambda entry: entry.name)


def _suffix(entry: Entry) -> str:
    return PurePosixPath(entry.name).suffix


def _list_language(entry: Entry) -> dict[str, Reader]:
    """The readers of one language, by id."""
    if not entry.is_dir():
        if _suffix(entry) == ".jsonl":
            return {id_: partial(_field, record, where) for id_, (where, record) in _records(entry).items()}
        return {_line_id(number): partial(_plain, str(entry), line) for number, line in enumerate(_lines(entry), 1)}
    readers: dict[str, Reader] = {}
    for file in _entries(entry):
        id_ = PurePosixPath(file.name).stem
        if file.is_dir():
            raise InputError(f"{file}: expected a file for each id, found a folder")
        if id_ in readers:
            raise InputError(f"{file}: id {id_!r} is there twice, with another suffix too")
        readers[id_] = partial(_read_file, file)
    if not readers:
        raise InputError(f"{entry}: expected a file for each id, found none")
    return readers


def _list_wide_records(file: Path) -> dict[str, dict[str, Reader]]:
    """A field a language. A record without a language's field lacks its id in that language."""
    readers: dict[str, dict[str, Reader]] = {}
    for id_, (where, record) in _records(file).items():
        for language, value in record.items():
            if language != _ID_FIELD:
                by_id = readers.setdefault(_as_text(language, "a field's name", where), {})
                by_id[id_] = partial(_plain, where, _as_text(value, language, where))
    if not readers:
        raise InputError(f"{file}: expected records with a field for each language, found none")
    return readers


def _records(file: Entry) -> dict[str, tuple[str, dict[str, Any]]]:
    """By id: file and line, and the record."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, line in enumerate(_lines(file), 1):
        where = f"{file}, line {number}"
        record = _parse_record(line, where)
        id_ = _as_text(str(record.get(_ID_FIELD, _line_id(number))), _ID_FIELD, where)
        if id_ in found:
            raise InputError(f"{where}: id {id_!r} is there twice")
        found[id_] = where, record
    return found


def _add_field(text: str, readers: dict[str, dict[str, Reader]], path: Path) -> None:
    """Add the language that NAME=LANGUAGE::FIELD asks for."""
    name, equals, source = text.partition("=")
    language, colons, field = source.partition("::")
    if not (name and equals and language and colons and field):
        raise InputError(f"--field {text!r}: expected NAME=LANGUAGE::FIELD, as english=C::comment")
    if language not in readers:
        raise InputError(f"--field {text!r}: {path} has no language {language!r}, it has {sorted(readers)}")
    if name in readers:
        raise InputError(f"--field {text!r}: there is a language {name!r} already")
    readers[name] = {id_: partial(reader, field=field) for id_, reader in readers[language].items()}


def _read_file(file: Entry, field: str | None = None) -> str:
    text = _decode(file)
    if _suffix(file) == ".json":
        return _field(_parse_record(text, str(file)), str(file), field)
    return _plain(str(file), text, field)


def _plain(where: str, text: str, field: str | None = None) -> str:
    if field is not None:
        raise InputError(f"{where}: expected a record with a field {field!r}, it is plain text")
    return text


def _field(record: Mapping[str, Any], where: str, field: str | None = None) -> str:
    name = field or next((name for name in TEXT_FIELDS if name in record), None)
    if name is None or name not in record:
        raise InputError(f"{where}: expected a field {field or ' or '.join(TEXT_FIELDS)}, it has {sorted(record)}")
    return _as_text(record[name], name, where)


def _as_text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: expected text in {field!r}, it is {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can spell
        raise InputError(f"{where}: {field!r} is no Unicode text: {error.reason}") from error
    return value


def _parse_record(text: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {first_line(error)}") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object, it is {type(record).__name__}")
    return record


def _lines(file: Entry) -> list[str]:
    """Lines end at a line feed, with or without a carriage return: not at a form feed or the like."""
    text = _decode(file)
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _decode(file: Entry) -> str:
    """The file's text, its line ends as they are."""
    try:
        if isinstance(file, zipfile.Path):
            content: bytes = file.read_bytes()
        else:
            with open_regular(file) as opened:
                content = opened.read()
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from error
    except _UNREADABLE as error:
        raise InputError(f"can't read {file}: {first_line(error)}") from error


def _line_id(number: int) -> str:
    return f"{number:07d}"
