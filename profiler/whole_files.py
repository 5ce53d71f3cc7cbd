"""Files that a reader finds whole or not at all: written beside their place, forced to the disk, then put there."""

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from neurotally.profiler import buckets
from neurotally.profiler.errors import InputError, first_line

_SYNCS_AT_ONCE = 16


class NotRegularError(OSError):
    """A folder, a FIFO or a device where a file was expected."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; what is there at the end takes the place of `path`, after an error all stays as it was.

    The path ends as `path` does, so that libraries which go by it write the same format. Links are followed; a pipe
    or a device is written to as it is.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.stem[:80]}.{os.getpid()}.partial{target.suffix}")
    try:
        yield partial
        _sync_file(partial)
        if target.exists():
            shutil.copymode(target, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def replace_json(path: Path, document: Any) -> None:
    """Write a JSON file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, as_json(document))


def as_json(document: Any) -> str:
    """JSON as it lies in a store."""
    return json.dumps(document, indent=1, allow_nan=False)


def read_json(path: Path, **kinds: type) -> Any:
    """What `replace_json` wrote; None where nothing was.

    `kinds`: the type of the value under each key. InputError where the file is damaged, a key isn't there, or its value
    is of another type or a negative number.
    """
    try:
        document = json.loads(read_file(path))
    except FileNotFoundError:
        return None
    except InputError:
        raise
    except (ValueError, RecursionError, NotRegularError) as error:
        raise InputError(f"{path} is damaged: {first_line(error)}") from error
    for key, kind in kinds.items():
        if not isinstance(document, dict) or key not in document:
            raise InputError(f"{path} is damaged: it lacks {key!r}")
        if type(document[key]) is not kind or (kind is int and document[key] < 0):
            raise InputError(f"{path} is damaged: {key!r} is {document[key]!r:.60}")
    return document


def parsed_file(path: Path, parse: Callable[[str], Any], kind: str) -> Any:
    """What `parse` makes of a text file; an InputError where it can't be read, or isn't of this kind."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not of this kind
        raise InputError(f"{path} isn't {kind}, or was cut off: {error}") from error


def read_file(path: Path) -> bytes:
    """All of an ordinary file, or of an object in a bucket; OSError where there is none."""
    if buckets.is_remote(path):
        return buckets.read_bytes(path)
    with open_regular(path) as file:
        return file.read()


def open_regular(path: Path) -> BinaryIO:
    """Open an ordinary file to read; OSError where it is anything else. Never waits, as opening a FIFO would."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, "expected an ordinary file", str(path))
    return os.fdopen(descriptor, "rb")


def read_inside(folder: Path, name: str, limit: int) -> bytes:
    """The first `limit` bytes of an ordinary file; OSError where it can't be read or lies outside the folder."""
    path = folder / name
    if buckets.is_remote(folder):
        return buckets.read_bytes(path, limit)
    if name.endswith("/") or not path.resolve().is_relative_to(folder.resolve()):
        raise PermissionError(errno.EACCES, "expected a file in the folder", str(path))
    with open_regular(path) as file:
        return file.read(limit)


def sync_tree(folder: Path) -> None:
    """Force all files below `folder` to the disk."""
    with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:  # a file system writes several in one go
        list(pool.map(_sync_file, [path for path in folder.rglob("*") if path.is_file()]))


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
