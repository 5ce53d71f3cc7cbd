"""Folders in buckets, which a URL names where a path could stand: s3://, gs://, az://, and to be read alone hf://.

`location` gives a `pathlib.Path`, or for a URL a `Place`. Object stores are read and written by obstore, the Hugging
Face hub is read by huggingface_hub. What is written is written conditionally, so that of two writers one is refused: a
new object only where there is none, and another version of an object only in place of the one that was read.

Credentials, region and endpoint come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`,
`GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`, `HF_TOKEN`, …). Requests that fail are made again for up
to a minute; then it is an UnreachableError, never a document that is left out.
"""

import contextlib
import functools
import hashlib
import io
import os
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

from neurotally.profiler.errors import InputError, first_line

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_WRITABLE = ("s3", "gs", "az")
"""Schemes that obstore knows, with conditional writes."""
_READABLE = (*_WRITABLE, "hf")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_COLLAPSED = re.compile(rf"({'|'.join(_READABLE)}):/?(?!/)", re.IGNORECASE)
"""A URL that went through `Path`, or was mistyped."""
_ENVIRONMENT = ("AWS_", "GOOGLE_", "AZURE_")
"""How the variables begin that obstore reads."""
_RETRIES: dict[str, Any] = {
    "backoff": {"init_backoff": timedelta(seconds=0.25), "max_backoff": timedelta(seconds=8), "base": 2},
    "max_retries": 12,
    "retry_timeout": timedelta(seconds=60),
}
_WRITE_FOR_S = 60.0
"""How long an object is written again, which obstore doesn't do by itself where the answer was lost."""
_REQUEST_TIMEOUT = timedelta(minutes=5)
_BUFFER_BYTES = 4 * 2**20
_AT_ONCE = 16
"""Requests."""
_S3_ERROR = re.compile(r"<Code>(.*?)</Code>(?:\s*<Message>(.*?)</Message>)?", re.DOTALL)
_NO_ACCESS = ("RepositoryNotFoundError", "GatedRepoError", "DisabledRepoError", "RevisionNotFoundError")
"""Of huggingface_hub, which raises FileNotFoundError where it may not look."""


class UnreachableError(InputError):
    """A bucket can't be reached, or may not be looked into."""


@dataclass(frozen=True)
class Place:
    """A place in a bucket, with all that is used here of a Path's interface."""

    scheme: str
    bucket: str
    key: str = ""
    """Without "/" at its ends; "" for all of the bucket."""

    def __truediv__(self, name: str) -> "Place":
        return replace(self, key=f"{self.key}/{name}".strip("/"))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2] or self.bucket

    @property
    def parent(self) -> "Place":
        """The folder that it is in."""
        return replace(self, key=self.key.rpartition("/")[0])

    @property
    def suffix(self) -> str:
        """Of the name."""
        return Path(self.name).suffix

    def absolute(self) -> "Place":
        """Itself."""
        return self

    resolve = absolute


def is_url(text: object) -> bool:
    """Whether a text, or a path, names a place by URL."""
    return _URL.match(str(text)) is not None


def location(text: str | Path) -> Path:
    """The place that a path or a URL names; InputError where the scheme isn't known, or a library is missing.

    What it gives for a URL is a `Place`.
    """
    if is_remote(text):
        return cast(Path, text)
    match = _URL.match(str(text))  # of a Path never: it has one "/" left
    if match is None:
        path = Path(text)
        if _COLLAPSED.match(str(text)) and not path.exists():
            raise InputError(f"{text}: expected a path, or a URL as text, such as s3://BUCKET/FOLDER")
        return path
    text = str(text)
    scheme = match[1].lower()
    if scheme == "file":
        return Path(url2pathname(urlsplit(text).path))
    bucket, _, key = text[match.end() :].partition("/")
    if scheme not in _READABLE or "::" in text or not bucket:
        known = ", ".join(f"{name}://" for name in _READABLE)
        raise InputError(f"{text}: expected a path, or a URL of {known} with a bucket")
    try:
        import obstore  # noqa: F401
    except ImportError as error:
        raise InputError(f"{text}: buckets need a further library: pip install 'neurotally[buckets]'") from error
    return cast(Path, Place(scheme, bucket, key.strip("/")))


