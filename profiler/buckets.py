"""Folders in buckets, which a URL names where a path could stand: s3://, gs://, az://, and to be read alone hf://.

`location` gives a `pathlib.Path`, or for a URL a `UPath` of universal_pathlib, which has of a Path's interface all that
is used here and travels to other processes. Buckets are read through fsspec, by obstore where it knows the scheme.
What obstore writes it writes conditionally, so that of two writers one is refused: a new object only where there is
none, and another version of an object only in place of the one that was read.

Credentials, region and endpoint come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`,
`GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`, `HF_TOKEN`, …). Requests that fail are made again for up
to half a minute; then it is an InputError, never a document that is left out.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from neurotally.profiler.errors import InputError, first_line

if TYPE_CHECKING:
    from obstore.store import ObjectStore
    from zarr.abc.store import Store

_WRITABLE = ("s3", "gs", "az")
"""Schemes that obstore knows, with conditional writes."""
_READABLE = (*_WRITABLE, "hf")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")
_RETRIES = {
    "backoff": {"init_backoff": timedelta(seconds=0.25), "max_backoff": timedelta(seconds=8), "base": 2},
    "max_retries": 12,
    "retry_timeout": timedelta(seconds=60),
}
_BUFFER_BYTES = 4 * 2**20
_AT_ONCE = 16
"""Requests."""
_S3_ERROR = re.compile(r"<Code>(.*?)</Code>(?:\s*<Message>(.*?)</Message>)?", re.DOTALL)


def is_url(text: object) -> bool:
    """Whether a text, or a path, names a place by URL."""
    return _URL.match(str(text)) is not None


def location(text: str | Path) -> Path:
    """The place that a path or a URL names; InputError where the scheme isn't known, or a library is missing."""
    if not isinstance(text, str):
        return text
    if not (match := _URL.match(text)):
        return Path(text)
    if match[1] == "file":
        return Path(url2pathname(urlsplit(text).path))
    if match[1] not in _READABLE or "::" in text:
        raise InputError(f"{text}: expected a path, or a URL of {', '.join(f'{scheme}://' for scheme in _READABLE)}")
    try:
        from obstore.fsspec import register
        from upath import UPath
    except ImportError as error:
        raise InputError(f"{text}: buckets need further libraries: pip install 'neurotally[buckets]'") from error
    register(list(_WRITABLE))
    place: Path = UPath(text.rstrip("/"), **(_options() if match[1] in _WRITABLE else {}))
    return place


def on_disk(path: str | Path) -> Path:
    """The path of a file that is no corpus and no store; InputError where it is a URL."""
    if is_url(path):
        raise InputError(f"{path}: only stores and corpora are read from buckets; copy it to this machine's disk")
    return Path(path)


def is_remote(path: object) -> bool:
    """Whether a location lies in a bucket."""
    return not isinstance(path, str | Path)


def is_writable(path: Path) -> bool:
    """Whether a store can be written there: buckets need conditional writes."""
    return not is_remote(path) or _scheme(path) in _WRITABLE


@contextlib.contextmanager
def told(path: Path | str) -> Iterator[None]:
    """An InputError, in a line, of what the libraries below raise where a bucket can't be reached or looked into.

    That there is nothing is left to the caller, and so is what is wrong with files on the disk.
    """
    try:
        yield
    except Exception as error:
        is_missing = isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error)
        if is_missing or not is_url(path) or not _is_of_network(error):
            raise
        raise InputError(
            f"can't reach {path}: {_reason(error)}; check its name, the network and credentials"
        ) from error


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """An object's first `limit` bytes; FileNotFoundError where there is none, InputError where it can't be read."""
    files, key = _files(path)
    with told(path):
        try:
            content: bytes = files.cat_file(key, start=None if limit is None else 0, end=limit)
        except FileNotFoundError:
            raise
        except Exception:
            if limit is None or files.size(key):
                raise
            return b""  # S3 has no range of nothing
    return content


def open_object(path: Path) -> BinaryIO:
    """An object, to read and to seek in; errors as `read_bytes` has them."""
    files, key = _files(path)
    with told(path):
        size = files.size(key)
    return io.BufferedReader(_Object(path, size), _BUFFER_BYTES)


class _Object(io.RawIOBase):
    """Each part is a request of its own, which is made again where it fails."""

    def __init__(self, path: Path, size: int):
        self._path = path
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        files, key = _files(self._path)
        with told(self._path):
            content = files.cat_file(key, start=self._at, end=end)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def sizes(folder: Path) -> dict[str, int]:
    """Name below the folder: bytes, of all objects in it."""
    files, key = _files(folder)
    with told(folder):
        found = files.find(key, detail=True)
    prefix = f"{key}/"
    return {
        name.removeprefix(prefix): entry["size"]
        for name, entry in found.items()
        if name.startswith(prefix) and not name.endswith("/")
    }