def on_disk(path: str | Path) -> Path:
    """The path of a file that is no corpus and no store; InputError where it is a URL."""
    if is_url(path):
        raise InputError(f"{path}: only stores and corpora are read from buckets; copy it to this machine's disk")
    return Path(path)


def is_remote(path: object) -> bool:
    """Whether a location lies in a bucket."""
    return isinstance(path, Place)


def is_writable(path: Path) -> bool:
    """Whether a store can be written there: buckets need conditional writes."""
    return not isinstance(path, Place) or path.scheme in _WRITABLE


@contextlib.contextmanager
def as_unreachable(what: object) -> Iterator[None]:
    """An UnreachableError, in a line, of what the libraries below raise where a bucket can't be reached or looked into.

    `what`: a place, or its URL. That there is nothing is left to the caller, and so is what is wrong with a path.
    """
    try:
        yield
    except Exception as error:
        if "://" not in str(what) or _is_nothing_there(error) or not _is_of_network(error):
            raise
        raise UnreachableError(
            f"can't reach {what}: {_reason(error)}; check its name, the network and credentials"
        ) from error


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """An object's first `limit` bytes; FileNotFoundError where there is none, else UnreachableError."""
    reader = _reader(path)
    with as_unreachable(path):
        if limit is None:
            return reader.read()
        try:
            return reader.read(0, limit)
        except FileNotFoundError:
            raise
        except Exception:
            if reader.size():
                raise
            return b""  # S3 has no range of nothing


def open_object(path: Path) -> BinaryIO:
    """An object, to read and to seek in; errors as `read_bytes` has them."""
    with as_unreachable(path):
        size = _reader(path).size()
    return io.BufferedReader(_Object(path, size), _BUFFER_BYTES)


class _Object(io.RawIOBase):
    """Each part is a request of its own, which is made again where it fails."""

    def __init__(self, path: Path, size: int):
        self._path = path
        self._reader = _reader(path)
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
        with as_unreachable(self._path):
            content = self._reader.read(self._at, end)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def sizes(folder: Path) -> dict[str, int]:
    """Name below the folder: bytes, of all objects in it; without the empty ones that only stand for folders."""
    with as_unreachable(folder):
        found = _reader(folder).sizes()
    parents = {name[:at] for name in found for at, character in enumerate(name) if character == "/"}
    return {name: size for name, size in found.items() if size or name.rstrip("/") not in parents}


def names(folder: Path) -> set[str]:
    """What lies in a folder; nothing where there is none."""
    if not is_remote(folder):
        return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    with as_unreachable(folder):
        found, files = _reader(folder).entries()
    return {*found, *files}


def folders(folder: Path) -> list[str]:
    """The names of the folders in a folder."""
    with as_unreachable(folder):
        return sorted(_reader(folder).entries()[0])


def exists(path: Path) -> bool:
    """Whether there is anything: of a bucket an object, or a folder with objects in it."""
    if not is_remote(path):
        return path.exists()
    with as_unreachable(path), contextlib.suppress(FileNotFoundError):
        _reader(path).size()
        return True
    return is_folder(path)


def is_folder(path: Path) -> bool:
    """Whether it is a folder; in a bucket one with objects in it."""
    return bool(names(path)) if is_remote(path) else path.is_dir()


def zarr_location(path: Path) -> tuple[Any, str]:
    """What zarr reads through, and the path in it."""
    if not isinstance(path, Place):
        return str(path), ""
    if path.scheme in _WRITABLE:
        from zarr.storage import ObjectStore

        return ObjectStore(_client(path), read_only=True), path.key
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(str(path), read_only=True), ""


class Version(NamedTuple):
    """What tells a version of an object from any other."""

    e_tag: str | None
    version: str | None


class ChangedError(Exception):
    """An object isn't the one that was to be replaced."""


def read_version(path: Path) -> tuple[bytes, Version]:
    """An object and its version; errors as `read_bytes` has them."""
    place = _place(path)
    with as_unreachable(path):
        return _get(_client(place), place.key)


def write_version(path: Path, content: bytes, replaced: Version | None) -> Version:
    """Write an object in place of the version `replaced`; None: of nothing. ChangedError where something else is there.

    A write whose answer was lost is made again and then finds itself, which is no change.
    """
    place = _place(path)
    with as_unreachable(path):
        return _put(_client(place), place.key, content, replaced)


def remove(path: Path) -> None:
    """Remove an object, if it is there."""
    import obstore

    place = _place(path)
    with as_unreachable(path), contextlib.suppress(FileNotFoundError):
        obstore.delete(_client(place), place.key)


def versions(folder: Path) -> dict[str, Version]:
    """Name below the folder: version, of all objects in it."""
    place = _place(folder)
    with as_unreachable(folder):
        found = list(_listed(_client(place), place.key))
    return {one["path"].removeprefix(f"{place.key}/"): Version(one["e_tag"], one["version"]) for one in found}


def upload(folder: Path, target: Path, before: Mapping[str, Version]) -> None:
    """Copy a local folder's files to a folder in a bucket where `before` was found.

    What is there and the same stays; what differs is replaced, if it still is what was found: else ChangedError.
    """
    place = _place(target)
    client = _client(place)

    def copy(name: str) -> None:
        content, there = (folder / name).read_bytes(), before.get(name)
        if there is None or there.e_tag != f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"':
            _put(client, (place / name).key, content, there)

    files = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    with as_unreachable(target), ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(copy, files))


class _ObjectStoreReader:
    """Reads a place of an object store."""

    def __init__(self, place: Place):
        self._client = _client(place)
        self._key = place.key

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        import obstore

        if end is None:
            return bytes(obstore.get(self._client, self._key).bytes())
        return bytes(obstore.get_range(self._client, self._key, start=start, end=end))

    def size(self) -> int:
        import obstore

        if not self._key:
            raise FileNotFoundError(self._key)
        return int(obstore.head(self._client, self._key)["size"])

    def sizes(self) -> dict[str, int]:
        prefix = f"{self._key}/" if self._key else ""
        return {one["path"].removeprefix(prefix): one["size"] for one in _listed(self._client, self._key)}

    def entries(self) -> tuple[set[str], set[str]]:
        """Names of folders, and of objects."""
        import obstore

        found = obstore.list_with_delimiter(self._client, self._key or None)
        last = [key.rstrip("/").rpartition("/")[2] for key in found["common_prefixes"]]
        files = [one["path"].rpartition("/")[2] for one in found["objects"] if one["path"] != self._key]
        return set(last), set(files) - {""}


class _HubReader:
    """Reads a place of the Hugging Face hub."""

    def __init__(self, place: Place):
        import fsspec

        self._files = fsspec.filesystem("hf")
        self._path = f"{place.bucket}/{place.key}".rstrip("/")

    def read(self, start: int | None = None, end: int | None = None) -> bytes:
        content: bytes = self._files.cat_file(self._path, start=start, end=end)
        return content

    def size(self) -> int:
        found: Mapping[str, Any] = self._files.info(self._path)
        if found["type"] != "file":
            raise FileNotFoundError(self._path)
        return int(found["size"])

    def sizes(self) -> dict[str, int]:
        found = self._files.find(self._path, detail=True)
        return {name.removeprefix(f"{self._path}/"): int(entry["size"]) for name, entry in found.items()}

    def entries(self) -> tuple[set[str], set[str]]:
        """Names of folders, and of files."""
        try:
            found = self._files.ls(self._path, detail=True)
        except FileNotFoundError as error:
            if not _is_nothing_there(error):
                raise
            return set(), set()
        kinds: tuple[set[str], set[str]] = set(), set()
        for entry in found:
            if entry["name"] != self._path:
                kinds[entry["type"] != "directory"].add(entry["name"].rpartition("/")[2])
        return kinds