def names(folder: Path) -> set[str]:
    """What lies in a folder; nothing where there is none."""
    if not is_remote(folder):
        return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    return {name for name, _ in _entries(folder)} if is_folder(folder) else set()


def folders(folder: Path) -> list[str]:
    """The names of the folders in a folder."""
    return sorted(name for name, kind in _entries(folder) if kind == "directory")


def _entries(folder: Path) -> list[tuple[str, str]]:
    """(name, `file` or `directory`) of what lies in a folder."""
    files, key = _files(folder)
    with told(folder):
        return [(one["name"].rstrip("/").rpartition("/")[2], one["type"]) for one in files.ls(key, detail=True)]


def exists(path: Path) -> bool:
    """Whether there is anything: of a bucket an object, or a folder with objects in it."""
    if not is_remote(path):
        return path.exists()
    files, key = _files(path)
    with told(path):
        return bool(files.exists(key))


def is_folder(path: Path) -> bool:
    """Whether it is a folder; in a bucket one with objects in it."""
    if not is_remote(path):
        return path.is_dir()
    files, key = _files(path)
    with told(path):
        return bool(files.isdir(key))


def zarr_store(path: Path) -> "Store | str":
    """What zarr reads a hierarchy through."""
    if not is_remote(path):
        return str(path)
    if _scheme(path) in _WRITABLE:
        from zarr.storage import ObjectStore

        return ObjectStore(_bucket(path), read_only=True)
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(str(path), storage_options=dict(path.storage_options), read_only=True)  # type: ignore[attr-defined]


class Version(NamedTuple):
    """What tells a version of an object from any other."""

    e_tag: str | None
    version: str | None


class ChangedError(Exception):
    """An object isn't the one that was to be replaced."""


def read_version(path: Path) -> tuple[bytes, Version]:
    """An object and its version; errors as `read_bytes` has them."""
    with told(path):
        return _get(_bucket(path.parent), path.name)


def write_version(path: Path, content: bytes, replaced: Version | None) -> Version:
    """Write an object in place of the version `replaced`; None: of nothing. ChangedError where something else is there.

    A write whose answer was lost is made again and then finds itself, which is no change.
    """
    with told(path):
        return _put(_bucket(path.parent), path.name, content, replaced)


def remove(path: Path) -> None:
    """Remove an object, if it is there."""
    import obstore

    with told(path), contextlib.suppress(FileNotFoundError):
        obstore.delete(_bucket(path.parent), path.name)


def upload(folder: Path, target: Path) -> None:
    """Copy a local folder's files to a folder in a bucket, in place of what is there.

    ChangedError where another writer puts its own there meanwhile.
    """
    import obstore

    bucket, before = _bucket(target), list(sizes(target))
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    with told(target), ThreadPoolExecutor(_AT_ONCE) as pool:
        if before:
            obstore.delete(bucket, before)
        list(pool.map(lambda name: _put(bucket, name, (folder / name).read_bytes(), None), names))


def _get(bucket: "ObjectStore", name: str) -> tuple[bytes, Version]:
    import obstore

    found = obstore.get(bucket, name)
    return bytes(found.bytes()), Version(found.meta["e_tag"], found.meta["version"])


def _put(bucket: "ObjectStore", name: str, content: bytes, replaced: Version | None) -> Version:
    import obstore
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    mode: Any = "create"
    if replaced is not None:
        mode = {key: value for key, value in replaced._asdict().items() if value is not None}
    try:
        made = obstore.put(bucket, name, content, mode=mode)
        return Version(made["e_tag"], made["version"])
    except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
        try:
            there, version = _get(bucket, name)
        except FileNotFoundError:
            raise ChangedError from error
        if there != content:
            raise ChangedError from error
        return version


def _options() -> dict[str, Any]:
    is_plain_http = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return {"retry_config": _RETRIES, **({"client_options": {"allow_http": True}} if is_plain_http else {})}


def _scheme(path: Path) -> str:
    return str(path).partition("://")[0]


def _files(path: Any) -> tuple[Any, str]:
    """The file system and the key of a UPath."""
    return path.fs, str(path.path).rstrip("/")


def _bucket(folder: Path) -> "ObjectStore":
    from obstore.store import from_url

    return from_url(str(folder), **_options())


def _is_of_network(error: Exception) -> bool:
    """Whether it is one that obstore, huggingface_hub or what this stands on raises: they have no common base."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in ("obstore", "httpx", "httpx2", "huggingface_hub")


def _reason(error: Exception) -> str:
    """What a server says, else the library's first line."""
    if match := _S3_ERROR.search(str(error)):
        return ": ".join(part.strip().rstrip(".") for part in match.groups() if part)
    return first_line(error)[:300].rstrip(": ")