def _reader(path: Path) -> _ObjectStoreReader | _HubReader:
    place = _place(path)
    return _ObjectStoreReader(place) if place.scheme in _WRITABLE else _HubReader(place)


def _place(path: Path) -> Place:
    assert isinstance(path, Place), path
    return path


def _client(place: Place) -> "ObjectStore":
    """Of a whole bucket: keys are text, in which "#", "?" and "%" are characters like others."""
    settings = sorted((name, value) for name, value in os.environ.items() if name.startswith(_ENVIRONMENT))
    return _make_client(f"{place.scheme}://{place.bucket}", tuple(settings))


@functools.lru_cache(maxsize=16)
def _make_client(url: str, environment: tuple[tuple[str, str], ...]) -> "ObjectStore":
    from obstore.store import from_url

    is_plain_http = dict(environment).get("AWS_ENDPOINT_URL", "").startswith("http://")
    options: Any = {"timeout": _REQUEST_TIMEOUT, **({"allow_http": True} if is_plain_http else {})}
    return from_url(url, retry_config=_RETRIES, client_options=options)


def _listed(client: "ObjectStore", key: str) -> Iterator[Any]:
    import obstore

    for chunk in obstore.list(client, key or None):
        yield from (one for one in chunk if one["path"] != key)


def _get(client: "ObjectStore", key: str) -> tuple[bytes, Version]:
    import obstore

    found = obstore.get(client, key)
    return bytes(found.bytes()), Version(found.meta["e_tag"], found.meta["version"])


def _put(client: "ObjectStore", key: str, content: bytes, replaced: Version | None) -> Version:
    """Write an object, again where the network fails."""
    deadline, pause_s = time.monotonic() + _WRITE_FOR_S, 0.25
    while True:
        try:
            return _put_once(client, key, content, replaced)
        except Exception as error:
            is_final = isinstance(error, PermissionError) or not _is_of_network(error)
            if is_final or time.monotonic() + pause_s > deadline:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 8.0)


def _put_once(client: "ObjectStore", key: str, content: bytes, replaced: Version | None) -> Version:
    import obstore
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    mode: Any = "create"
    if replaced is not None:
        mode = {name: value for name, value in replaced._asdict().items() if value is not None}
    try:
        made = obstore.put(client, key, content, mode=mode)
        return Version(made["e_tag"], made["version"])
    except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
        if not isinstance(error, AlreadyExistsError | PreconditionError) and not _is_nothing_there(error):
            raise
        try:
            there, version = _get(client, key)
        except FileNotFoundError:
            raise ChangedError(key) from error
        if there != content:
            raise ChangedError(key) from error
        return version


def _is_nothing_there(error: BaseException) -> bool:
    """Whether a bucket was looked into and has nothing of the name."""
    is_bucket_missing = "NoSuchBucket" in str(error) or type(error.__cause__).__name__ in _NO_ACCESS
    return isinstance(error, FileNotFoundError) and not is_bucket_missing


def _is_of_network(error: BaseException) -> bool:
    """Whether it is one that obstore, huggingface_hub or what this stands on raises: they have no common base."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in ("obstore", "httpx", "httpx2", "huggingface_hub")


def _reason(error: Exception) -> str:
    """What a server says, else the library's first line."""
    if match := _S3_ERROR.search(str(error)):
        return ": ".join(part.strip().rstrip(".") for part in match.groups() if part)
    return first_line(error)[:300].rstrip(": ")
